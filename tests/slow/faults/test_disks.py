"""Rows 9 to 11 of docs/reliability.md: files that are locked, read-only, foreign, full or damaged."""

import json
import os
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lmsearch.errors import StoreGoneError
from lmsearch.store.checkpoints import read_checkpoint
from lmsearch.store.tables import DONE
from tests.bureau import Bureau, check_whole, wait_for
from tests.conftest import Cli
from tests.factories import TINY_STUDY, write_study
from tests.servers import Server
from tests.slow.faults.conftest import Disk

MountDisk = Callable[[int], Disk]
ONCE = list(range(1, 16))  # the steps of a trial of the stub's


@pytest.mark.parametrize("seconds", [8, pytest.param(30, marks=pytest.mark.heavy)])
def test_row_9_a_locked_file_is_waited_for(sqlite_bureau: Bureau, seconds: int) -> None:
    """I2, I3 and I5; another process holds the write lock."""
    program = f"""
import sqlite3, sys, time
held = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
held.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
time.sleep({seconds})
"""
    locker: list[subprocess.Popen[bytes]] = []
    notices: list[str] = []
    for snapshot in sqlite_bureau.search(2, ["--lease-seconds", "5"], pause="0.1"):
        notices += snapshot.notices
        if not locker and any(ticket.epoch for ticket in snapshot.record.tickets):
            file = str(sqlite_bureau.folder / "store.db")
            locker.append(subprocess.Popen([sys.executable, "-c", program, file], stdout=subprocess.PIPE))
            assert locker[0].stdout is not None and locker[0].stdout.readline() == b"locked\n"
    assert locker[0].wait(timeout=60) == 0
    check_whole(sqlite_bureau.record())
    assert all(steps == ONCE for steps in sqlite_bureau.steps())
    assert {ticket.lease for ticket in sqlite_bureau.tickets()} == {1}
    assert len(notices) == 1 and "waiting for the store" in notices[0] and "database is locked" in notices[0]


def test_row_9_a_store_that_may_not_be_written_or_is_none_is_refused(
    cli: Cli, tmp_path: Path, mount_disk: MountDisk
) -> None:
    """I1: and the file stays as it is."""
    write_study(tmp_path)
    disk = mount_disk(20)
    store = disk.path / "store.db"
    assert cli("run", "tiny.toml", "--workers", "1", "--storage", f"sqlite:///{store}").returncode == 0
    for path in disk.path.glob("store.db-*"):
        path.unlink()
    before = store.read_bytes()
    disk.make_read_only()
    for words in (["run", "tiny.toml", "--more", "1"], ["worker", "tiny"], ["retry", "tiny", "0"]):
        said = cli(*words, "--storage", f"sqlite:///{store}", "--store-timeout", "2s")
        assert said.returncode == 2 and "Traceback" not in said.stderr, said.stderr
        assert "disk0 is read-only" in said.stderr
    assert store.read_bytes() == before
    (tmp_path / "not-a-store.db").write_text("this is a text about databases, and no database\n" * 100)
    for words in (["run", "tiny.toml"], ["status", "tiny"]):
        said = cli(*words, "--storage", "sqlite:///not-a-store.db")
        assert said.returncode == 2 and "file is not a database" in said.stderr
    assert "a text about" in (tmp_path / "not-a-store.db").read_text()


def test_row_9_a_store_of_a_newer_optuna_is_refused_with_the_upgrade(cli: Cli, tmp_path: Path) -> None:
    write_study(tmp_path)
    assert cli("run", "tiny.toml", "--workers", "1", "--quiet").returncode == 0
    with sqlite3.connect(tmp_path / "runs/lmsearch.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'v99.0.0.a'")
    for words in (["run", "tiny.toml", "--more", "1"], ["worker", "tiny"], ["status", "tiny"]):
        said = cli(*words)
        assert said.returncode == 2 and "upgrade Optuna with: pip install -U optuna" in said.stderr, said.stderr


def test_row_10_a_full_disk_costs_checkpoints_and_not_the_training(
    sqlite_bureau: Bureau, mount_disk: MountDisk
) -> None:
    """I2, I3; and a worker that is then killed is followed by one that goes on from the old file, which is whole."""
    disk = mount_disk(20)
    words = ["--artifacts", str(disk.path), "--lease-seconds", "2"]
    worker = sqlite_bureau.start_worker(*words, pause="0.3")
    files = disk.path / "tiny/checkpoints"
    wait_for(lambda: list(files.glob("*-e1-*.checkpoint")))
    disk.fill()
    (old,) = files.glob("*.checkpoint")
    wait_for(lambda: any(ticket.epoch == 2 for ticket in sqlite_bureau.tickets()))
    said = sqlite_bureau.said_by_hand()
    assert len(re.findall("No space left on device: .*; training continues without new checkpoints", said)) == 1
    assert list(files.glob("*.checkpoint")) == [old] and read_checkpoint(old) is not None
    worker.kill()
    worker.wait()
    second = sqlite_bureau.start_worker(*words, pause="0.05")
    wait_for(lambda: sum(ticket.state == DONE for ticket in sqlite_bureau.tickets()) >= 2)
    disk.free()
    assert second.wait(timeout=60) == 0
    check_whole(sqlite_bureau.record())
    restarted = [steps for steps in sqlite_bureau.steps() if steps != ONCE]
    assert len(restarted) == 1 and restarted[0].count(6) == 2 and restarted[0].count(5) == 1  # from the end of epoch 1
    assert not list(files.glob("*.checkpoint"))


def test_row_10_results_that_do_not_fit_are_reported_with_the_command_that_writes_them(
    cli: Cli, tmp_path: Path, mount_disk: MountDisk
) -> None:
    """I5; also nothing is said into logs that do not fit."""
    disk = mount_disk(20)
    write_study(tmp_path)
    disk.fill()
    store = f"sqlite:///{tmp_path}/store.db"
    words = ["run", str(tmp_path / "tiny.toml"), "--workers", "2", "--storage", store]
    said = cli(*words, cwd=disk.path)
    assert said.returncode == 75, said.stderr
    assert "the results cannot be written" in said.stderr and "Traceback" not in said.stderr
    assert f"nothing is lost, write them again with: lmsearch best tiny --storage {store}" in said.stderr
    status = json.loads(cli("status", "tiny", "--json", "--storage", store).stdout)
    assert status["counts"]["complete"] == 3
    refused = cli("best", "tiny", "--storage", store, cwd=disk.path)
    assert refused.returncode == 75 and "No space left on device" in refused.stderr
    disk.free()
    assert cli("best", "tiny", "--storage", store, cwd=disk.path).returncode == 0
    config = json.loads((disk.path / "runs/tiny/best-config.json").read_text())
    assert config["result"]["perplexity"] == status["best"]["perplexity"]


def test_row_10_a_cache_that_does_not_fit_is_reported(cli: Cli, tmp_path: Path, mount_disk: MountDisk) -> None:
    disk = mount_disk(20)
    write_study(tmp_path)
    (disk.path / "corpora").mkdir()
    disk.fill()
    said = cli("run", "tiny.toml", LMSEARCH_CACHE=str(disk.path))
    assert said.returncode == 2 and "name another folder in LMSEARCH_CACHE" in said.stderr
    assert "Traceback" not in said.stderr and not (tmp_path / "runs").exists()


@pytest.fixture
def disk_bureau(
    tmp_path: Path, prepared_sqlite: Path, mount_disk: MountDisk, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Bureau, Disk]]:
    """Give a bureau whose store alone lies on a disk of its own."""
    monkeypatch.chdir(tmp_path)
    disk = mount_disk(20)
    shutil.copy(prepared_sqlite, disk.path / "store.db")
    opened = Bureau(tmp_path, f"sqlite:///{disk.path}/store.db", trials=6)
    yield opened, disk
    opened.close()
    opened.storage.engine.dispose()


def test_row_10_a_full_sqlite_file_is_waited_for(disk_bureau: tuple[Bureau, Disk]) -> None:
    """I1 to I5."""
    bureau, disk = disk_bureau
    notices: list[str] = []
    filled = False
    for snapshot in bureau.search(2, ["--lease-seconds", "5"], pause="0.1"):
        notices += snapshot.notices
        if not filled and any(ticket.epoch for ticket in snapshot.record.tickets):
            filled = True
            disk.fill()
            threading.Timer(6, disk.free).start()
    check_whole(bureau.record())
    assert not any("died" in notice for notice in notices)
    assert "waiting for the store" in bureau.logs() and "disk is full" in bureau.logs()
    assert all(steps == ONCE for steps in bureau.steps())


def test_row_10_a_sqlite_file_that_stays_full_is_a_store_gone(disk_bureau: tuple[Bureau, Disk]) -> None:
    """As row 7: exit 75, and it goes on once there is space."""
    bureau, disk = disk_bureau
    with pytest.raises(StoreGoneError):
        for snapshot in bureau.search(2, ["--store-timeout", "2s"], {"store_timeout": 2.0}, pause="0.1"):
            if any(ticket.epoch for ticket in snapshot.record.tickets):
                disk.fill()
    assert "disk is full" in bureau.logs()
    disk.free()
    list(bureau.search(2))
    check_whole(bureau.record())


def test_row_10_a_full_data_folder_of_postgresql_is_waited_for(
    tmp_path: Path,
    mount_disk: MountDisk,
    start_server: Callable[..., Server],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """I1 to I5; where the server itself ends for it, it is started again once there is space."""
    monkeypatch.chdir(tmp_path)
    disk = mount_disk(200)
    server = start_server(disk.path / "data")
    bureau = Bureau(tmp_path, server.url, TINY_STUDY.replace("trials = 3", "trials = 40"))
    filled = threading.Event()

    def fill_and_free() -> None:
        filled.wait()
        disk.fill()
        wait_for(lambda: not server.runs() or "No space left" in bureau.logs(), 60)
        print("the server", "refused writes" if server.runs() else "ended")
        time.sleep(3)
        disk.free()
        if not server.runs():
            server.start()

    keeper = threading.Thread(target=fill_and_free)
    keeper.start()
    notices: list[str] = []
    for snapshot in bureau.search(3, ["--lease-seconds", "5"], pause="0.05"):
        notices += snapshot.notices
        if snapshot.record.done >= 3:
            filled.set()
    keeper.join()
    check_whole(bureau.record())
    assert not any("died" in notice for notice in notices)
    assert "waiting for the store" in bureau.logs()
    assert all(steps == ONCE for steps in bureau.steps())


@pytest.mark.heavy_on("postgresql")
@pytest.mark.parametrize("damage", ["a byte", "cut short", "both files"])
def test_row_11_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(bureau: Bureau, damage: str) -> None:
    """I3: what it has to compute again comes out the same."""
    worker = bureau.start_worker(pause="0.2")
    wait_for(lambda: any(ticket.epoch == 2 for ticket in bureau.tickets()))
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=30) == 143
    files = sorted((bureau.folder / "runs/tiny/checkpoints").glob("*.checkpoint"))
    assert len(files) == 2
    for path in files if damage == "both files" else files[1:]:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content[: len(content) // 2] if damage == "cut short" else content)
    second = bureau.start_worker()
    assert second.wait(timeout=60) == 0
    said = bureau.said_by_hand()
    if damage == "both files":
        assert f"the checksum of {files[1].name} and of {files[0].name} fails, so it is not used" in said
        assert "starts again with the same values" in said
    else:
        assert f"the checksum of {files[1].name} fails, so it is not used" in said
        assert "starts again" not in said
    check_whole(bureau.record())


@pytest.mark.parametrize("damage", ["a byte", pytest.param("cut short", marks=pytest.mark.heavy)])
@pytest.mark.parametrize("name", ["train.npy", pytest.param("valid.npy", marks=pytest.mark.heavy), "meta.json"])
def test_row_11_a_damaged_cache_is_made_again(cli: Cli, tmp_path: Path, damage: str, name: str) -> None:
    """The search that follows finds the same to the last bit."""
    write_study(tmp_path)
    cache = {"LMSEARCH_CACHE": str(tmp_path / "cache")}
    assert cli("run", "tiny.toml", "--workers", "1", "--quiet", **cache).returncode == 0
    (path,) = (tmp_path / "cache/corpora").glob(f"*/{name}")
    whole = path.read_bytes()
    path.write_bytes(whole[:-3] if damage == "cut short" else whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    said = cli("run", "tiny.toml", "--workers", "1", "--quiet", "--name", "again", **cache)
    assert said.returncode == 0, said.stderr
    assert path.read_bytes() == whole
    bests = [json.loads(cli("best", study, "--json", **cache).stdout)["result"] for study in ("tiny", "again")]
    assert bests[0]["curve"] == bests[1]["curve"]


def test_files_follow_the_umask_and_hold_no_secret(cli: Cli, tmp_path: Path, postgres_url: str) -> None:
    write_study(tmp_path)
    secret = "s3cret-of-the-store"
    url = postgres_url.replace("postgres@", f"postgres:{secret}@")  # the test server asks for none
    command = [sys.executable, "-m", "lmsearch.cli.main", "run", "tiny.toml", "--workers", "1"]
    old = os.umask(0o077)
    try:
        said = subprocess.run(
            command,
            cwd=tmp_path,
            env=dict(os.environ) | {"LMSEARCH_STORAGE": url, "LMSEARCH_CACHE": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    finally:
        os.umask(old)
    assert said.returncode == 0, said.stderr
    assert secret not in said.stdout + said.stderr
    made = [path for folder in ("runs", "cache") for path in (tmp_path / folder).rglob("*")]
    assert len(made) > 10
    for path in made:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
        assert path.is_dir() or secret.encode() not in path.read_bytes()


def test_nothing_of_ours_unpickles() -> None:
    """Checkpoints, weights and caches are read by safetensors, json and numpy without pickles.

    Only a corpus of arrays may be unpickled, where a person says so: tests/quick/test_readers.py.
    """
    package = Path(__file__).parents[3] / "lmsearch"
    arrays = (package / "text/arrays.py").read_text()
    assert arrays.count("np.load(") == arrays.count("allow_pickle=allow_pickle") == 1
    sources = "".join(path.read_text() for path in package.rglob("*.py") if path.name != "arrays.py")
    assert not re.search(r"import pickle|(?<!safetensors\.)torch\.load|joblib|yaml\.load", sources)
    assert sources.count("np.load(") == sources.count("allow_pickle=False") > 0
