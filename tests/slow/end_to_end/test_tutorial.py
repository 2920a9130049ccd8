"""Every block of docs/tutorial.md, in order, in one folder, on a small corpus in the tutorial's format."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lmsearch.lm import load
from tests.factories import save_articles

TUTORIAL = Path(__file__).parents[3] / "docs/tutorial.md"


def write_exercise(folder: Path) -> None:
    """Write arrays in which each word hints at the next, one array of them an article, and contexts to predict."""
    rng = np.random.default_rng(0)
    words = ["the", "<unk>", "<eos>", *(f"word{n}" for n in range(17))]
    folder.mkdir()
    np.save(folder / "vocab.npy", np.array(words))

    def article(length: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        steps = np.where(rng.random(length) < 0.8, 1, rng.integers(0, len(words), length))
        return np.cumsum(steps) % len(words)

    for split, articles in (("train", 12), ("valid", 4)):
        save_articles(folder / f"wiki.{split}.npy", [article(int(rng.integers(200, 400))) for _ in range(articles)])
    contexts = np.stack([article(21) for _ in range(16)])
    np.savez(folder / "prediction.npz", inp=contexts[:, :-1], out=contexts[:, -1])


@pytest.mark.heavy
@pytest.mark.timeout(1200)
def test_every_block_of_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    write_exercise(tmp_path / "wiki-arrays")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    said: list[str] = []
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", TUTORIAL.read_text(), re.DOTALL | re.MULTILINE)
    assert [kind for kind, _ in blocks] == ["sh", "toml", "sh", "sh", "sh", "python", "toml", "sh"]
    for kind, block in blocks:
        if kind == "toml":
            (tmp_path / block.split("\n")[0].removeprefix("# ")).write_text(block)
            continue
        command = ["bash", "-euc", block] if kind == "sh" else [sys.executable, "-c", block]
        run = subprocess.run(command, cwd=tmp_path, env=dict(os.environ) | {"PATH": path}, capture_output=True, text=True, check=False)  # fmt: skip
        assert run.returncode == 0, f"{block}\n{run.stdout}\n{run.stderr}"
        said.append(run.stdout)
    shown, plain, faster, predicted, python, searched = said
    assert re.search(r"^train +[\d,]+ +[\d.]+% +12 ", shown, re.MULTILINE)  # articles
    assert "best perplexity" in plain and "over 3 seeds: mean" in faster

    # What is graded is the mean over the contexts, and the search's winner knows more than nothing.
    contexts = np.load(tmp_path / "wiki-arrays/prediction.npz")
    printed = [float(value) for value in re.findall(r"mean negative log-likelihood ([\d.]+)", predicted + searched)]
    assert float(python) == pytest.approx(printed[0], abs=1e-4)
    for value, name in zip(printed, ("faster/seed-1", "better/best-model"), strict=True):
        model = load(tmp_path / "runs" / name)
        rows = np.concatenate(list(model.next_word(contexts["inp"])))
        assert value == pytest.approx(-rows[np.arange(16), contexts["out"]].mean(), abs=1e-3)
    assert printed[1] < np.log(20)
