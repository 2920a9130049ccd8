"""The doctor: damage is reported, repaired where that loses nothing, and what is alive is left alone."""

import dataclasses
import importlib.metadata
import itertools
import json
import os
import shutil
import signal
import socket
import sqlite3
import time
import unittest.mock
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import psycopg
import pytest
import sqlalchemy as sa
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from lmsearch import machine
from lmsearch.care import devices, disk
from lmsearch.care.doctor import Options, examine
from lmsearch.care.findings import NOTE, OK, PROBLEM, REPAIRED, UNCHECKED, Finding
from lmsearch.folders import make_folder
from lmsearch.search.begin import begin
from lmsearch.search.budget import Request
from lmsearch.search.manage import fail
from lmsearch.store.belonging import config_digest
from lmsearch.store.checkpoints import Checkpoints
from lmsearch.store.opening import open_storage
from lmsearch.store.outages import WaitUpTo
from lmsearch.store.records import open_study
from lmsearch.store.tables import DONE, EPOCH, OPEN, RUNNING, TICKET
from lmsearch.store.tickets import Holder, claim
from lmsearch.store.url import parse_url
from tests.bureau import Bureau, check_whole, wait_for
from tests.conftest import Cli, create_database, new_name
from tests.factories import write_corpus
from tests.servers import Server
from tests.store.test_checkpoints import make_checkpoint, make_ticket

CACHE = "LMSEARCH_CACHE"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test encoded corpora of its own, to damage."""
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def doctor(folder: Path, url: str, repair: bool = True, **options: Any) -> list[Finding]:
    """Look at everything but the machine, which takes seconds and is the same each time."""
    fields: dict[str, Any] = {"patience": WaitUpTo(5), "expected": True, "command": " ".join}
    fields |= {"runs": folder / "runs", "cache": Path(os.environ[CACHE])} | options
    with unittest.mock.patch("lmsearch.care.doctor.check_devices", return_value=iter(())):
        findings = list(examine(Options(storage=parse_url(url), repair=repair, **fields)))
    return list(itertools.takewhile(lambda finding: finding.check != "versions", findings))


def texts(findings: list[Finding], *states: str) -> list[str]:
    return [finding.text for finding in findings if finding.state in (states or (PROBLEM, REPAIRED))]


def examined(bureau: Bureau, repair: bool = True) -> list[Finding]:
    return doctor(bureau.folder, bureau.url, repair)


def lease_of(bureau: Bureau) -> Any:
    (ticket,) = [ticket for ticket in bureau.tickets() if ticket.state == RUNNING]
    return ticket


def is_amid_a_trial(bureau: Bureau) -> bool:
    """Tell whether a trial has its first epoch behind it and two before it, which take 2 s at a pause of 0.2."""
    return any(ticket.state == RUNNING and ticket.epoch == 1 for ticket in bureau.tickets())


def start_and_wait_for_an_epoch(bureau: Bureau, pause: str = "0.2") -> Any:
    worker = bureau.start_worker(pause=pause)
    wait_for(lambda: is_amid_a_trial(bureau))
    return worker


def change_ticket(bureau: Bureau, number: int, **values: Any) -> None:
    with bureau.storage.engine.begin() as connection:
        connection.execute(sa.update(TICKET).where(TICKET.c.number == number).values(values))


def rows(bureau: Bureau) -> dict[str, list[Any]]:
    """Give all rows of our tables."""
    with bureau.storage.engine.connect() as connection:
        return {table.name: sorted(map(str, connection.execute(sa.select(*table.c)))) for table in (TICKET, EPOCH)}


# Leases.


def test_a_sound_store_has_nothing_to_repair_and_a_second_look_finds_the_same(bureau: Bureau) -> None:
    before = rows(bureau)
    findings = examined(bureau)
    assert {finding.state for finding in findings} == {OK}
    assert "tiny: 0 of 6 trials are done; no worker is running" in texts(findings, OK)
    assert [f.check for f in findings] == [f.check for f in examined(bureau)]
    assert rows(bureau) == before


def test_in_a_container_a_process_that_cannot_be_seen_is_not_taken_for_dead(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers may share a host name, and each numbers its own processes; on SQLite all are on this host."""
    name = new_name()
    create_database(postgres, name)
    monkeypatch.chdir(tmp_path)
    bureau = Bureau(tmp_path, postgres.format(name), trials=2)
    holder = Holder(worker="w", host=socket.gethostname(), process=2**22 + 1, device="cpu")  # a number that none has
    assert claim(bureau.storage, bureau.info.ref, holder) is not None
    change_ticket(bureau, 0, seen=0.0)
    monkeypatch.setattr("lmsearch.care.doctor._FIRST_NAMESPACE", "pid:[1]")
    assert texts(examined(bureau)) == [] and lease_of(bureau).worker == "w"
    monkeypatch.setattr("lmsearch.care.doctor._FIRST_NAMESPACE", Path("/proc/self/ns/pid").readlink().name)
    assert any("is gone: released" in text or "released" in text for text in texts(examined(bureau), REPAIRED))
    assert {ticket.state for ticket in bureau.tickets()} == {OPEN}


@pytest.mark.parametrize(("seconds", "said"), [(0, "is the server's to"), (3_000, "50m ahead"), (-90, "1m30s behind")])
def test_a_clock_that_is_not_the_servers_is_named(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch, seconds: int, said: str
) -> None:
    open_storage(parse_url(postgres_url), create=True).engine.dispose()
    now = time.time
    monkeypatch.setattr("lmsearch.care.doctor.time.time", lambda: now() + seconds)
    (found,) = [one for one in doctor(tmp_path, postgres_url) if "host's clock" in one.text]
    assert (found.state == OK) == (seconds == 0) and said in found.text


@pytest.mark.slow
@pytest.mark.heavy_on("sqlite")
def test_the_lease_of_a_live_worker_is_reported_and_left_alone(bureau: Bureau) -> None:
    worker = start_and_wait_for_an_epoch(bureau, pause="0.1")
    before = lease_of(bureau)
    findings = examined(bureau)
    assert texts(findings) == []
    (line,) = [text for text in texts(findings, OK) if "running: " in text]
    assert f"trial {before.trial_number} ({before.host}, process {worker.pid}, cpu, last seen 0 s ago)" in line
    assert worker.wait(timeout=60) == 0
    check_whole(bureau.record())
    assert {ticket.attempts for ticket in bureau.tickets()} == {1}  # nobody had to start anything again
    assert all(steps == list(range(1, 16)) for steps in bureau.steps())


@pytest.mark.slow
@pytest.mark.heavy_on("sqlite")
def test_what_a_killed_worker_held_is_released_and_resumes_from_its_checkpoint(bureau: Bureau) -> None:
    worker = start_and_wait_for_an_epoch(bureau)
    worker.kill()
    worker.wait()
    held = lease_of(bureau)
    wait_for(lambda: "not long since" not in "".join(texts(examined(bureau, repair=False))))
    (problem,) = texts(examined(bureau, repair=False))
    assert problem == (
        f"tiny: process {worker.pid} of this host, which held trial {held.trial_number}, is gone; "
        "with --repair: released, to resume from its last checkpoint"
    )
    assert lease_of(bureau) == held  # a dry run changes nothing
    (repaired,) = texts(examined(bureau))
    assert repaired.endswith("is gone; released, to resume from its last checkpoint")
    (ticket,) = [ticket for ticket in bureau.tickets() if ticket.number == held.number]
    assert ticket == dataclasses.replace(held, state=OPEN, expires=None, deaths=held.deaths + 1)
    assert texts(examined(bureau)) == []
    list(bureau.search(2))
    check_whole(bureau.record())  # lost: nothing but the epoch in progress
    again = [steps for steps in bureau.steps() if steps != list(range(1, 16))]
    assert all(len(steps) - len(set(steps)) < 5 for steps in again)


def test_a_worker_that_died_this_instant_is_left_until_it_has_been_silent(sqlite_bureau: Bureau) -> None:
    bureau = sqlite_bureau
    worker = bureau.start_worker("--lease-seconds", "60", pause="0.2")
    wait_for(lambda: is_amid_a_trial(bureau))
    worker.kill()
    worker.wait()
    held = lease_of(bureau)
    (problem,) = texts(examined(bureau))
    assert "is gone, not long since; run this again in" in problem
    assert lease_of(bureau) == held


@pytest.mark.slow
@pytest.mark.heavy_on("sqlite")
def test_a_frozen_worker_keeps_its_lease_though_it_ran_out(bureau: Bureau) -> None:
    worker = start_and_wait_for_an_epoch(bureau, pause="0.1")
    worker.send_signal(signal.SIGSTOP)
    held = lease_of(bureau)
    wait_for(lambda: "ran out" in "".join(texts(examined(bureau), NOTE)))
    findings = examined(bureau)
    assert texts(findings) == [] and lease_of(bureau) == held
    assert "the next free worker resumes it: lmsearch worker tiny" in texts(findings, NOTE)[0]
    worker.send_signal(signal.SIGCONT)
    assert worker.wait(timeout=60) == 0
    check_whole(bureau.record())


@pytest.mark.slow
@pytest.mark.heavy_on("sqlite")
def test_a_lease_whose_process_might_be_another_one_is_left_to_the_next_worker(bureau: Bureau) -> None:
    """A process number that is used again, another host, and an earlier boot prove nothing."""
    worker = start_and_wait_for_an_epoch(bureau)
    worker.kill()
    worker.wait()
    first = lease_of(bureau)
    for changed in ({"process": os.getpid()}, {"host": "elsewhere"}, {"boot": "an earlier one"}):
        change_ticket(bureau, first.number, **changed)
        held = lease_of(bureau)
        wait_for(lambda: "ran out" in "".join(texts(examined(bureau), NOTE)))
        assert texts(examined(bureau)) == [] and lease_of(bureau) == held
        change_ticket(bureau, first.number, process=first.process, host=first.host, boot=first.boot)
    list(bureau.search(2))
    check_whole(bureau.record())


@pytest.mark.heavy_on("sqlite")
def test_the_ticket_of_a_trial_that_was_ended_from_outside_is_closed(bureau: Bureau) -> None:
    worker = start_and_wait_for_an_epoch(bureau)
    worker.terminate()
    worker.wait()
    (waiting,) = [ticket for ticket in bureau.tickets() if ticket.state == OPEN and ticket.trial_id is not None]
    assert waiting.trial_id is not None
    plain = RDBStorage(bureau.url.replace("postgresql://", "postgresql+psycopg://"))
    plain.set_trial_state_values(waiting.trial_id, TrialState.FAIL)
    wrong = f"tiny: trial {waiting.trial_number} is ended from outside, with the ticket still open"
    assert texts(examined(bureau, repair=False), PROBLEM) == [f"{wrong}; with --repair: closed"]
    findings = examined(bureau)
    assert texts(findings)[0] == f"{wrong}; closed"
    assert " of ended trials take" in texts(findings)[1]
    list(bureau.search(2))
    record = bureau.record()
    assert (record.done, record.count("failed"), record.count("complete")) == (6, 1, 5)


@pytest.mark.heavy_on("postgresql")
def test_running_trials_of_other_programs_are_reported_and_ours_without_a_ticket_are_ended_by_hand(
    bureau: Bureau,
) -> None:
    plain = optuna.load_study(study_name="tiny", storage=bureau.storage)
    plain.ask()
    findings = examined(bureau)
    assert texts(findings) == []
    assert texts(findings, NOTE) == [
        "tiny: trial 0 is RUNNING without a ticket, for another program, which must end them itself"
    ]
    worker = start_and_wait_for_an_epoch(bureau)
    worker.terminate()
    worker.wait()
    (waiting,) = [ticket for ticket in bureau.tickets() if ticket.state == OPEN and ticket.trial_id is not None]
    change_ticket(bureau, waiting.number, state=DONE)
    (problem,) = [text for text in texts(examined(bureau, repair=False)) if "RUNNING" in text]
    number = waiting.trial_number
    assert problem == (
        f"tiny: trial {number} is RUNNING though its ticket is done; end it with: lmsearch fail tiny {number}"
    )
    fail(bureau.storage, "tiny", number or -1)
    assert [text for text in texts(examined(bureau)) if "RUNNING" in text] == []


# Rows of studies that are gone.


@pytest.mark.slow
@pytest.mark.heavy_on("sqlite")
def test_rows_of_a_deleted_study_are_removed_and_those_of_others_stay(bureau: Bureau) -> None:
    list(bureau.search(2))
    other = begin(bureau.storage, "other", bureau.info.spec, bureau.info.folder, bureau.corpus, Request(trials=4))
    optuna.delete_study(study_name="tiny", storage=bureau.storage)
    before = rows(bureau)
    wrong = "24 rows of tickets and epochs whose studies are gone"
    assert texts(examined(bureau, repair=False)) == [f"{wrong}; with --repair: removed"]
    assert rows(bureau) == before
    assert texts(examined(bureau)) == [f"{wrong}; removed"]
    kept = [row for row in before["lmsearch_ticket"] if other.ref.key in row]
    assert rows(bureau) == {"lmsearch_ticket": kept, "lmsearch_epoch": []} and len(kept) == 4
    assert texts(examined(bureau)) == []


@pytest.mark.heavy_on("postgresql")
def test_a_renamed_study_still_knows_what_it_has_left(bureau: Bureau) -> None:
    """A rename copies and deletes: the rows of the deleted one are all that tells which trials the copy has left."""
    storage = bureau.storage
    optuna.copy_study(from_study_name="tiny", from_storage=storage, to_storage=storage, to_study_name="renamed")
    optuna.delete_study(study_name="tiny", storage=storage)
    before = rows(bureau)
    findings = examined(bureau)
    assert texts(findings) == [] and rows(bureau) == before
    assert texts(findings, NOTE)[0].startswith("renamed was copied or renamed by another program")
    info = begin(storage, "renamed", bureau.info.spec, bureau.info.folder, bureau.corpus, Request())
    assert texts(examined(bureau)) == ["6 rows of tickets and epochs whose studies are gone; removed"]
    bureau.info = info
    assert len(bureau.tickets()) == 6


# Disk.


def age(path: Path, seconds: float = 7_200) -> None:
    for inner in (path, *path.rglob("*")):
        os.utime(inner, (time.time() - seconds,) * 2)


def test_drafts_that_nobody_has_touched_for_an_hour_are_removed(sqlite_bureau: Bureau) -> None:
    runs = sqlite_bureau.folder / "runs/tiny/checkpoints"
    key = "0" * 12
    models = sqlite_bureau.folder / f"runs/tiny/models/.{key}-trial-0-epoch-1-lease-1.0123abcd.draft"
    for folder in (runs, models.parent):
        make_folder(folder)
    models.mkdir()
    (models / ".config.json.0123abcd.draft").write_text("{")
    old, young = (runs / f".{key}-{n}-e1-s1-l1.checkpoint.0123abcd.draft" for n in (1, 2))
    theirs = [
        runs / "paper.draft",
        runs / ".notes.0123abcd.draft",
        sqlite_bureau.folder / "runs/mine/.best-model.0123abcd.draft",
    ]
    for path in theirs:  # of other people's: by the name, and by the folder
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"theirs")
        age(path)
    for path in (old, young):
        path.write_bytes(b"half")
    age(old)
    age(models)
    half_new = sqlite_bureau.folder / f"runs/tiny/models/.{key}-trial-1-epoch-1-lease-1.0123abcd.draft"
    half_new.mkdir()
    age(half_new)
    (half_new / "model.safetensors").write_bytes(b"being written")
    assert len(texts(examined(sqlite_bureau, repair=False))) == 1 and old.exists()
    findings = examined(sqlite_bureau)
    assert texts(findings) == ["2 drafts never finished; removed"]
    announced = [text for text in texts(findings, NOTE) if text.startswith("to be removed: ")]
    assert announced == [f"to be removed: {old}", f"to be removed: {models}"]
    assert all(path.exists() for path in theirs)
    assert (old.exists(), models.exists(), young.exists(), half_new.exists()) == (False, False, True, True)


@pytest.mark.parametrize("before", [".", ""])  # lmsearch 0.2.0 wrote no dot
def test_the_draft_of_a_corpus_that_is_being_encoded_is_left(cache: Path, before: str) -> None:
    import filelock

    make_folder(cache / "corpora")
    draft = cache / f"corpora/{before}{'0f' * 16}.0123abcd.draft"
    draft.mkdir()
    age(draft)
    with filelock.FileLock(cache / f"corpora/{'0f' * 16}.lock"):
        assert disk.forgotten_drafts(cache / "corpora") == []
    assert disk.forgotten_drafts(cache / "corpora") == [draft]


@pytest.mark.slow
def test_checkpoints_of_ended_trials_are_removed_and_those_to_resume_stay(sqlite_bureau: Bureau) -> None:
    bureau = sqlite_bureau
    worker = start_and_wait_for_an_epoch(bureau)
    wait_for(lambda: any(ticket.state == DONE for ticket in bureau.tickets()) and is_amid_a_trial(bureau))
    worker.terminate()
    worker.wait()
    folder = bureau.folder / "runs/tiny/checkpoints"
    needed = sorted(folder.glob("*.checkpoint"))
    assert needed
    done = next(ticket for ticket in bureau.tickets() if ticket.state == DONE)
    params = bureau.storage.get_trial(done.trial_id or 0).params
    of_done = dataclasses.replace(make_checkpoint(), digest=config_digest(bureau.info, params))
    left = Path(Checkpoints(folder, "here").save(done, 3, 15, of_done).partition(":")[2])
    foreign = Path(Checkpoints(folder, "here").save(make_ticket(), 3, 15, make_checkpoint()).partition(":")[2])
    assert [text for text in texts(examined(bureau, repair=False)) if "1 checkpoint of ended trials" in text]
    assert left.exists()
    (repaired,) = texts(findings := examined(bureau))
    assert repaired.startswith("tiny: 1 checkpoint of ended trials take") and repaired.endswith("; removed")
    assert sorted(folder.glob("*.checkpoint")) == sorted([*needed, foreign])
    notes = texts(findings, NOTE)
    assert notes[0] == f"to be removed: {left}"
    assert "of no study in this store; remove them if no other store has it" in notes[1]
    list(bureau.search(2))
    check_whole(bureau.record())


def test_a_damaged_checkpoint_is_named_and_the_trial_continues_without_it(sqlite_bureau: Bureau) -> None:
    bureau = sqlite_bureau
    worker = start_and_wait_for_an_epoch(bureau)
    worker.terminate()
    worker.wait()
    newest = max((bureau.folder / "runs/tiny/checkpoints").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    content = bytearray(newest.read_bytes())
    content[-2] ^= 1
    newest.write_bytes(content)
    (problem,) = texts(examined(bureau))
    assert f"the checksum of {newest} fails; it is never used" in problem
    list(bureau.search(2))
    check_whole(bureau.record())
    assert texts(examined(bureau)) == []


def test_checkpoints_that_lie_elsewhere_on_this_host_are_looked_at(sqlite_bureau: Bureau) -> None:
    shared = sqlite_bureau.folder / "shared"
    worker = sqlite_bureau.start_worker("--artifacts", str(shared), pause="0.2")
    wait_for(lambda: is_amid_a_trial(sqlite_bureau))
    worker.terminate()
    worker.wait()
    said = " ".join(texts(examined(sqlite_bureau), OK))
    assert f"{shared / 'tiny/checkpoints'} can be written to" in said and "of resumable trials" in said


def test_a_folder_without_room_or_without_permission_is_a_problem(tmp_path: Path) -> None:
    (full,) = disk.check_room([tmp_path], largest=10**15)
    assert (
        full.state == PROBLEM and "the largest checkpoint takes 1,000,000 GB, and a trial needs room for 3" in full.text
    )
    (closed,) = disk.check_room([Path("/proc")], largest=0)
    assert closed.state == PROBLEM and closed.text.startswith("/proc cannot be written to (")
    (absent,) = disk.check_room([tmp_path / "a/b"], largest=0)
    assert absent.state == OK and not (tmp_path / "a").exists()


# Corpora.


def test_a_damaged_corpus_is_removed_and_encoded_again(sqlite_bureau: Bureau, cache: Path) -> None:
    (folder,) = [path for path in (cache / "corpora").iterdir() if path.is_dir()]
    whole = (folder / "train.npy").read_bytes()
    (folder / "train.npy").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    dry = examined(sqlite_bureau, repair=False)
    assert texts(dry) == [
        f"the checksum fails of {folder}; with --repair: removed, and encoded again from the text if it is here"
    ]
    assert len(texts(dry, UNCHECKED)) == 1 and (folder / "train.npy").read_bytes() != whole
    findings = examined(sqlite_bureau)
    assert texts(findings) == [
        f"the checksum fails of {folder}; removed, and encoded again from the text if it is here"
    ]
    assert (folder / "train.npy").read_bytes() == whole
    assert any("corpus is here, fingerprint" in text for text in texts(findings, OK))


def test_a_text_that_is_another_or_missing_is_a_problem_while_trials_are_left(sqlite_bureau: Bureau) -> None:
    bureau = sqlite_bureau
    write_corpus(bureau.folder / "corpus", seed=1)
    (problem,) = texts(examined(bureau))
    assert f"fingerprint {bureau.info.fingerprint}; give the path of that text with: lmsearch worker tiny" in problem
    shutil.rmtree(bureau.folder / "corpus")
    (problem,) = texts(examined(bureau))
    assert problem.startswith("tiny: there is no corpus 'corpus'")
    change = sa.update(TICKET).values(state=DONE)
    with bureau.storage.engine.begin() as connection:
        connection.execute(change)
    findings = examined(bureau)
    assert texts(findings) == [] and "no trial is left, so no worker needs it" in texts(findings, NOTE)[0]


# The store.


def test_a_store_that_is_not_there_is_reported_with_how_to_begin(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/runs/none.db"
    for expected, state in ((True, PROBLEM), (False, NOTE)):
        first, *rest = doctor(tmp_path, url, expected=expected)
        assert (first.state, first.text) == (
            state,
            f"there is no store {tmp_path}/runs/none.db yet; start a study with: lmsearch run",
        )
        assert [f.check for f in rest if f.state == UNCHECKED] == ["connections", "leases", "corpora"]
    assert not (tmp_path / "runs").exists()


def test_a_file_that_is_no_store_is_a_problem_and_one_of_plain_optuna_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"this is no database" * 100)
    assert "file is not a database" in texts(doctor(tmp_path, f"sqlite:///{tmp_path}/x.db"))[0]
    RDBStorage(f"sqlite:///{tmp_path}/plain.db")
    found = list(doctor(tmp_path, f"sqlite:///{tmp_path}/plain.db"))
    assert any("was made by Optuna alone" in one.text and one.state == NOTE for one in found), found


def test_a_damaged_sqlite_file_is_reported_and_nothing_in_it_is_repaired(sqlite_bureau: Bureau) -> None:
    list(sqlite_bureau.search(2))
    sqlite_bureau.storage.engine.dispose()
    path = sqlite_bureau.folder / "store.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'ix_trials_study_id'").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(bytes(size))
    (problem, *_) = texts(doctor(sqlite_bureau.folder, sqlite_bureau.url))
    assert f"sqlite3 {path} .recover | sqlite3 recovered.db" in problem


def test_connections_are_counted_against_the_server_and_the_role(postgres: str, tmp_path: Path) -> None:
    name, role = new_name(), new_name()
    create_database(postgres, name)
    with psycopg.connect(postgres.format(name), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 2".encode())
        connection.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}".encode())
    url = postgres.format(name)
    (line,) = [f.text for f in doctor(tmp_path, url) if f.check == "connections"]
    assert "that the server's max_connections allows are in use" in line
    limited = url.replace("postgres@", f"{role}@")
    (line,) = [f.text for f in doctor(tmp_path, limited) if f.check == "connections"]
    assert line == (
        f"0 of 2 that the CONNECTION LIMIT of the role {role} allows are in use, 0 by lmsearch; 2 workers more can join"
    )
    worker = open_storage(parse_url(limited))
    (line,) = [f.text for f in doctor(tmp_path, limited) if f.check == "connections"]
    assert line.startswith("1 of 2 ") and line.endswith("in use, 1 by lmsearch; 1 worker more can join")
    worker.engine.dispose()


def test_a_server_without_a_free_connection_is_reported_with_what_to_raise(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = start_server(max_connections=6, superuser_reserved_connections=1)
    held = [psycopg.connect(server.url) for _ in range(5)]
    (finding,) = [f for f in doctor(tmp_path, server.url) if f.check == "connections"]
    assert finding.state == PROBLEM
    assert finding.text.startswith(
        "5 of 5 that the server's max_connections allows are in use, 0 by lmsearch; no worker"
    )
    held.append(psycopg.connect(server.url))
    findings = doctor(tmp_path, server.url, patience=WaitUpTo(0.5))
    assert "raise the server's max_connections, or start fewer workers" in texts(findings)[0]
    for connection in held:
        connection.close()
    server.stop()
    assert texts(doctor(tmp_path, server.url, patience=WaitUpTo(0.5)))[0].startswith("the store postgresql://postgres@")


def test_a_study_that_cannot_be_read_is_reported_and_the_others_are_looked_at(sqlite_bureau: Bureau) -> None:
    bureau = sqlite_bureau
    begin(bureau.storage, "other", bureau.info.spec, bureau.info.folder, bureau.corpus, Request(trials=4))
    stored = bureau.storage.get_study_user_attrs(bureau.info.ref.id)["lmsearch"]
    changed = stored | {"text": stored["text"].replace("format = 1", "format = 99")}
    bureau.storage.set_study_user_attr(bureau.info.ref.id, "lmsearch", changed)
    findings = examined(bureau)
    assert texts(findings)[0].startswith("tiny cannot be read, and its rows and files are left alone: ")
    assert "other: 0 of 4 trials are done; no worker is running" in texts(findings, OK)
    assert len(bureau.tickets()) == 6 and open_study(bureau.storage, "other").ref.name == "other"


# The machine.


def test_limits_of_a_control_group_are_found_in_both_versions(tmp_path: Path) -> None:
    control, root = tmp_path / "cgroup", tmp_path / "fs"
    control.write_text("0::/mine\n")
    assert (machine.cpu_limit(control, root), machine.memory_left(control, root)) == (None, None)
    second = root / "mine"
    second.mkdir(parents=True)
    for name, text in {"cpu.max": "150000 100000", "memory.max": "5000", "memory.current": "2000"}.items():
        (second / name).write_text(text + "\n")
    assert (machine.cpu_limit(control, root), machine.memory_left(control, root)) == (1.5, 3000)
    (second / "cpu.max").write_text("max 100000\n")
    (second / "memory.max").write_text("max\n")
    assert (machine.cpu_limit(control, root), machine.memory_left(control, root)) == (None, None)
    control.write_text("4:memory:/mine\n1:cpu,cpuacct:/mine\n")
    for file, text in {
        "cpu/cpu.cfs_quota_us": "200000",
        "cpu/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "memory/memory.usage_in_bytes": "1",
    }.items():
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_text(text + "\n")
    assert (machine.cpu_limit(control, root), machine.memory_left(control, root)) == (2.0, None)


def test_devices_are_reported_by_a_process_of_their_own() -> None:
    findings = list(devices.check_devices())
    assert len(findings) == 3 and findings[2].text.startswith(f"PyTorch {importlib.metadata.version('torch')} ")


def test_a_package_outside_its_range_is_a_problem_with_the_command_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    (sound,) = devices.check_versions()
    assert sound.state == OK and f"optuna {optuna.__version__}" in sound.text
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "4.9.0" if name == "optuna" else real(name))
    problem, shown = devices.check_versions()
    assert problem.state == PROBLEM and problem.text.startswith("optuna 4.9.0 is not <6,>=5.0, which lmsearch")
    assert problem.text.endswith("pip install 'optuna<6,>=5.0'") and "optuna 4.9.0" in shown.text


# The command.


def test_the_command_ends_with_0_where_nothing_is_left_wrong_and_else_with_1(cli: Cli, tmp_path: Path) -> None:
    fresh = cli("doctor")
    assert fresh.returncode == 0 and fresh.stdout.splitlines()[-1] == "nothing is wrong"
    assert all(len(line.split(maxsplit=2)) == 3 for line in fresh.stdout.splitlines()[:-1])
    assert not (tmp_path / "runs").exists()
    said = cli("doctor", "--json", "--storage", "sqlite:///none.db")
    document = json.loads(said.stdout)
    assert (said.returncode, document["problems"], document["repaired"]) == (1, 1, 0)
    assert document["checks"][0]["text"].startswith("there is no store")
    away = cli("doctor", "--storage", "postgresql://me:hunter2@127.0.0.1:1/db", "--store-timeout", "0.2s")
    assert away.returncode == 1 and "hunter2" not in away.stdout + away.stderr
    assert away.stdout.splitlines()[-1] == "1 problem is left"


@pytest.mark.slow
def test_the_command_says_what_it_repaired(sqlite_bureau: Bureau, cli: Cli) -> None:
    optuna.delete_study(study_name="tiny", storage=sqlite_bureau.storage)
    looked = cli("doctor", "--storage", sqlite_bureau.url)
    assert looked.returncode == 1 and "with --repair: removed" in looked.stdout
    assert cli("doctor", "--storage", sqlite_bureau.url).stdout.splitlines()[-1] == "1 problem is left"
    old = cli("doctor", "--dry-run", "--storage", sqlite_bureau.url)
    assert (old.returncode, old.stderr) == (
        2,
        "lmsearch: doctor changes nothing by itself, so --dry-run was removed; to repair, use: lmsearch doctor --repair\n",
    )
    said = cli("doctor", "--repair", "--storage", sqlite_bureau.url)
    assert said.returncode == 0 and said.stdout.splitlines()[-1] == "nothing is wrong, 1 repaired"
