"""A SQLite store is backed up while it is written to, and its file is kept current."""

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from lmsearch.errors import StoreError
from lmsearch.store.backup import back_up, write_back
from lmsearch.store.opening import open_storage
from lmsearch.store.records import open_study
from lmsearch.store.tickets import list_tickets
from lmsearch.store.trials import read_study
from lmsearch.store.url import parse_url
from tests.bureau import Bureau, check_whole, wait_for
from tests.conftest import Cli
from tests.store.helpers import Bench


def tickets_in(path: Path) -> int:
    with sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True) as connection:
        return int(connection.execute("SELECT count(*) FROM lmsearch_ticket").fetchone()[0])


def test_a_backup_made_while_others_write_is_whole(tmp_path: Path, prepared_sqlite: Path) -> None:
    shutil.copy(prepared_sqlite, tmp_path / "store.db")
    url = f"sqlite:///{tmp_path / 'store.db'}"
    bench = Bench(url)
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], timeout=30)\n"
        "while True:\n"
        "    with c: c.execute('INSERT INTO study_user_attributes (study_id, key, value_json) '\n"
        '                      "SELECT 1, hex(randomblob(8)), hex(zeroblob(2000))")\n'
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "store.db")])
    try:
        wait_for((tmp_path / "store.db-wal").exists)
        for number in range(5):
            bench.queue(1)
            back_up(parse_url(url), tmp_path / f"backup-{number}.db")
    finally:
        writer.kill()
        writer.wait()
    for number in range(5):
        copy = tmp_path / f"backup-{number}.db"
        assert not copy.with_name(f"{copy.name}-wal").exists()  # one file is all
        assert tickets_in(copy) == number + 1
        opened = open_storage(parse_url(f"sqlite:///{copy}"))
        assert len(list_tickets(opened, bench.ref)) == number + 1
        opened.engine.dispose()
    assert not list(tmp_path.glob("*.draft"))


def test_a_file_that_is_there_is_not_replaced_and_a_missing_store_makes_none(tmp_path: Path, cli: Cli) -> None:
    said = cli("backup", "copy.db")
    assert said.returncode == 2 and "there is no store" in said.stderr and not (tmp_path / "copy.db").exists()
    (tmp_path / "runs").mkdir()
    open_storage(parse_url(f"sqlite:///{tmp_path}/runs/lmsearch.db"), create=True).engine.dispose()
    (tmp_path / "copy.db").write_text("mine")
    said = cli("backup", "copy.db")
    assert (said.returncode, said.stderr) == (2, "lmsearch: copy.db is there already; name another file\n")
    assert (tmp_path / "copy.db").read_text() == "mine"
    said = cli("backup", "deep/copy.db")
    assert (said.returncode, said.stdout) == (0, "deep/copy.db\n")


def test_postgresql_is_backed_up_by_its_own_program_and_no_password_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as error:
        back_up(parse_url("postgresql://me:hunter2@db.example/lm"), tmp_path / "x.dump")
    assert str(error.value) == (
        f"PostgreSQL backs itself up: pg_dump --format=custom --file={tmp_path / 'x.dump'} "
        "--dbname=postgresql://me@db.example/lm"
    )


def test_what_is_committed_outlives_a_power_cut(storage_url: str) -> None:
    """SQLite syncs each commit (FULL is 2): a trial's checkpoints go as soon as its end is committed."""
    storage = open_storage(parse_url(storage_url))
    with storage.engine.connect() as connection:
        if storage.engine.name == "sqlite":
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        else:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"


def test_the_file_alone_has_what_is_written_back(tmp_path: Path, prepared_sqlite: Path) -> None:
    shutil.copy(prepared_sqlite, tmp_path / "store.db")
    bench = Bench(f"sqlite:///{tmp_path / 'store.db'}")
    bench.queue(3)
    assert tickets_in(tmp_path / "store.db") == 0  # all of it lies in the write-ahead log
    write_back(bench.storage)
    assert tickets_in(tmp_path / "store.db") == 3
    with sqlite3.connect(tmp_path / "store.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        write_back(bench.storage)  # somebody writes: it is left to the next time, and nothing waits


def test_a_search_keeps_the_file_of_its_store_current(sqlite_bureau: Bureau, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmsearch.launch import supervise as launch

    monkeypatch.setattr(launch, "_WRITE_BACK", 0.5)
    seen = []
    for snapshot in sqlite_bureau.search(1, pause="0.1"):
        copy = sqlite_bureau.folder / "copy.db"
        # By another process, as a person does it: closing the file in this one would end the locks of its connection.
        subprocess.run(["cp", sqlite_bureau.folder / "store.db", copy], check=True)
        with sqlite3.connect(f"file:{copy}?mode=ro&immutable=1", uri=True) as connection:
            seen.append((connection.execute("SELECT count(*) FROM lmsearch_epoch").fetchone()[0], snapshot.record.done))
        if snapshot.record.done >= 3:
            sqlite_bureau.signals.received.append(15)
    assert max(epochs for epochs, _ in seen) >= 3


def test_a_restored_backup_goes_on(sqlite_bureau: Bureau) -> None:
    bureau = sqlite_bureau
    worker = bureau.start_worker(pause="0.1")
    wait_for(lambda: any(ticket.state == "done" for ticket in bureau.tickets()))
    back_up(parse_url(bureau.url), bureau.folder / "backup.db")
    worker.kill()
    worker.wait()
    bureau.storage.engine.dispose()
    for left in bureau.folder.glob("store.db*"):
        left.unlink()
    (bureau.folder / "backup.db").rename(bureau.folder / "store.db")
    bureau.storage = open_storage(parse_url(bureau.url))
    bureau.info = open_study(bureau.storage, "tiny")
    list(bureau.search(2))
    check_whole(read_study(bureau.storage, bureau.info, epochs=True))
