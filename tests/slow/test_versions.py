"""What four earlier commits wrote is looked at, resumed, reported and trained; see README.md in this folder."""

import json
import re
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from lmsearch.cli.main import main
from lmsearch.config import EARLIER_DEFAULTS, EarlierDefault
from lmsearch.errors import StoreError
from lmsearch.formats import FORMATS
from lmsearch.store.checkpoints import read_checkpoint
from lmsearch.store.opening import open_storage
from lmsearch.store.records import open_study
from lmsearch.store.schema import read_format
from lmsearch.store.tables import METADATA
from lmsearch.store.trials import read_study
from lmsearch.store.url import parse_url
from lmsearch.study.reading import load_study
from lmsearch.version import __version__
from tests.conftest import create_database, new_name

HERE = Path(__file__).parents[1] / "stores"
COMMITS = ("ae466cb", "18030ef", "86f8a58", "77935bd")
EVERY = pytest.mark.parametrize("old", [(c, d) for c in COMMITS for d in ("sqlite", "postgresql")], indirect=True)
_ENDS = [("ae466cb", "sqlite"), ("77935bd", "postgresql")]
ONE_EACH = pytest.mark.parametrize("old", _ENDS, indirect=True)
EVERY_SOME_HEAVY = pytest.mark.parametrize(
    "old",
    [pytest.param((c, d), marks=() if (c, d) in _ENDS else pytest.mark.heavy)
     for c in COMMITS for d in ("sqlite", "postgresql")],
    indirect=True,
)  # fmt: skip
LAST = pytest.mark.parametrize("old", [("77935bd", "sqlite")], indirect=True)
SAME = 1e-3  # of a perplexity: another kind of processor gives other last digits


@dataclass(frozen=True)
class Old:
    """An interrupted search of an earlier commit, unpacked in a folder of its own."""

    folder: Path
    url: str
    expected: dict[str, Any]
    interrupted: dict[str, Any]

    def say(self, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
        """Run a command in this process; give its exit code, and all that it said."""
        with pytest.raises(SystemExit) as ended:
            main(words)
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run a command in a process of its own."""
        command = [sys.executable, "-P", "-m", "lmsearch.cli.main", *words]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, timeout=240)

    def rows(self) -> dict[str, list[Any]]:
        """Give all rows of all tables, and the tables' columns."""
        engine = sa.create_engine(self.url.replace("postgresql:", "postgresql+psycopg:"), poolclass=sa.pool.NullPool)
        metadata = sa.MetaData()
        metadata.reflect(engine)
        found: dict[str, list[Any]] = {}
        with engine.connect() as connection:
            for name, table in sorted(metadata.tables.items()):
                rows = sorted(connection.execute(sa.select(table)).all(), key=repr)
                found[name] = [[column.name for column in table.columns], *rows]
        return found


@pytest.fixture
def old(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Old]:
    """Unpack what a commit wrote, on one database."""
    commit, database = request.param
    with tarfile.open(HERE / f"{commit}.tar.xz") as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / database
    url = f"sqlite:///{folder / 'runs/lmsearch.db'}"
    if database == "postgresql":
        server: str = request.getfixturevalue("postgres")
        create_database(server, name := new_name(), "template1")
        url = server.format(name)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute((folder / "store.sql").read_bytes())
    expected = json.loads((tmp_path / "expected.json").read_text())
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LMSEARCH_STORAGE", url)
    monkeypatch.setenv("LMSEARCH_CACHE", str(tmp_path / "cache"))
    yield Old(folder, url, expected, expected["interrupted"][database])


@EVERY
def test_who_only_looks_reads_an_old_store_as_it_is(old: Old, capsys: pytest.CaptureFixture[str]) -> None:
    before = old.rows()
    for words in (["status", "tiny"], ["studies"], ["trials", "tiny"], ["show", "tiny", "2"], ["compare", "tiny"]):
        code, said = old.say(capsys, *words)
        assert code == 0, said
    assert "2 of 4" in old.say(capsys, "status", "tiny")[1]
    code, said = old.say(capsys, "doctor")
    assert code == 1 and "the store is of format 1, which an earlier lmsearch wrote; with --repair: brought to" in said
    assert old.rows() == before


@EVERY
def test_whoever_writes_first_brings_an_old_store_to_todays_tables(old: Old) -> None:
    before = old.rows()
    storage = open_storage(parse_url(old.url), write=True)
    with storage.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_name": _is_ours})
        assert compare_metadata(context, METADATA) == []
        found = read_format(connection)
        assert found is not None and found.number == FORMATS["store"]
    after = old.rows()
    for table in ("lmsearch_ticket", "lmsearch_epoch"):  # columns may have been added
        head, *rows = before[table]
        new_head, *new_rows = after[table]
        kept = [[row[new_head.index(name)] for name in head] for row in new_rows]
        assert sorted(map(repr, kept)) == sorted(repr(list(row)) for row in rows)
    assert after["trials"] == before["trials"]
    info = open_study(storage, "tiny")
    assert (info.ref.key, info.home_id, info.defaults) == (old.interrupted["study_key"], info.ref.id, "0.1.0")
    storage.engine.dispose()


def _is_ours(name: str | None, kind: str, parents: Any) -> bool:
    return kind != "table" or (name in METADATA.tables)


@EVERY_SOME_HEAVY
def test_an_interrupted_search_goes_on_from_its_checkpoint_to_the_old_numbers(old: Old) -> None:
    before = read_study(storage := open_storage(parse_url(old.url)), open_study(storage, "tiny"), epochs=True)
    storage.engine.dispose()
    started = before.trials[old.interrupted["trial"]]
    assert len(started.epochs) == old.interrupted["epochs"]
    # As a move to another folder leaves them: the store names host and place where they lay.
    assert (old.folder / old.interrupted["checkpoint"]).is_file()
    ended = old.run("run", "tiny.toml", "--workers", "1", "--device", "cpu")
    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert "restored from a backup" not in ended.stderr
    logs = "".join(path.read_text() for path in (old.folder / "runs/tiny/logs").iterdir())
    assert "starts again" not in logs and "checksum" not in logs, logs
    record = read_study(storage := open_storage(parse_url(old.url)), open_study(storage, "tiny"), epochs=True)
    storage.engine.dispose()
    assert record.done == 4
    for trial, known in zip(record.trials, old.expected["trials"], strict=True):
        assert trial.params == pytest.approx(known["params"])
        assert list(trial.curve.values()) == pytest.approx(known["perplexities"], rel=SAME)
    # The epochs from before were not trained again: each took the very time that it took then.
    assert record.trials[started.number].epochs[: len(started.epochs)] == started.epochs
    assert record.trials[started.number].ended is not None
    assert list((old.folder / "runs/tiny/checkpoints").glob("*.checkpoint")) == []
    reported = old.run("report", "tiny")
    assert reported.returncode == 0 and (old.folder / "runs/tiny/report.html").is_file(), reported.stderr


@EVERY
def test_old_result_files_test_evaluate_and_train_to_the_old_perplexity(
    old: Old, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = old.say(capsys, "test", "tiny", "--json")
    assert code == 0 and json.loads(said.splitlines()[0])["look"] == 1, said
    code, said = old.say(capsys, "evaluate", "tiny", "--text", "corpus/valid.txt", "--json")
    best = old.interrupted["best"]["perplexity"]
    # The search evaluates in four columns, this command in one.
    assert code == 0 and json.loads(said)["perplexity"] == pytest.approx(best, rel=0.05), said
    code, said = old.say(capsys, "train", "runs/tiny/best-config.json", "--name", "again", "--device", "cpu", "--json")
    assert code == 0 and json.loads(said)["perplexity"] == pytest.approx(old.expected["train"]["perplexity"], rel=SAME)


@LAST
def test_an_old_training_goes_on_where_it_stopped(old: Old, capsys: pytest.CaptureFixture[str]) -> None:
    final = old.expected["final"]
    state = old.folder / "runs/final/seed-1.training"
    assert not state.read_bytes().startswith(b"lmsearch-")
    words = ["train", "runs/tiny/best-config.json", "--name", "final", "--epochs", str(len(final["perplexities"]))]
    code, said = old.say(capsys, *words, "--device", "cpu", "--resume")
    assert code == 0 and f"seed 1 resumes in epoch {final['epochs'] + 1}" in said, said
    (printed,) = re.findall(r"best perplexity (\S+) in epoch", said)
    assert float(printed) == pytest.approx(min(final["perplexities"]), rel=SAME)
    assert state.read_bytes().startswith(b"lmsearch-training-state-2 ")


@LAST
def test_an_old_config_that_lacks_a_setting_has_what_its_version_did(
    old: Old, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if 0.1.0 had kept words from their third occurrence on, and today's default were another."""
    monkeypatch.setitem(EARLIER_DEFAULTS, "data.min_count", (EarlierDefault(before="0.2.0", value=3),))
    info = open_study(storage := open_storage(parse_url(old.url), write=True), "tiny")
    storage.engine.dispose()
    assert "min_count" not in info.spec.text and info.spec.data.min_count == 3
    assert load_study(old.folder / "tiny.toml").data.min_count is None  # for a new study
    # The same file is no other space to the study that was started with it, and what is made from it says so.
    assert load_study(old.folder / "tiny.toml", info.defaults).data.min_count == 3
    assert "min_count = 3" in info.spec.text_from(old.folder)
    code, said = old.say(capsys, "plan", "tiny.toml", "--workers", "1", "--json")
    assert code == 0, said


@ONE_EACH
def test_workers_of_a_version_that_does_not_look_keep_a_store_from_being_migrated(old: Old) -> None:
    """A lease of this boot that has not run out: whoever holds it would go on writing into the changed tables."""
    storage = open_storage(parse_url(old.url))
    boot, now = storage.boot(), storage.clock()
    lease = "UPDATE lmsearch_ticket SET state = 'running', host = 'there', boot = :boot, expires = :expires"
    with storage.engine.begin() as connection:
        expires = connection.execute(sa.select(now)).scalar_one() + 30
        connection.execute(sa.text(f"{lease} WHERE number = 2"), {"boot": boot, "expires": expires})
    storage.engine.dispose()
    before = old.rows()
    with pytest.raises(StoreError, match="workers of that version are at work on there; stop them first"):
        open_storage(parse_url(old.url), write=True)
    assert old.rows() == before
    ended = old.run("run", "tiny.toml", "--workers", "1")
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1), ended.stderr


@LAST
def test_a_migration_that_is_killed_leaves_the_old_store(old: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    before = old.rows()
    path = old.folder / "runs/lmsearch.db"
    code = (
        "import os, sqlalchemy as sa; from lmsearch.store.opening import open_storage; "
        "from lmsearch.store.url import parse_url; "
        "sa.event.listen(sa.engine.Engine, 'before_cursor_execute', lambda c, k, s, *r: "
        "os.kill(os.getpid(), 9) if 'INSERT INTO lmsearch_format' in s else None); "
        f"open_storage(parse_url('sqlite:///{path}'), write=True)"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert killed.returncode == -9, killed.stderr
    assert old.rows() == before
    open_storage(parse_url(old.url), write=True).engine.dispose()
    assert old.rows()["lmsearch_format"][-1] == (FORMATS["store"], __version__)


@LAST
def test_an_old_checkpoint_of_another_training_is_not_taken_and_stays(old: Old) -> None:
    """As after restoring an old backup: the file is of the ticket's number, and its epochs are not the store's."""
    with sqlite3.connect(old.folder / "runs/lmsearch.db") as connection:
        connection.execute("UPDATE lmsearch_epoch SET valid_loss = valid_loss + 0.25 WHERE trial_number = 2")
    checkpoint = old.folder / old.interrupted["checkpoint"]
    content = checkpoint.read_bytes()
    assert read_checkpoint(checkpoint) is not None
    ended = old.run("run", "tiny.toml", "--workers", "1", "--device", "cpu")
    assert ended.returncode == 0, ended.stderr
    assert (
        "2 more files are newer than the store, or of other trainings under its numbers: the store was" in ended.stderr
    )
    logs = "".join(path.read_text() for path in (old.folder / "runs/tiny/logs").iterdir())
    assert f"{checkpoint.name}" in logs and "is of another training" in logs and "starts again" in logs
    assert checkpoint.read_bytes() == content
    record = read_study(storage := open_storage(parse_url(old.url)), open_study(storage, "tiny"))
    storage.engine.dispose()
    assert list(record.trials[2].curve.values()) == pytest.approx(old.expected["trials"][2]["perplexities"], rel=SAME)


def test_all_fixtures_together_are_small() -> None:
    archives = sorted(HERE.glob("*.tar.xz"))
    assert [path.name.partition(".")[0] for path in archives] == sorted(COMMITS)
    assert sum(path.stat().st_size for path in archives) < 500_000
