"""A study's name means its best trial in the store; what lies in a folder is not believed for its place."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lmsearch.lm import load
from lmsearch.lm.evaluate import evaluate
from tests.conftest import Cli
from tests.factories import TINY_STUDY, write_study

ONE = TINY_STUDY.replace("trials = 3", "trials = 1").replace("epochs = 3", "epochs = 2")


def valid_perplexity(model: Path, text: Path) -> float:
    """Compute a model's perplexity from its weights alone, from the first token to the last."""
    trained = load(model)
    tokens = [
        token
        for line in text.read_text(encoding="utf-8").splitlines()
        for token in trained.vocabulary.encode([*line.split(), "<eos>"])
    ]
    return float(torch.tensor(evaluate(trained.model, torch.tensor(tokens), 1, 512).loss).exp())


def test_a_name_means_the_stores_best_trial_also_after_others_have_added_to_it(cli: Cli, tmp_path: Path) -> None:
    write_study(tmp_path, ONE, "s.toml")
    assert cli("run", "s.toml", "--workers", "1").returncode == 0
    first = json.loads((tmp_path / "runs/s/best-model/metrics.json").read_text())
    best = (0, first["perplexity"])
    for rate in ("0.1", "0.03"):
        values = [f"train.learning_rate={rate}", "model.output_dropout=0.0", "model.tie_weights=false"]
        assert cli("enqueue", "s", *values).returncode == 0
        assert cli("worker", "s").returncode == 0
    status = json.loads(cli("status", "s", "--json").stdout)
    best = (status["best"]["trial"], status["best"]["perplexity"])
    assert best[0] != 0 and best[1] < first["perplexity"]  # else nothing is shown
    assert json.loads((tmp_path / "runs/s/best-model/metrics.json").read_text()) == first  # a worker writes no results
    said = cli("test", "s", "--json")
    assert said.returncode == 0, said.stderr
    assert f"best-model held another trial; now it holds trial {best[0]}, the best" in said.stderr
    model = tmp_path / "runs/s/best-model"
    metrics = json.loads((model / "metrics.json").read_text())
    assert (metrics["trial"], metrics["perplexity"]) == best
    assert valid_perplexity(model, tmp_path / "corpus/valid.txt") == pytest.approx(best[1], rel=1e-5)
    config = json.loads((tmp_path / "runs/s/best-config.json").read_text())
    assert (config["result"]["trial"], config["result"]["perplexity"]) == best
    again = cli("evaluate", "s", "--text", "corpus/test.txt", "--json")
    assert again.stderr == ""
    assert json.loads(again.stdout)["perplexity"] == pytest.approx(json.loads(said.stdout)["perplexity"], rel=1e-6)
    # Its weights gone, a name is refused and nothing is touched: the model that stands there is another trial's.
    stale = {path.name: path.read_bytes() for path in model.iterdir()}
    assert (
        cli(
            "enqueue", "s", "train.learning_rate=0.05", "model.output_dropout=0.0", "model.tie_weights=false"
        ).returncode
        == 0
    )
    assert cli("worker", "s").returncode == 0
    now = json.loads(cli("status", "s", "--json").stdout)["best"]["trial"]
    if now != best[0]:
        shutil.rmtree(tmp_path / "runs/s/models")
        refused = cli("generate", "s", "--words", "3")
        assert (
            refused.returncode == 2 and f"the best of s is trial {now}, and its weights are not kept" in refused.stderr
        )
        assert {path.name: path.read_bytes() for path in model.iterdir()} == stale
    by_path = cli("generate", "runs/s/best-model", "--words", "3")
    assert by_path.returncode == 0, by_path.stderr


def test_two_stores_with_one_name_in_one_folder_have_models_of_their_own(cli: Cli, tmp_path: Path) -> None:
    write_study(tmp_path, ONE, "s.toml")
    write_study(tmp_path, ONE.replace("high = 0.5", "high = 0.9"), "t.toml")
    for name, store in (("s.toml", "a.db"), ("t.toml", "b.db")):
        said = cli("run", name, "--name", "s", "--workers", "1", "--storage", f"sqlite:///{store}")
        assert said.returncode == 0, said.stderr
    assert "runs/s had the results of another store's study s, which are replaced" in said.stderr
    for store in ("a.db", "b.db"):
        best = json.loads(cli("status", "s", "--json", "--storage", f"sqlite:///{store}").stdout)["best"]
        tested = cli("test", "s", "--storage", f"sqlite:///{store}")
        assert tested.returncode == 0, tested.stderr
        found = valid_perplexity(tmp_path / "runs/s/best-model", tmp_path / "corpus/valid.txt")
        assert found == pytest.approx(best["perplexity"], rel=1e-5)
        with sqlite3.connect(tmp_path / store) as connection:
            (evaluations,) = connection.execute(
                "SELECT value_json FROM study_user_attributes WHERE key = 'lmsearch:looks'"
            ).fetchone()
        assert len(json.loads(evaluations)) == 1


def test_a_name_without_a_store_is_refused_with_the_folder_to_name(cli: Cli, tmp_path: Path) -> None:
    write_study(tmp_path, ONE, "s.toml")
    assert cli("run", "s.toml", "--workers", "1").returncode == 0
    for left in (tmp_path / "runs").glob("lmsearch.db*"):
        left.unlink()
    said = cli("generate", "s", "--words", "3")
    assert said.returncode == 2 and "there is no store" in said.stderr
    assert "to use a model in that folder, name its own folder: runs/s/best-model" in said.stderr
    assert cli("generate", "runs/s/best-model", "--words", "3").returncode == 0
    (tmp_path / "runs/s/seed-1.training").write_bytes(b"in its first epoch")
    assert "resume it with lmsearch train --resume" in cli("generate", "runs/s/seed-1").stderr


@pytest.mark.parametrize(
    "name", ["lmsearch", *(pytest.param(one, marks=pytest.mark.heavy) for one in ("random", "click"))]
)
def test_a_module_in_the_working_folder_is_not_imported(cli: Cli, tmp_path: Path, name: str) -> None:
    write_study(tmp_path, ONE, "s.toml")
    code = f"open({str(tmp_path / 'was-run')!r}, 'w'); raise RuntimeError('taken for the library')"
    if name == "lmsearch":
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
    else:
        (tmp_path / f"{name}.py").write_text(code)
    script = Path(sys.executable).with_name("lmsearch")  # which has not the working folder on its path
    for words in (["run", "s.toml", "--workers", "1"], ["plan", "s.toml", "--workers", "1"], ["doctor"]):
        said = subprocess.run([script, *words], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200)
        assert said.returncode == 0, said.stderr + said.stdout
    assert not (tmp_path / "was-run").exists()


@pytest.mark.heavy
def test_trials_failed_by_hand_end_no_search(cli: Cli, tmp_path: Path) -> None:
    write_study(
        tmp_path, TINY_STUDY.replace("trials = 3", "trials = 7").replace("epochs = 3", "epochs = 120"), "s.toml"
    )
    log = (tmp_path / "log").open("w")
    command = [sys.executable, "-P", "-m", "lmsearch.cli.main", "run", "s.toml", "--workers", "2"]
    search = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT)
    try:
        failed: set[int] = set()
        end = time.monotonic() + 120
        while len(failed) < 4 and search.poll() is None and time.monotonic() < end:
            status = cli("status", "s", "--json")
            rows = json.loads(status.stdout)["at_work"] if status.returncode == 0 else []
            for row in rows:
                if row["trial"] is not None and row["trial"] not in failed and len(failed) < 4:
                    failed |= {row["trial"]} if cli("fail", "s", str(row["trial"])).returncode == 0 else set()
        assert search.wait(120) == 0, (tmp_path / "log").read_text()
    finally:
        if search.poll() is None:
            search.send_signal(signal.SIGTERM)
            search.wait()
    said = (tmp_path / "log").read_text()
    assert "in the same way" not in said and "7 of 7 trials" in said
    assert json.loads(cli("status", "s", "--json").stdout)["counts"]["failed"] == len(failed) >= 3


@pytest.mark.heavy
def test_confirm_and_doctor_leave_what_a_person_put_beside(cli: Cli, tmp_path: Path) -> None:
    write_study(tmp_path, ONE.replace("trials = 1", "trials = 2"), "s.toml")
    theirs = [
        tmp_path / "runs/s.winner/notes.txt",
        tmp_path / "corpora/my-novel/train.txt",
        tmp_path / "runs/notes/paper.draft",
    ]
    for path in theirs:
        path.parent.mkdir(parents=True)
        path.write_text("mine")
        os.utime(path, (1, 1))
    here = {"LMSEARCH_CACHE": "."}
    assert cli("run", "s.toml", "--workers", "1", **here).returncode == 0
    shutil.rmtree(tmp_path / "runs/s/models")
    shutil.rmtree(tmp_path / "runs/s/best-model")
    said = cli("confirm", "s", "--top", "1", "--seeds", "1", "--workers", "1", **here)
    assert said.returncode == 0 and "are missing; it is trained again" in said.stderr, said.stderr
    metrics = json.loads((tmp_path / "runs/s/best-model/metrics.json").read_text())
    found = valid_perplexity(tmp_path / "runs/s/best-model", tmp_path / "corpus/valid.txt")
    assert found == pytest.approx(metrics["perplexity"], rel=5e-3)
    assert list((tmp_path / "runs/s/models").glob("*-again*")) == []
    (encoded,) = [path for path in (tmp_path / "corpora").iterdir() if len(path.name) == 32 and path.is_dir()]
    (encoded / "train.npy").write_bytes(b"damaged")
    looked = cli("doctor", **here)
    assert f"--repair would remove: {encoded}" in looked.stdout and encoded.exists()
    repaired = cli("doctor", "--repair", **here)
    assert repaired.returncode == 0 and f"to be removed: {encoded}" in repaired.stdout
    assert [path.read_text() for path in theirs] == ["mine"] * 3
