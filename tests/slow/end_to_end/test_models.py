"""A configuration taken all the way by the commands: trained on seeds, stopped, resumed, tested, used."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmsearch.lm import load
from tests.bureau import wait_for
from tests.conftest import Cli
from tests.factories import save_articles, write_corpus, write_study

CLOSED = """
format = 1
[data]
corpus = "corpus"
[model]
embedding_size = 6
hidden_size = 6
num_layers = 1
input_dropout = 0.2
weight_dropout = 0.3
[train]
optimizer = "nt-asgd"
learning_rate = 5.0
nonmono = 1
batch_size = 4
eval_batch_size = 4
bptt = 8
epochs = 8
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus")
    (tmp_path / "closed.toml").write_text(CLOSED)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train one small model by the command; give the folder it was done in."""
    folder = tmp_path_factory.mktemp("trained")
    write_corpus(folder / "corpus")
    (folder / "closed.toml").write_text(CLOSED.replace("epochs = 8", "epochs = 4"))
    command = [sys.executable, "-m", "lmsearch.cli.main", "train", "closed.toml", "--name", "m"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=240)
    return folder


def weights(folder: Path, name: str, seed: int = 1) -> bytes:
    return (folder / f"runs/{name}/seed-{seed}/model.safetensors").read_bytes()


def test_seeds_have_folders_of_their_own_and_their_mean_and_spread_are_reported(project: Path, cli: Cli) -> None:
    said = cli("train", "closed.toml", "--seeds", "3", "--epochs", "2", "--set", "train.learning_rate=2.0")
    assert said.returncode == 0, said.stderr
    lines = re.findall(
        r"^epoch +\d  train [\d.]+  valid [\d.]+  perplexity +[\d.]+  lr 2  [\d.]+ ms/batch  [\d,]+ tokens/s$",
        said.stdout,
        re.MULTILINE,
    )
    assert len(lines) == 6
    found = json.loads(cli("train", "closed.toml", "--seeds", "3", "--epochs", "2", "--set", "train.learning_rate=2.0", "--json").stdout)  # fmt: skip
    values = [one["perplexity"] for one in found["seeds"]]
    assert [one["seed"] for one in found["seeds"]] == [1, 2, 3] and len(set(values)) == 3
    assert found["perplexity"] == pytest.approx(np.mean(values)) and found["deviation"] == pytest.approx(
        np.std(values, ddof=1)
    )
    assert f"over 3 seeds: mean {found['perplexity']:.2f}, standard deviation {found['deviation']:.2f}" in said.stdout
    assert len({weights(project, "closed", seed) for seed in (1, 2, 3)}) == 3


@pytest.mark.heavy
def test_a_training_stopped_at_any_moment_goes_on_to_the_same_weights_bit_for_bit(project: Path, cli: Cli) -> None:
    """Also after the switch to ASGD, which comes early here."""
    whole = cli("train", "closed.toml", "--name", "whole")
    assert whole.returncode == 0
    stops = 0
    for _ in range(40):
        words = ["train", "closed.toml", "--name", "parts", "--resume"]
        command = [sys.executable, "-c", STOPPING, str(7 + 5 * stops), *words]
        said = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120, check=False)
        if said.returncode == 0:
            break
        assert said.returncode == 130, said.stderr
        assert said.stdout.rstrip().endswith("saved; resume with: lmsearch train closed.toml --name parts --resume")
        stops += 1
    assert stops >= 4
    assert weights(project, "parts") == weights(project, "whole")
    metrics = [json.loads((project / f"runs/{name}/seed-1/metrics.json").read_text()) for name in ("parts", "whole")]
    assert metrics[0] == metrics[1]


STOPPING = """
import os, signal, sys
import lmsearch.lm.fit as fit
real, left = fit.train, [int(sys.argv.pop(1))]
def train(*args):
    for event in real(*args):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGINT)
        yield event
fit.train = train
from lmsearch.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_saves_the_training_and_prints_how_to_go_on(project: Path, cli: Cli, number: int, code: int) -> None:
    (project / "closed.toml").write_text(CLOSED.replace("epochs = 8", "epochs = 100000"))
    command = [sys.executable, "-m", "lmsearch.cli.main", "train", "closed.toml", "--seeds", "2"]
    with (project / "said").open("w") as said:
        training = subprocess.Popen(command, cwd=project, stdout=said, start_new_session=True)
    wait_for((project / "runs/closed/seed-1.training").exists)
    training.send_signal(number)
    assert training.wait(timeout=20) == code
    assert "resume with: lmsearch train closed.toml --seeds 2 --resume" in (project / "said").read_text()
    again = cli("train", "closed.toml")
    assert again.returncode == 2 and "stopped in epoch" in again.stderr and "resume it with --resume" in again.stderr


def test_going_on_with_another_learning_rate_is_written_down_and_anything_else_refused(project: Path, cli: Cli) -> None:
    assert cli("train", "closed.toml", "--epochs", "2").returncode == 0
    said = cli("train", "closed.toml", "--epochs", "4", "--resume", "--set", "train.learning_rate=0.5")
    assert said.returncode == 0 and "seed 1 resumes in epoch 3" in said.stdout
    assert "lr 0.5 " in said.stdout and said.stdout.count("epoch ") >= 2
    metrics = json.loads((project / "runs/closed/seed-1/metrics.json").read_text())
    if metrics["epoch"] > 2:
        assert metrics["changes"] == [{"after_epoch": 2, "train.epochs": [2, 4], "train.learning_rate": [5.0, 0.5]}]
    for words, message in (
        (["--resume", "--set", "model.hidden_size=7"], "was started with model.hidden_size = 6, now it is 7"),
        (["--set", "train.learning_rate=0.1", "--epochs", "4"], "resume it with --resume, or give it another --name"),
        (["--set", "train.lerning_rate=0.1"], "did you mean train.learning_rate?"),
        (["--set", "train.learning_rate"], "is not NAME=VALUE"),
        (["--set", "train.bptt=no"], "train.bptt must be a whole number, got 'no'"),
    ):
        refused = cli("train", "closed.toml", *words)
        assert refused.returncode == 2 and message in refused.stderr, refused.stderr


def test_a_damaged_training_is_reported_and_not_resumed(project: Path, cli: Cli) -> None:
    assert cli("train", "closed.toml", "--epochs", "1").returncode == 0
    path = project / "runs/closed/seed-1.training"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    said = cli("train", "closed.toml", "--epochs", "2", "--resume")
    assert said.returncode == 2 and "seed-1.training is damaged (its checksum is another)" in said.stderr


def test_each_evaluation_on_the_test_split_is_kept_beside_the_model_and_in_the_study(tmp_path: Path, cli: Cli) -> None:
    write_study(tmp_path)
    assert cli("run", "tiny.toml", "--workers", "1", "--quiet").returncode == 0
    first, second = cli("test", "tiny"), cli("test", "tiny", "--json")
    assert first.returncode == second.returncode == 0, first.stderr
    assert "look 2" not in first.stdout and json.loads(second.stdout)["look"] == 2
    result = json.loads((tmp_path / "runs/tiny/best-config.json").read_text())["result"]
    assert f"in validation the perplexity was {result['perplexity']:.4f}" in first.stdout
    assert json.loads(second.stdout)["validation"]["perplexity"] == result["perplexity"]
    assert cli("report", "tiny", "--output", "report.html").returncode == 0
    table = (tmp_path / "report.html").read_text().split("test evaluations", 1)[1]
    assert f">{result['perplexity']:.2f}</td>" in table.split("</table>")[0]
    assert "this is test evaluation 3 of this model" in cli("test", "runs/tiny/best-model").stdout
    evaluations = json.loads((tmp_path / "runs/tiny/best-model/test-looks.json").read_text())
    assert len(evaluations) == 3 and len({one["perplexity"] for one in evaluations}) == 1
    assert cli("run", "tiny.toml", "--workers", "1", "--quiet").returncode == 0  # writes the results again
    assert json.loads((tmp_path / "runs/tiny/best-model/test-looks.json").read_text()) == evaluations
    import optuna

    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{tmp_path}/runs/lmsearch.db")
    kept = study.user_attrs["lmsearch:looks"]
    assert [one["when"] for one in kept] == [one["when"] for one in evaluations]
    assert {one["model"] for one in kept} == {str(tmp_path / "runs/tiny/best-model")}
    text = cli("evaluate", "tiny", "--text", "corpus/test.txt", "--json")
    assert json.loads(text.stdout)["perplexity"] == evaluations[0]["perplexity"]  # any batch, one figure


def test_a_cache_is_found_on_validation_kept_beside_the_model_and_evaluates_the_test_split_once(
    trained: Path, cli: Cli, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / "here", dirs_exist_ok=True)
    model = tmp_path / "here/runs/m/seed-1"
    before = cli("pointer", str(model), "--trials", "6", "--json")
    assert before.returncode == 0, before.stderr
    found = json.loads(before.stdout)
    kept = json.loads((model / "pointer.json").read_text())
    assert kept["constants"] == found["constants"] and set(found["constants"]) == {"window", "theta", "weight"}
    assert found["valid"]["perplexity"] <= found["valid"]["perplexity_without"]
    assert "test" not in found and not (model / "test-looks.json").exists()
    said = cli("pointer", str(model), "--trials", "6", "--test")
    constants = found["constants"]
    assert (
        f"window {constants['window']}, theta {constants['theta']:.4g}, lambda {constants['weight']:.4g}" in said.stdout
    )
    (evaluation,) = json.loads((model / "test-looks.json").read_text())
    assert (
        evaluation["pointer"] == constants
        and f"test perplexity {evaluation['perplexity']:.2f} with the cache" in said.stdout
    )
    alone = json.loads(cli("test", str(model), "--json").stdout)
    assert alone["look"] == 2 and f"{alone['perplexity']:.2f} without" in said.stdout


def test_arrays_that_need_pickle_are_searched_where_a_person_allows_it(tmp_path: Path, cli: Cli) -> None:
    write_study(tmp_path)
    shutil.rmtree(tmp_path / "corpus")
    (tmp_path / "corpus").mkdir()
    np.save(tmp_path / "corpus/vocab.npy", np.array(["<unk>", "<eos>", *(f"word{n}" for n in range(8))]))
    for split, articles in (("train", 6), ("valid", 3)):
        texts = [np.arange(number, number + 60) % 10 for number in range(articles)]
        save_articles(tmp_path / f"corpus/wiki.{split}.npy", texts)
    run = ("run", "tiny.toml", "--workers", "2")
    refused = cli(*run)
    assert refused.returncode == 2 and "lmsearch data convert" in refused.stderr and "Traceback" not in refused.stderr
    assert not (tmp_path / "runs/lmsearch.db").exists()
    assert cli(*run, "--allow-pickle").returncode == 0
    assert json.loads(cli("status", "tiny", "--json").stdout)["done"] == 3
    assert cli("worker", "tiny").returncode == 0  # what was read once is kept, and needs no pickle
    for words in (("worker", "tiny"), ("train", "runs/tiny/best-config.json")):
        cache = str(tmp_path / f"where {words[0]} runs")
        alone = cli(*words, LMSEARCH_CACHE=cache)
        assert alone.returncode == 2 and "pickle can run code" in alone.stderr
        assert cli(*words, "--allow-pickle", LMSEARCH_CACHE=cache).returncode == 0


def test_a_model_on_another_text_is_not_tested_but_evaluated(trained: Path, cli: Cli, tmp_path: Path) -> None:
    for name in ("runs", "corpus"):
        shutil.copytree(trained / name, tmp_path / name)
    write_corpus(tmp_path / "corpus", seed=7)
    said = cli("test", "runs/m/seed-1")
    assert said.returncode == 2 and "lmsearch evaluate --text" in said.stderr
    (tmp_path / "mine.txt").write_text("word1 word2 strange word3\n")
    evaluated = cli("evaluate", "runs/m/seed-1", "--text", "mine.txt")
    assert "over 4 predictions" in evaluated.stdout and "unknown words 1 (20.0%)" in evaluated.stdout


def test_one_folder_is_all_that_another_machine_needs(trained: Path, cli: Cli, tmp_path: Path) -> None:
    shutil.copytree(trained / "runs/m/seed-1", tmp_path / "model")
    (tmp_path / "mine.txt").write_text("word1 word2 word3\n")
    assert cli("evaluate", "model", "--text", "mine.txt").returncode == 0
    assert len(cli("generate", "model", "--words", "5").stdout.split()) <= 5
    unknown = cli("generate", "modle")
    assert unknown.returncode == 2 and "there is no model 'modle'" in unknown.stderr


def test_predictions_are_those_of_a_plain_softmax(trained: Path, cli: Cli, tmp_path: Path) -> None:
    import torch

    model = load(trained / "runs/m/seed-1")
    rng = np.random.default_rng(0)
    contexts, follows = rng.integers(0, 14, (70, 5)), rng.integers(0, 14, 70)
    np.savez(tmp_path / "asked.npz", inp=contexts, out=follows)
    with torch.no_grad():
        features = model.model.features(torch.from_numpy(contexts).t(), model.model.initial_states(70)).raw_TBH[-1]
        expected = (features @ model.model.decoder.weight.t() + model.model.decoder.bias).log_softmax(1).numpy()
    said = cli("predict", str(trained / "runs/m/seed-1"), "asked.npz", "--top", "3", "--json")
    document = json.loads(said.stdout)
    assert document["mean_negative_log_likelihood"] == pytest.approx(-expected[np.arange(70), follows].mean(), rel=1e-5)
    for row, one in zip(expected, document["top"], strict=True):
        best = np.argsort(-row)[:3]
        assert [candidate["word"] for candidate in one["candidates"]] == [model.vocabulary.words[i] for i in best]
    np.savez(tmp_path / "open.npz", inp=contexts)
    assert cli("predict", str(trained / "runs/m/seed-1"), "open.npz").returncode == 0
    written = np.load(tmp_path / "open.log-probabilities.npy")
    assert written.dtype == np.float32 and np.allclose(written, expected, atol=1e-5)
    # Another vocabulary's indices are mapped by their words.
    order = rng.permutation(14)
    np.save(tmp_path / "vocab.npy", np.array([*np.array(model.vocabulary.words)[order], "strange"]))
    index_of = np.argsort(order)
    np.savez(tmp_path / "theirs.npz", inp=index_of[contexts], out=index_of[follows])
    mapped = cli("predict", str(trained / "runs/m/seed-1"), "theirs.npz", "--vocabulary", "vocab.npy", "--json")
    assert json.loads(mapped.stdout)["mean_negative_log_likelihood"] == document["mean_negative_log_likelihood"]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no contexts": ({"out": np.zeros(2, int)}, "has no array `inp`"),
    "one dimension": ({"inp": np.zeros(3, int)}, "must be whole numbers of shape (N, T)"),
    "fractions": ({"inp": np.zeros((2, 2))}, "must be whole numbers of shape (N, T)"),
    "too few answers": ({"inp": np.zeros((3, 2), int), "out": np.zeros(2, int)}, "of shape (3,), it is int64 of (2,)"),
    "an index too high": ({"inp": np.full((2, 2), 14)}, "the index 14 is outside the vocabulary, which has 0 to 13"),
}


@pytest.mark.parametrize(("arrays", "message"), BAD.values(), ids=BAD)
def test_contexts_that_are_none_are_refused(
    trained: Path, cli: Cli, tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    np.savez(tmp_path / "asked.npz", **arrays)
    said = cli("predict", str(trained / "runs/m/seed-1"), "asked.npz")
    assert said.returncode == 2 and message in said.stderr and "Traceback" not in said.stderr


def test_what_is_written_depends_on_the_seed_alone_and_the_word_written_is_the_next_input(
    trained: Path, cli: Cli
) -> None:
    folder = str(trained / "runs/m/seed-1")
    words = ["generate", folder, "--words", "30", "--prompt", "word1 word2"]
    texts = [cli(*words, "--seed", seed).stdout for seed in ("3", "3", "4")]
    assert texts[0] == texts[1] != texts[2] and texts[0].startswith("word1 word2 ") and "<unk>" not in texts[0]
    model = load(folder)
    greedy = cli(*words, "--temperature", "0").stdout
    assert greedy == cli(*words, "--temperature", "0", "--seed", "9").stdout
    # By hand: each next word is the most probable after all before it, the prompt included.
    said = ["word1", "word2"]
    index = model.vocabulary.index
    for word in model.generate("word1 word2", 12, temperature=0):
        (row,) = next(iter(model.next_word(np.array([[index["<eos>"], *map(index.__getitem__, said)]]))))[None, 0]
        row[index["<unk>"]] = -np.inf
        assert model.vocabulary.words[int(row.argmax())] == word
        said.append(word)
    several = cli(*words, "--samples", "2", "--seed", "3").stdout
    assert "sample 1, seed 3:" in several and texts[0].strip() in several and texts[2].strip() in several
    unknown = cli("generate", folder, "--words", "3", "--prompt", "word1 strange")
    assert unknown.returncode == 0 and "does not know 'strange': <unk> to it" in unknown.stderr
    for option, value in (("--temperature", "-1"), ("--top-p", "0"), ("--top-k", "-2")):
        assert cli("generate", folder, option, value).returncode == 2


def test_top_k_and_top_p_keep_only_what_they_say(trained: Path) -> None:
    model = load(trained / "runs/m/seed-1")
    (row,) = next(iter(model.next_word(np.array([[model.vocabulary.index["<eos>"]]]))))[None, 0]
    row[model.vocabulary.index["<unk>"]] = -np.inf
    ranked = [model.vocabulary.words[index] for index in np.argsort(-row)]
    shares = np.sort(np.exp(row) / np.exp(row).sum())[::-1]

    def firsts(**options: Any) -> set[str]:
        return {next(iter(model.generate("", 1, seed, **options))) for seed in range(300)}

    assert firsts(top_k=2) == set(ranked[:2])
    enough = int(np.searchsorted(shares.cumsum(), 0.4)) + 1
    assert firsts(top_p=0.4) == set(ranked[:enough])
    assert firsts(top_p=1e-9) == {ranked[0]} and len(firsts()) > enough


def test_text_is_streamed_as_it_is_drawn(trained: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "lmsearch.cli.main",
        "generate",
        str(trained / "runs/m/seed-1"),
        "--words",
        "2000000",
    ]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, env=dict(os.environ) | {"PYTHONUNBUFFERED": "1"})
    assert writer.stdout is not None
    assert len(writer.stdout.read(200)) == 200
    time.sleep(0.1)
    assert writer.poll() is None  # long before its end
    writer.kill()
    writer.wait()
    writer.stdout.close()


def test_a_loaded_model_gives_probabilities_and_perplexity_in_python(trained: Path) -> None:
    model = load(trained / "runs/m/seed-1")
    words = ["word1", "word2", "strange", "<eos>"]
    found = model.log_probabilities(words)
    assert found.shape == (4,) and (found < 0).all()
    contexts = [["<eos>"], ["<eos>", "word1"], ["<eos>", "word1", "word2"], ["<eos>", "word1", "word2", "<unk>"]]
    for context, word, value in zip(contexts, words, found, strict=True):
        encoded = np.array([model.vocabulary.encode(context)])
        row = next(iter(model.next_word(encoded)))[0]
        assert math.exp(row.astype(float).max()) < 1 and np.exp(row.astype(float)).sum() == pytest.approx(1, abs=1e-5)
        assert value == pytest.approx(row[model.vocabulary.encode([word])[0]], abs=1e-5)
    long = ["word1", "word2"] * 700  # more than one block
    assert np.allclose(model.log_probabilities(long)[:3], model.log_probabilities(long[:3]), atol=1e-5)
    text = "word1 word2\nword3\n"
    expected = model.log_probabilities(model.words(text))
    assert model.perplexity(text) > 1 and len(expected) == 5
