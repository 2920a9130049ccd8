"""Searches by real worker processes, which are killed, interrupted and joined. The trainer is a stub."""

import itertools
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from lmsearch.errors import LmsearchError, SearchFailedError
from lmsearch.search.begin import begin
from lmsearch.search.budget import Request
from lmsearch.store.tables import OPEN, RUNNING
from lmsearch.store.tickets import list_tickets
from tests.bureau import STUB, Bureau, alive, check_whole, wait_for
from tests.factories import write_corpus


def test_workers_share_a_study_until_it_owes_nothing(bureau: Bureau) -> None:
    last = list(bureau.search(3))[-1]
    check_whole(bureau.record())
    assert last.record.done == 6 and last.workers == 0 and last.notices == ()
    for trial in bureau.record().trials:
        dropout = trial.params["model.output_dropout"]
        assert isinstance(dropout, float)
        assert trial.epochs[2].valid_loss == 0.5 + dropout
    assert [steps for steps in bureau.steps() if steps != list(range(1, 16))] == []
    assert list((bureau.folder / "runs/tiny/checkpoints").glob("*.checkpoint")) == []
    assert len(list((bureau.folder / "runs/tiny/models").glob("*-trial-*"))) == 3  # the best three


def test_a_finished_study_run_again_trains_nothing(sqlite_bureau: Bureau) -> None:
    list(sqlite_bureau.search(2))
    before = sqlite_bureau.record()
    assert [snapshot.workers for snapshot in sqlite_bureau.search(2)] == [0]
    assert sqlite_bureau.record() == before


def test_killed_workers_lose_nothing_and_are_started_again(bureau: Bureau) -> None:
    rng = random.Random(1)
    kills, notices = 0, 0
    for snapshot in bureau.search(3, pause="0.1"):
        notices += len(snapshot.notices)
        running = [ticket for ticket in snapshot.record.tickets if ticket.state == RUNNING and ticket.process]
        if running and kills < 4:
            os.kill(rng.choice(running).process or 0, signal.SIGKILL)
            kills += 1
    assert kills == 4 and notices >= 3
    check_whole(bureau.record())
    for steps in bureau.steps():
        assert sorted(set(steps)) == list(range(1, 16))
        # What a checkpoint had is not computed again: at most the epoch in progress.
        repeated = [step for step, count in Counter(steps).items() if count > 1]
        assert len(repeated) <= 5 * kills
        for before, after in itertools.pairwise(steps):
            assert after > before - 5


@pytest.mark.parametrize(
    "number", [signal.SIGINT, *(pytest.param(one, marks=pytest.mark.heavy) for one in (signal.SIGTERM, signal.SIGHUP))]
)
def test_an_interrupted_search_goes_on_without_repeating_a_step(sqlite_bureau: Bureau, number: int) -> None:
    bureau = sqlite_bureau
    for snapshot in bureau.search(2, pause="0.3"):
        if any(trial.curve for trial in snapshot.record.trials) and not bureau.signals.received:
            bureau.signals.received.append(number)
    open_tickets = [t for t in list_tickets(bureau.storage, bureau.info.ref) if t.state == OPEN]
    waiting = {ticket.number for ticket in open_tickets if ticket.checkpoint}
    assert len(waiting) == 2
    assert bureau.record().count("waiting") == 2
    list(bureau.search(2))
    check_whole(bureau.record())
    assert all(steps == list(range(1, 16)) for steps in bureau.steps())
    assert {ticket.number for ticket in bureau.record().tickets if ticket.attempts == 2} == waiting


@pytest.mark.heavy_on("sqlite")
def test_a_hand_started_worker_joins_and_a_lost_one_is_replaced_when_its_lease_runs_out(bureau: Bureau) -> None:
    first = bureau.start_worker(pause="0.3")
    wait_for(lambda: any(ticket.epoch for ticket in list_tickets(bureau.storage, bureau.info.ref)))
    second = bureau.start_worker()
    first.kill()
    assert first.wait() == -9
    assert second.wait(timeout=60) == 0
    check_whole(bureau.record())
    log = (bureau.folder / "by-hand.log").read_text()
    assert log.count("joined tiny on cpu") == 2


@pytest.mark.heavy_on("sqlite")
def test_a_frozen_worker_drops_its_result_when_it_wakes(bureau: Bureau) -> None:
    frozen = bureau.start_worker(pause="0.2")
    wait_for(lambda: any(ticket.epoch for ticket in list_tickets(bureau.storage, bureau.info.ref)))
    frozen.send_signal(signal.SIGSTOP)
    second = bureau.start_worker()
    wait_for(lambda: any(ticket.lease == 2 for ticket in list_tickets(bureau.storage, bureau.info.ref)))
    frozen.send_signal(signal.SIGCONT)
    assert (frozen.wait(timeout=60), second.wait(timeout=60)) == (0, 0)
    check_whole(bureau.record())
    assert (
        "with another worker now; what was computed here for it is dropped"
        in (bureau.folder / "by-hand.log").read_text()
    )


@pytest.mark.heavy_on("sqlite")
def test_the_workers_of_a_killed_parent_save_and_leave(bureau: Bureau) -> None:
    program = f"""
import sys
from pathlib import Path
from tests.bureau import Bureau
list(Bureau(Path({str(bureau.folder)!r}), {bureau.url!r}, trials=6).search(2, pause="0.2"))
"""
    environment = bureau.environment() | {"PYTHONPATH": str(STUB.parent.parent)}
    parent = subprocess.Popen([sys.executable, "-c", program], env=environment)
    wait_for(lambda: any(ticket.epoch for ticket in list_tickets(bureau.storage, bureau.info.ref)))
    workers = [t.process for t in list_tickets(bureau.storage, bureau.info.ref) if t.process]
    parent.kill()
    parent.wait()
    wait_for(lambda: not any(alive(process) for process in workers), 5)
    tickets = list_tickets(bureau.storage, bureau.info.ref)
    assert RUNNING not in {ticket.state for ticket in tickets}
    assert any(ticket.checkpoint for ticket in tickets)
    list(bureau.search(2))
    check_whole(bureau.record())
    assert all(steps == list(range(1, 16)) for steps in bureau.steps())


def test_a_bug_in_every_trial_stops_the_search_and_is_reported_once(sqlite_bureau: Bureau) -> None:
    with pytest.raises(SearchFailedError) as error:
        list(sqlite_bureau.search(1, fault="always"))
    assert str(error.value).count("Traceback (most recent call last)") == 1
    assert "3 trials in a row failed in the same way" in str(error.value)
    record = sqlite_bureau.record()
    assert 3 <= record.count("failed") <= 4 and record.done < record.total
    assert all(trial.reason == "ValueError: a bug in every trial" for trial in record.trials)


@pytest.mark.slow
def test_a_worker_that_cannot_start_is_tried_five_times_more_and_ends_the_search(
    sqlite_bureau: Bureau, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_bureau, "command", lambda *args: [sys.executable, "-c", "raise SystemExit('no luck')"])
    notices: list[str] = []
    with pytest.raises(SearchFailedError, match=r"died 6 times before it had a trial; its log is .*\.log"):
        for snapshot in sqlite_bureau.search(1):
            notices += snapshot.notices
    assert sum("died (exit code 1); it is restarted" in notice for notice in notices) >= 4
    assert "no luck" in sqlite_bureau.logs()


def test_workers_without_a_folder_for_their_logs_work_all_the_same(
    sqlite_bureau: Bureau, caplog: pytest.LogCaptureFixture
) -> None:
    (sqlite_bureau.folder / "runs/tiny").mkdir(parents=True)
    (sqlite_bureau.folder / "runs/tiny/logs").write_text("a file where the folder should be")
    list(sqlite_bureau.search(2))
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 2 and all(sentence.startswith("a worker has no log: ") for sentence in warned)
    check_whole(sqlite_bureau.record())


def test_weights_of_ended_trials_that_a_killed_worker_left_are_swept(sqlite_bureau: Bureau) -> None:
    list(sqlite_bureau.search(1))
    models = sqlite_bureau.folder / "runs/tiny/models"
    kept = sorted(models.glob("*-trial-*"))
    key = sqlite_bureau.info.ref.key[:12]
    of_this_trial = next(path.name for path in kept).replace("-epoch-3-", "-epoch-2-")
    others = {"another-study-trial-0-epoch-1-lease-1", f"{key}-trial-0-{'0' * 12}-epoch-2-lease-1"}
    for left in (of_this_trial, *others):  # of other values under this trial's number: a copy of the store wrote it
        (models / left).mkdir()
    begin(
        sqlite_bureau.storage, "tiny", sqlite_bureau.info.spec, sqlite_bureau.info.folder, sqlite_bureau.corpus,
        Request(more=1),
    )  # fmt: skip
    list(sqlite_bureau.search(1))
    now = {path.name for path in models.glob("*-trial-*")}
    assert others < now and of_this_trial not in now and len(now) == len(kept) + 2


def test_a_bug_in_some_trials_costs_those_trials_only(sqlite_bureau: Bureau) -> None:
    list(sqlite_bureau.search(2, fault="sometimes"))
    record = sqlite_bureau.record()
    assert record.done == record.total == 6
    for trial in record.trials:
        dropout = trial.params["model.output_dropout"]
        assert trial.outcome == ("failed" if isinstance(dropout, float) and dropout > 0.25 else "complete")
    assert record.count("failed") and record.count("complete")


def test_a_worker_with_another_text_refuses_to_join_and_names_both_fingerprints(sqlite_bureau: Bureau) -> None:
    write_corpus(sqlite_bureau.folder / "corpus", seed=9)
    with pytest.raises(LmsearchError) as error:
        list(sqlite_bureau.search(1))
    assert sqlite_bureau.info.fingerprint in str(error.value) and "--corpus PATH" in str(error.value)
    assert str(error.value).count("fingerprint") == 2


def test_two_searches_at_once_run_each_ticket_once(bureau: Bureau) -> None:
    workers = [bureau.start_worker() for _ in range(2)]
    list(bureau.search(2))
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0]
    check_whole(bureau.record())
    assert all(steps == list(range(1, 16)) for steps in bureau.steps())


def test_a_time_budget_ends_claiming_saves_what_runs_and_exits_0(sqlite_bureau: Bureau) -> None:
    worker = sqlite_bureau.start_worker("--time-limit", "4s", pause="0.4")
    assert worker.wait(timeout=60) == 0
    record = sqlite_bureau.record()
    assert record.done < record.total and RUNNING not in {ticket.state for ticket in record.tickets}
    list(sqlite_bureau.search(2))
    check_whole(sqlite_bureau.record())


def test_a_password_reaches_no_log_file_error_or_command_line(
    tmp_path: Path, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.conftest import create_database, new_name

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tests.forks.shared", [])  # a fork has the command line of its server
    name = new_name()
    create_database(postgres, name)
    url = postgres.format(name).replace("postgres@", "postgres:hunter2@")
    bureau = Bureau(tmp_path, url, trials=4)
    lines: list[str] = []
    for snapshot in bureau.search(2, pause="0.05"):
        for ticket in snapshot.record.tickets:
            if ticket.state == RUNNING and ticket.process:
                lines.append(_command_line(ticket.process))
    assert any("stub.py" in line for line in lines)
    assert not any("hunter2" in line for line in lines)
    check_whole(bureau.record())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert not [path for path in files if b"hunter2" in path.read_bytes()]
    assert "hunter2" not in repr(bureau.record())


def _command_line(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text(encoding="utf-8")
    except OSError:
        return ""
