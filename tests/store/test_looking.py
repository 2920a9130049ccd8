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
from tests.bureau import Bureau
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


@pytest.mark.heavy_on("postgresql")
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
    assert listed.returncode == 0 and f"{best.params['x']:.3g}" in listed.stdout.splitlines()[1], listed.stdout
    assert cli("show", study.study_name, "0", *store).returncode == 0
    refused = cli("best", study.study_name, *store)
    assert refused.returncode == 2 and "`lmsearch status`, `trials` and `report` show it" in refused.stderr
    two = optuna.create_study(storage=storage, study_name="two", directions=["minimize", "maximize"])
    two.add_trial(optuna.trial.create_trial(values=[1.0, 2.0]))
    said = cli("trials", "two", *store)
    assert said.returncode == 2 and "does not minimise one value" in said.stderr
    assert storage.get_all_trials(study._study_id) == before
    storage.engine.dispose()


@pytest.mark.slow
def test_a_database_of_plain_optuna_is_looked_at_reported_and_not_changed_by_a_byte(tmp_path: Path, cli: Cli) -> None:
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/theirs.db", study_name="theirs")

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -1, 1)
        for step in range(4):
            trial.report(x * x + 1 / (step + 1), step)
        return x * x + (trial.suggest_categorical("mode", ["a", "b"]) == "a") + 1

    study.optimize(objective, n_trials=12)
    (tmp_path / "other.db").touch()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    store = ("--storage", f"sqlite:///{tmp_path}/theirs.db")
    assert "theirs (of another program): 12 trials, 12 complete" in cli("studies", *store).stdout
    for words in (("status", "theirs"), ("trials", "theirs"), ("show", "theirs", "3")):
        said = cli(*words, *store)
        assert said.returncode == 0 and (words[0] == "trials" or "theirs" in said.stdout), said.stderr
    page = cli("report", "theirs", "--output", "-", *store)
    assert page.returncode == 0 and "Another program made this study with Optuna" in page.stdout, page.stderr
    assert 'id="importance"' in page.stdout and 'id="confirmation"' not in page.stdout
    assert cli("report", "theirs", "--format", "csv", *store).stdout.count("\n") == 13
    assert "was made by Optuna alone" in cli("doctor", *store).stdout
    for words in (("best", "theirs"), ("worker", "theirs"), ("enqueue", "theirs", "x=1"), ("status", "nope")):
        said = cli(*words, *store)
        assert said.returncode == 2 and said.stderr.count("\n") == 1, said.stderr
    said = cli("status", "theirs", "--storage", f"sqlite:///{tmp_path}/other.db")
    assert said.returncode == 2 and "was not made by lmsearch" in said.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix in (".db", ".lock")} == before


def test_results_in_a_folder_that_may_not_be_written_to_are_shown(
    tmp_path: Path, cli: Cli, sqlite_bureau: Bureau
) -> None:
    list(sqlite_bureau.search(2))
    sqlite_bureau.storage.engine.dispose()
    name, store = sqlite_bureau.info.ref.name, ("--storage", sqlite_bureau.url)
    folder = tmp_path / "elsewhere"
    (folder / "runs").mkdir(parents=True)
    with read_only(folder / "runs"):
        best = cli("best", name, *store, cwd=folder)
        assert best.returncode == 0 and "may not be written to" in best.stderr, best.stderr
        assert best.stdout.startswith("trial ")
        report = cli("report", name, "--output", str(tmp_path / "page.html"), *store, cwd=folder)
        assert report.returncode == 0 and "result files are not regenerated" in report.stderr, report.stderr
    assert (tmp_path / "page.html").stat().st_size > 100_000
