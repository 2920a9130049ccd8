"""A store that may not be written to can be looked at, and is left as it is."""

import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest

from lmsearch.errors import StoreError
from lmsearch.store.opening import open_storage
from lmsearch.store.url import parse_url
from tests.conftest import Cli
from tests.factories import TINY_STUDY, write_corpus


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Mount a folder over itself so that nobody may write to it, root neither."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_colleagues_store_can_be_looked_at_and_not_changed(tmp_path: Path, cli: Cli) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    write_corpus(theirs / "corpus")
    (theirs / "tiny.toml").write_text(TINY_STUDY.replace("trials = 3", "trials = 1"))
    assert cli("run", "tiny.toml", "--workers", "1", cwd=theirs).returncode == 0
    (tmp_path / "mine").mkdir()
    store = ("--storage", f"sqlite:///{theirs}/runs/lmsearch.db")
    before = (theirs / "runs/lmsearch.db").read_bytes()
    with read_only(theirs):
        for words in (["studies"], ["trials", "tiny"]):
            said = cli(*words, *store, cwd=tmp_path / "mine")
            assert said.returncode == 0 and "Traceback" not in said.stderr, (words, said.stderr)
        assert "1 of 1 trials" in cli("status", "tiny", *store, cwd=tmp_path / "mine").stdout
        assert "notes and plots are not updated" in cli("report", "tiny", *store, cwd=tmp_path / "mine").stderr
        for words in (["stop", "tiny"], ["worker", "tiny"], ["run", str(theirs / "tiny.toml")]):
            said = cli(*words, *store, cwd=tmp_path / "mine")
            assert said.returncode == 2 and "read-only, or not yours to write" in said.stderr, (words, said.stderr)
        assert sorted(path.name for path in (theirs / "runs").iterdir() if "lmsearch.db" in path.name) == [
            path for path in ("lmsearch.db", "lmsearch.db.lock") if (theirs / "runs" / path).exists()
        ]
    assert (theirs / "runs/lmsearch.db").read_bytes() == before


def test_a_store_whose_newest_changes_cannot_be_read_is_not_half_shown(tmp_path: Path, prepared_sqlite: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    shutil.copy(prepared_sqlite, folder / "store.db")
    writer = sqlite3.connect(folder / "store.db")
    writer.execute("PRAGMA wal_autocheckpoint=0")
    writer.execute("CREATE TABLE newer (id integer)")
    writer.commit()
    (tmp_path / "copy").mkdir()
    for name in ("store.db", "store.db-wal"):  # as one who copied them without the index
        shutil.copy(folder / name, tmp_path / "copy" / name)
    writer.close()
    with read_only(tmp_path / "copy"), pytest.raises(StoreError, match="its newest changes are in store.db-wal"):
        open_storage(parse_url(f"sqlite:///{tmp_path}/copy/store.db"))


def test_a_study_of_plain_optuna_is_shown_and_nothing_of_it_is_touched(
    storage_url: str, tmp_path: Path, cli: Cli
) -> None:
    storage = open_storage(parse_url(storage_url))
    study = optuna.create_study(storage=storage, study_name="theirs \x1b[31m")

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -1, 1)
        mode = trial.suggest_categorical("mode", ["a", None, 3])
        trial.suggest_int("only", 2, 2)
        trial.report(x * x / 2, 0)
        if trial.number == 2:
            raise optuna.TrialPruned
        return x * x + (mode == "a")

    study.optimize(objective, n_trials=5)
    best = study.best_trial
    study.enqueue_trial({"x": 0.5})
    before = storage.get_all_trials(study._study_id)
    store = ("--storage", storage_url)
    status = cli("status", study.study_name, *store)
    assert status.returncode == 0 and "\x1b" not in status.stdout, status.stderr
    assert "(of another program): 6 trials, 4 complete, 1 pruned, 1 waiting" in status.stdout
    assert f"best {best.value:.2f} (trial {best.number})" in status.stdout
    listed = cli("trials", study.study_name, "--where", "outcome == complete", "--sort", "perplexity", *store)
    assert listed.returncode == 0 and f"{best.params['x']:.4g}" in listed.stdout.splitlines()[1], listed.stdout
    assert cli("show", study.study_name, "0", *store).returncode == 0
    refused = cli("report", study.study_name, *store)
    assert refused.returncode == 2 and "`lmsearch status` and `trials` show it" in refused.stderr
    two = optuna.create_study(storage=storage, study_name="two", directions=["minimize", "maximize"])
    two.add_trial(optuna.trial.create_trial(values=[1.0, 2.0]))
    said = cli("trials", "two", *store)
    assert said.returncode == 2 and "does not minimise one value" in said.stderr
    assert storage.get_all_trials(study._study_id) == before
    storage.engine.dispose()
