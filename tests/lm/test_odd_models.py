"""A model's folder that is damaged, foreign or hostile is refused in one sentence, by every command that takes one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmsearch.cli.main import main
from lmsearch.errors import ConfigError, LmsearchError
from lmsearch.lm.fit import TrainingFiles, alone
from lmsearch.lm.model import LanguageModel
from lmsearch.lm.saving import save_model
from lmsearch.lm.training import TrainRequest, prepare_training
from lmsearch.lm.use.model_folder import load_model
from lmsearch.results.evaluations import read_evaluations
from tests.factories import make_corpus, make_run, write_corpus


def make_model(folder: Path) -> Path:
    torch.manual_seed(0)
    config = make_run()
    weights = LanguageModel(config.model, 12).weights()
    save_model(
        folder,
        safetensors.torch.save(weights),
        config.as_tables(),
        make_corpus().vocabulary,
        {"corpus": "0123", "valid_loss": 1.0},
    )
    return folder


def changed_json(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return apply


def changed_weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(safetensors.torch.save(change(safetensors.torch.load(path.read_bytes()))))

    return apply


def replaced(name: str, content: bytes) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return apply


def pipe(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return apply


def size(path: str, value: object) -> Callable[[Path], None]:
    section, _, name = path.partition(".")
    return changed_json("config.json", lambda tables: tables | {section: tables[section] | {name: value}})


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "vocabulary of numbers": (changed_json("vocabulary.json", lambda words: list(range(12))), "that is no word"),
    "vocabulary of lists": (
        changed_json("vocabulary.json", lambda words: [[word] for word in words]),
        "that is no word",
    ),
    "vocabulary an object": (changed_json("vocabulary.json", dict.fromkeys), "is no list"),
    "no unk": (changed_json("vocabulary.json", lambda words: ["x", *words[1:]]), "has no <unk>"),
    "no eos": (changed_json("vocabulary.json", lambda words: [words[0], "x", *words[2:]]), "has no <eos>"),
    "an empty word": (changed_json("vocabulary.json", lambda words: [*words[:-1], ""]), "is empty, or no text"),
    "half a character": (
        changed_json("vocabulary.json", lambda words: [*words[:-1], "\ud800"]),
        "is empty, or no text",
    ),
    "a word twice": (changed_json("vocabulary.json", lambda words: [*words[:-1], words[2]]), "has a word twice"),
    "a word less": (changed_json("vocabulary.json", lambda words: words[:-1]), "is of shape"),
    "vocabulary no JSON": (replaced("vocabulary.json", b"[1,"), "is not a whole model folder"),
    "vocabulary not UTF-8": (replaced("vocabulary.json", b'["\xff"]'), "is not a whole model folder"),
    "vocabulary a pipe": (pipe("vocabulary.json"), "vocabulary.json is no file"),
    "deep vocabulary": (replaced("vocabulary.json", b"[" * 200_000), "is nested too deeply|is not a whole"),
    "metrics a list": (replaced("metrics.json", b"[]"), "metrics.json is no object"),
    "metrics null": (replaced("metrics.json", b"null"), "metrics.json is no object"),
    "metrics a pipe": (pipe("metrics.json"), "metrics.json is no file"),
    "weights of another": (changed_weights(lambda w: {name: t[:2].clone() for name, t in w.items()}), "is of shape"),
    "weights lack one": (changed_weights(lambda w: dict(list(w.items())[1:])), "the weights lack"),
    "weights are NaN": (changed_weights(lambda w: {n: t * float("nan") for n, t in w.items()}), "no finite numbers"),
    "weights are infinite": (changed_weights(lambda w: {n: t / 0 for n, t in w.items()}), "no finite numbers"),
    "weights are whole": (changed_weights(lambda w: {n: t.int() for n, t in w.items()}), "no finite numbers"),
    "weights cut off": (replaced("model.safetensors", b"\x10\0\0\0\0\0\0\0{}"), "is not a whole model folder"),
    "weights empty": (replaced("model.safetensors", b""), "is not a whole model folder"),
    "weights a pipe": (pipe("model.safetensors"), "model.safetensors is no file"),
    "ten million layers": (size("model.num_layers", 10_000_000), "num_layers must be at most 1,000"),
    "a thousand layers": (size("model.num_layers", 1_000), "is of shape"),
    "a million units": (size("model.embedding_size", 1_000_000), "is of shape"),
    "units beyond": (size("model.hidden_size", 1 << 62), "must be at most"),
    "config a list": (replaced("config.json", b"[]"), "must hold an object"),
    "config empty": (replaced("config.json", b""), "is not valid JSON"),
    "config without a text": (changed_json("config.json", lambda t: t | {"data": {}}), "data.corpus is missing"),
    "config of no format": (changed_json("config.json", lambda t: t | {"format": "x"}), "format"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_or_foreign_model_is_refused_in_one_sentence(fault: str, tmp_path: Path) -> None:
    spoil, said = FAULTS[fault]
    spoil(make_model(tmp_path / "model"))
    with pytest.raises(LmsearchError, match=said):
        load_model(tmp_path / "model")


def test_weights_too_large_to_compute_with_are_said_to_be_that(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    changed_weights(lambda w: {name: tensor.sign() * 3e38 for name, tensor in w.items()})(model)
    with pytest.raises(ConfigError, match="so large that its probabilities are no numbers"):
        list(load_model(model).generate(words=3))


@pytest.mark.parametrize("content", [b"{}", b"[1]", b"null", b"[", b"[" * 200_000, b"\xff"])
def test_evaluations_that_cannot_be_read_are_reported_before_another_is_recorded(
    content: bytes, tmp_path: Path
) -> None:
    (make_model(tmp_path / "model") / "test-looks.json").write_bytes(content)
    with pytest.raises(ConfigError, match="test-looks.json"):
        read_evaluations(tmp_path / "model")


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["vocabulary.json", "metrics.json", "config.json", "model.safetensors"]),
    position=st.floats(0, 1),
    new=st.binary(max_size=12),
    cut=st.integers(0, 40),
)
def test_mutated_models_are_refused_or_load(
    name: str, position: float, new: bytes, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = make_model(tmp_path_factory.mktemp("fuzz") / "model")
    content = (folder / name).read_bytes()
    at = int(position * len(content))
    (folder / name).write_bytes(content[:at] + new + content[at + cut :])
    try:
        model = load_model(folder)
        next(iter(model.generate(words=3)))
        model.perplexity("w1 w2 w3")
    except LmsearchError as error:
        assert "\n" not in str(error) or name != "metrics.json"


def test_the_commands_exit_with_2_in_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(tmp_path / "model")
    FAULTS["weights are NaN"][0](model)
    (tmp_path / "text.txt").write_text("w1 w2\n")
    for words in (["generate"], ["test"], ["evaluate", "--text", str(tmp_path / "text.txt")], ["pointer"]):
        with pytest.raises(SystemExit) as ended:
            main([words[0], str(model), *words[1:]])
        assert ended.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_two_trainings_of_one_name_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "corpus")
    (tmp_path / "closed.toml").write_text('format = 1\n[data]\ncorpus = "corpus"\n')
    (tmp_path / "runs/one").mkdir(parents=True)
    code = (
        "import sys; from pathlib import Path; from lmsearch.lm.fit import TrainingFiles, alone\n"
        "with alone(TrainingFiles(folder=Path('runs/one/seed-1'))):\n    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with (
            pytest.raises(ConfigError, match="another process trains in"),
            alone(TrainingFiles(folder=tmp_path / "runs/one/seed-1")),
        ):
            pass
        # Also before anything of it is looked at: what is at work has not stopped.
        (tmp_path / "runs/one/seed-1.training").write_bytes(b"of the other process")
        with pytest.raises(ConfigError, match="another process trains in"):
            prepare_training(TrainRequest(config=tmp_path / "closed.toml", name="one"))
        (tmp_path / "runs/one/seed-1.training").unlink()
        assert holder.stdin is not None
        holder.stdin.close()
    with alone(TrainingFiles(folder=tmp_path / "runs/one/seed-1")):
        pass
    assert list((tmp_path / "runs/one").iterdir()) == []
