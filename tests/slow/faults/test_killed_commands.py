"""Commands of more than one write, killed before each of them: the next command completes what they were to do."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from lmsearch.cli.main import main
from lmsearch.results.best import write_results
from lmsearch.results.reading import read
from lmsearch.search.confirm import begin_confirmation
from lmsearch.search.start import SearchRequest, prepare
from lmsearch.store.opening import open_storage
from lmsearch.store.records import StudyRecord, find_study, open_study
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import EPOCH, TICKET
from lmsearch.store.tickets import list_tickets
from lmsearch.store.trials import read_study
from lmsearch.store.url import parse_url
from tests.bureau import Bureau
from tests.factories import TINY_STUDY

ROOT = Path(__file__).parents[3]


@pytest.fixture
def work(sqlite_bureau: Bureau) -> Path:
    """Give a folder with a finished search of six trials, its store, its text and its results."""
    list(sqlite_bureau.search(2))
    write_results(read("tiny", sqlite_bureau.storage), sqlite_bureau.folder / "runs/tiny", "test")
    sqlite_bureau.storage.engine.dispose()
    folder = sqlite_bureau.folder / "work"
    folder.mkdir()
    shutil.copytree(sqlite_bureau.folder / "runs", folder / "runs")
    shutil.copy(sqlite_bureau.folder / "store.db", folder / "store.db")
    (folder / "wide.toml").write_text(
        TINY_STUDY.replace("high = 0.5", "high = 0.6").replace(
            'corpus = "corpus"', f'corpus = "{sqlite_bureau.folder}/corpus"'
        )
    )
    return folder


def killed(work: Path, *words: str) -> Iterator[Path]:
    """Run a command in copies of the folder, killed one effect later in each; enter one after the other."""
    environment = os.environ | {"LMSEARCH_STORAGE": "sqlite:///store.db", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.killer", str(work), *words]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    copies = sorted(work.parent.glob("work-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    assert len(copies) > 1, "it was never killed"
    for copy in copies:
        os.chdir(copy)
        yield copy


def opened(copy: Path) -> FencedStorage:
    return open_storage(parse_url(f"sqlite:///{copy / 'store.db'}"), write=True)


def record(storage: FencedStorage, name: str) -> StudyRecord:
    return read_study(storage, open_study(storage, name), epochs=True)


def prepare_again(study_file: str, copy: Path) -> None:
    """Do what `lmsearch run` does before its workers start."""
    prepare(SearchRequest(study_file=study_file), parse_url(f"sqlite:///{copy / 'store.db'}")).storage.engine.dispose()


def check_taken_over(storage: FencedStorage, name: str, tickets: int) -> None:
    old, new = record(storage, "tiny"), record(storage, name)
    assert len(new.tickets) == tickets
    assert {trial.origin_trial for trial in new.trials} == {f"tiny/{trial.number}" for trial in old.trials}
    assert len(new.trials) == len(old.trials) == 6  # each once
    by_origin = {trial.origin_trial: trial for trial in new.trials}
    for trial in old.trials:
        taken = by_origin[f"tiny/{trial.number}"]
        assert (taken.curve, taken.epochs) == (trial.curve, trial.epochs) and len(taken.epochs) == 3


@pytest.mark.heavy
def test_extend_killed_anywhere_is_completed_by_the_next_run_of_its_file(work: Path) -> None:
    words = ["extend", "tiny", "--set", "model.output_dropout.high=0.6", "--trials", "2", "--workers", "1"]
    started = 0
    for copy in killed(work, *words):
        if not (copy / "tiny-2.toml").exists():  # nothing is started: extend again
            storage = opened(copy)
            assert find_study(storage, "tiny-2") is None
            storage.engine.dispose()
            continue
        started += 1
        prepare_again("tiny-2.toml", copy)
        storage = opened(copy)
        check_taken_over(storage, "tiny-2", tickets=2)
        storage.engine.dispose()
    assert started > 6  # within the taking over too


def test_run_from_killed_anywhere_is_completed_by_the_next_run(work: Path) -> None:
    started = 0
    for copy in killed(work, "run", "wide.toml", "--from", "tiny", "--workers", "1"):
        storage = opened(copy)
        if find_study(storage, "wide") is not None:
            started += 1
            storage.engine.dispose()
            prepare_again("wide.toml", copy)
            storage = opened(copy)
            check_taken_over(storage, "wide", tickets=3)
        storage.engine.dispose()
    assert started > 6


def test_confirm_killed_anywhere_is_completed_by_the_next_confirm(work: Path) -> None:
    for copy in killed(work, "confirm", "tiny", "--top", "2", "--seeds", "2", "--workers", "1"):
        storage = opened(copy)
        assert read("tiny", storage).record.done == 6  # whatever is half done, the study can be read
        again = begin_confirmation(storage, "tiny", top=2, seeds=2)
        fixed = [ticket.fixed for ticket in list_tickets(storage, again.ref)]
        assert len(fixed) == 4 and len({repr(sorted(point.items())) for point in fixed}) == 4
        storage.engine.dispose()


@pytest.mark.parametrize(
    "words", [["enqueue", "tiny", "model.output_dropout=0.3"], ["retry", "tiny", "1"]], ids=lambda w: w[0]
)
def test_enqueue_and_retry_killed_anywhere_add_one_trial_or_none(work: Path, words: list[str]) -> None:
    counts = []
    for copy in killed(work, *words):
        storage = opened(copy)
        tickets = record(storage, "tiny").tickets
        counts.append(len(tickets))
        assert [ticket.number for ticket in tickets] == list(range(len(tickets)))
        storage.engine.dispose()
    assert set(counts) == {6, 7} and counts == sorted(counts)


@pytest.mark.heavy
def test_delete_killed_anywhere_is_completed_by_the_next_delete(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "runs/tiny/seed-1").mkdir()
    (work / "runs/tiny/seed-1/mine.txt").write_text("mine")
    halfway = 0
    for copy in killed(work, "delete", "tiny", "--yes"):
        storage = opened(copy)
        if find_study(storage, "tiny") is not None:
            halfway += not (copy / "runs/tiny/best-config.json").exists()
            storage.engine.dispose()
            with pytest.raises(SystemExit) as ended:
                main(["delete", "tiny", "--yes", "--storage", f"sqlite:///{copy / 'store.db'}"])
            assert ended.value.code == 0, capsys.readouterr().err
            storage = opened(copy)
        with storage.engine.connect() as connection:
            for table in ("studies", "trials", TICKET.name, EPOCH.name):
                assert connection.execute(sa.select(sa.func.count()).select_from(sa.table(table))).scalar() == 0
        storage.engine.dispose()
        left = sorted(str(path.relative_to(copy / "runs")) for path in (copy / "runs").rglob("*") if path.is_file())
        assert left == ["tiny/.lmsearch.json", "tiny/seed-1/mine.txt"]
    assert halfway > 3
