"""Rows 1, 2, 4, 12 to 15 and 21 of docs/reliability.md: workers that die, freeze, hang, diverge or fail."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from lmsearch.errors import SearchFailedError
from lmsearch.search.begin import begin
from lmsearch.search.budget import Request
from lmsearch.store.tables import DONE, OPEN, RUNNING
from tests.bureau import STUB, Bureau, alive, check_whole, ended, wait_for
from tests.factories import TINY_STUDY

LINES = [
    "after-claim",
    "mid-ask",
    "mid-epoch",
    "mid-checkpoint",
    "after-checkpoint",
    "mid-report",
    "after-report",
    "mid-tell",
    "after-tell",
]


@pytest.mark.parametrize("line", LINES)
def test_row_1_a_worker_killed_at_any_line_costs_at_most_its_epoch(bureau: Bureau, line: str) -> None:
    """I1 to I5; the parent sees the death at once: nobody waits for a lease of 30 s."""
    notices: list[str] = []
    before: dict[int, object] = {}
    words = ["--lease-seconds", "30"]
    for snapshot in bureau.search(1, words, die_at=line):
        notices += snapshot.notices
        now = ended(snapshot.record)
        assert before.items() <= now.items()  # I1
        before = now
    assert [notice for notice in notices if "died (signal 9); it is restarted" in notice] == notices
    assert len(notices) == 1
    check_whole(bureau.record())
    repeated = [step for steps in bureau.steps() for step, count in Counter(steps).items() if count > 1]
    assert len(repeated) <= 5  # an epoch has five steps
    if line in ("after-report", "mid-tell", "after-tell"):
        assert repeated == []  # a checkpoint had them
    assert list((bureau.folder / "runs/tiny/checkpoints").glob("*.checkpoint")) == []


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_row_1_fifty_kills_at_random_moments_over_eight_workers_lose_nothing(bureau: Bureau) -> None:
    spec = bureau.info.spec
    begin(bureau.storage, "tiny", spec, bureau.info.folder, bureau.corpus, Request(trials=220))
    rng, kills, notices = random.Random(4), 0, 0
    before: dict[int, object] = {}
    for snapshot in bureau.search(8, pause="0.15"):
        notices += sum("died (signal 9)" in notice for notice in snapshot.notices)
        now = ended(snapshot.record)
        assert before.items() <= now.items()  # I1
        before = now
        tickets = [ticket for ticket in snapshot.record.tickets if ticket.state == RUNNING and ticket.process]
        # One of several, and none a fourth time: after five deaths a trial rightly ends failed (row 21).
        running = [ticket.process for ticket in tickets if ticket.process and ticket.deaths < 3]
        for process in rng.sample(running, 1 if len(running) >= 4 else 0):
            if kills < 50 and alive(process):
                time.sleep(rng.random() * 0.2)
                os.kill(process, signal.SIGKILL)
                kills += 1
    assert kills == 50 and notices >= 45  # one that was leaving anyhow needs no successor
    check_whole(bureau.record())
    for steps in bureau.steps():
        assert set(steps) == set(range(1, 16))


@pytest.mark.heavy_on("postgresql")
def test_row_2_a_killed_parents_workers_leave_within_5_s_and_the_search_goes_on(bureau: Bureau) -> None:
    program = f"""
from pathlib import Path
from tests.bureau import Bureau
list(Bureau(Path({str(bureau.folder)!r}), {bureau.url!r}, trials=6).search(3, pause="0.3"))
"""
    environment = bureau.environment() | {"PYTHONPATH": str(STUB.parent.parent)}
    parent = subprocess.Popen([sys.executable, "-c", program], env=environment)
    wait_for(lambda: sum(ticket.state == RUNNING for ticket in bureau.tickets()) == 3)
    workers = [ticket.process for ticket in bureau.tickets() if ticket.process]
    parent.kill()
    parent.wait()
    wait_for(lambda: not any(alive(process) for process in workers), 5)  # no orphan
    assert RUNNING not in {ticket.state for ticket in bureau.tickets()}
    list(bureau.search(2))
    check_whole(bureau.record())
    assert all(steps == list(range(1, 16)) for steps in bureau.steps())


@pytest.mark.heavy_on("sqlite")
def test_row_4_a_frozen_worker_drops_its_result_leaves_the_others_files_and_takes_a_new_ticket(
    bureau: Bureau,
) -> None:
    frozen = bureau.start_worker(pause="0.2")
    wait_for(lambda: any(ticket.epoch for ticket in bureau.tickets()))
    frozen.send_signal(signal.SIGSTOP)
    second = bureau.start_worker(pause="0.2")
    wait_for(lambda: any(ticket.lease == 2 and ticket.epoch >= 2 for ticket in bureau.tickets()))
    (taken,) = [ticket for ticket in bureau.tickets() if ticket.lease == 2]
    files = {path.name for path in (bureau.folder / "runs/tiny/checkpoints").glob("*-l2.checkpoint")}
    frozen.send_signal(signal.SIGCONT)
    wait_for(lambda: "what was computed here for it is dropped" in bureau.said_by_hand())
    now = {path.name for path in (bureau.folder / "runs/tiny/checkpoints").glob(f"*-{taken.number}-*-l2.checkpoint")}
    done = {ticket.number for ticket in bureau.tickets() if ticket.state == DONE}
    assert files and (now or taken.number in done)  # the frozen one removed none of the other's
    # Of its own it keeps what it had reported, which is where the other one began, and drops what came after.
    reported = list((bureau.folder / "runs/tiny/checkpoints").glob(f"*-{taken.number}-*-l1.checkpoint"))
    assert all(path.name.split("-")[3] == "e1" for path in reported)
    assert (frozen.wait(timeout=60), second.wait(timeout=60)) == (0, 0)
    workers = {ticket.worker for ticket in bureau.tickets() if ticket.number != taken.number}
    assert len(workers) == 2  # it took a new ticket
    check_whole(bureau.record())


def test_row_4_a_frozen_child_does_not_keep_a_search_from_ending(
    sqlite_bureau: Bureau, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I4: what it held is done by another; once no trial is left it is ended."""
    monkeypatch.setattr("lmsearch.launch.supervise._LEAVING_SECONDS", 2.0)
    frozen: list[int] = []
    notices: list[str] = []
    for snapshot in sqlite_bureau.search(2, pause="0.1"):
        notices += snapshot.notices
        running = [t.process for t in snapshot.record.tickets if t.state == RUNNING and t.process and t.epoch]
        if running and not frozen:
            frozen.append(running[0])
            os.kill(running[0], signal.SIGSTOP)
    check_whole(sqlite_bureau.record())
    assert any("did not exit and is killed" in notice for notice in notices)
    assert not alive(frozen[0])


def test_row_12_out_of_memory_is_tried_once_more_alone_and_then_infeasible(bureau: Bureau) -> None:
    list(bureau.search(2, fault="memory"))
    record = bureau.record()
    assert record.done == record.total == len(record.trials) == 6
    for trial in record.trials:
        dropout = trial.params["model.output_dropout"]
        assert isinstance(dropout, float) and trial.ticket is not None
        assert trial.outcome == ("infeasible" if dropout > 0.25 else "complete")
        assert trial.ticket.attempts == (2 if dropout > 0.25 else 1)
    infeasible = [t for t in bureau.storage.get_all_trials(bureau.info.ref.id) if t.constraints]
    assert len(infeasible) == record.count("infeasible") > 0
    for stored in infeasible:
        assert stored.state.name == "PRUNED" and stored.constraints == {"memory": 1.0}
        assert stored.user_attrs["peak_memory"] > 1e7
        assert set(stored.params) == set(bureau.info.spec.open)  # TPE learns from where it was
    assert bureau.logs().count("it is retried alone on cpu") == len(infeasible)


@pytest.mark.heavy_on("postgresql")
def test_row_12_memory_that_suffices_alone_costs_nothing(bureau: Bureau) -> None:
    """I3: the trial that ran out of memory is resumed under its number."""
    list(bureau.search(3, fault="memory-once", pause="0.05"))
    check_whole(bureau.record())
    assert sorted(ticket.memory_failures for ticket in bureau.tickets()) == [0, 0, 0, 0, 0, 1]


def test_row_12_an_allocation_that_the_system_refuses_is_out_of_memory(sqlite_bureau: Bureau) -> None:
    list(sqlite_bureau.search(1, fault="allocate"))
    record = sqlite_bureau.record()
    assert record.count("infeasible") > 0 and record.count("failed") == 0
    assert record.count("infeasible") + record.count("complete") == 6


def test_row_12_a_worker_killed_by_the_kernel_for_memory_is_distinguished_from_another_kill(
    sqlite_bureau: Bureau,
) -> None:
    killed: set[int] = set()
    kills = {"kernel": 0, "hand": 0}
    notices: list[str] = []
    options = {"oom_kills": lambda: kills["kernel"]}
    # A step long enough that a trial is still at work when a busy machine looks at it again.
    for snapshot in sqlite_bureau.search(1, options=options, pause="0.3"):
        notices += snapshot.notices
        at_work = {t.process for t in snapshot.record.tickets if t.state == RUNNING and t.process and t.step}
        for process in at_work - killed if len(killed) < 3 else ():
            kills["kernel" if kills["hand"] else "hand"] += 1
            os.kill(process, signal.SIGKILL)
            killed.add(process)
    record = sqlite_bureau.record()
    assert [("died (signal 9)" in notice, "ran out of memory and was killed" in notice) for notice in notices] == [
        (True, False),
        (False, True),
        (False, True),
    ]
    assert record.count("infeasible") == 1 and record.count("complete") == 5
    (infeasible,) = [t for t in sqlite_bureau.storage.get_all_trials(sqlite_bureau.info.ref.id) if t.constraints]
    assert infeasible.user_attrs["peak_memory"] > 1e7


def test_row_12_a_kill_for_memory_of_somebody_elses_process_is_not_ours(
    sqlite_bureau: Bureau, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's count is of the whole control group: what no death of ours follows at once was another's."""
    monkeypatch.setattr("lmsearch.launch.local._OOM_SECONDS", 1.0)
    count, rose_at, killed = [0], [0.0], [0]
    notices: list[str] = []
    for snapshot in sqlite_bureau.search(1, options={"oom_kills": lambda: count[0]}, pause="0.2"):
        notices += snapshot.notices
        running = [t.process for t in snapshot.record.tickets if t.state == RUNNING and t.process and t.epoch]
        if running and not count[0]:
            count[0], rose_at[0] = 1, time.monotonic()
        elif running and not killed[0] and time.monotonic() - rose_at[0] > 2.5:
            killed[0] = running[0]
            os.kill(killed[0], signal.SIGKILL)
    assert killed[0] and ["died (signal 9)" in notice for notice in notices] == [True]
    check_whole(sqlite_bureau.record())
    assert {ticket.memory_failures for ticket in sqlite_bureau.tickets()} == {0}


@pytest.mark.parametrize("where", ["cgroup v2", "cgroup v1", "a container's own root", "nothing"])
def test_row_12_the_kernels_count_is_read_from_the_control_group(tmp_path: Path, where: str) -> None:
    from lmsearch.machine import count_oom_kills

    control, root = tmp_path / "cgroup", tmp_path / "sys"
    control.write_text("9:memory:/group\n0::/group\n" if where == "cgroup v1" else "0::/group\n")
    path = {
        "cgroup v2": root / "group" / "memory.events",
        "cgroup v1": root / "memory" / "group" / "memory.oom_control",
        "a container's own root": root / "memory.events",
        "nothing": root / "other",
    }[where]
    path.parent.mkdir(parents=True)
    path.write_text("low 0\nhigh 0\nmax 4\noom 3\noom_kill 2\n")
    assert count_oom_kills(control, root) == (0 if where == "nothing" else 2)
    assert count_oom_kills() >= 0


DIVERGING = TINY_STUDY.replace("trials = 3", "trials = 80").replace('"random"', '"tpe"')


def test_row_13_tpe_leaves_the_half_of_a_space_that_diverges(
    tmp_path: Path, prepared_sqlite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the range of the learning rate, on its scale, diverges: the share of diverged trials falls."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store.db").write_bytes(prepared_sqlite.read_bytes())
    bureau = Bureau(tmp_path, f"sqlite:///{tmp_path}/store.db", DIVERGING)
    list(bureau.search(1, fault="diverge"))  # one worker draws the same trials each time
    trials = bureau.record().trials
    diverged = [trial.outcome == "diverged" for trial in trials]
    for trial in trials:
        rate = trial.params["train.learning_rate"]
        assert isinstance(rate, float) and trial.reason == ("diverged" if rate > 0.01 else "")
        assert trial.curve == ({1: 14.0} if rate > 0.01 else trial.curve)  # V at its first epoch
    first, last = sum(diverged[:20]), sum(diverged[40:])
    print(f"diverged: {first} of the first 20 trials, {last} of the last 40")
    assert last / 40 < first / 20
    assert last < 10  # of 40 drawn at random half would, and fewer than 10 once in three thousand times


@pytest.mark.parametrize("limit", [2, 3])
def test_row_14_the_same_bug_in_every_trial_stops_the_search(sqlite_bureau: Bureau, limit: int) -> None:
    with pytest.raises(SearchFailedError, match=f"{limit} trials in a row failed in the same way") as error:
        words = ["--max-failures", str(limit)]
        list(sqlite_bureau.search(1, words, {"max_failures": limit}, fault="always"))
    assert str(error.value).count("Traceback (most recent call last)") == 1
    assert error.value.exit_code == 1
    assert limit <= sqlite_bureau.record().count("failed") <= limit + 1


@pytest.mark.heavy_on("sqlite")
@pytest.mark.parametrize("fault", ["hang-once", "hold-interpreter"])
def test_row_15_a_trial_that_hangs_once_is_ended_with_its_stack_and_tried_again(bureau: Bureau, fault: str) -> None:
    """Also where a library holds the interpreter, so that no thread of Python's runs."""
    notices: list[str] = []
    words = ["--stall", "2s", "--lease-seconds", "60"]  # else the lease runs out first where nothing renews it
    for snapshot in bureau.search(2, words, fault=fault):
        notices += snapshot.notices
    check_whole(bureau.record())
    said = bureau.logs()
    assert "_go_wrong" in said  # the stack names where it hung
    assert any("its trial made no progress" in notice for notice in notices)
    assert [t.stalls for t in bureau.tickets() if t.stalls] == [1]
    if fault == "hang-once":
        assert "no step for 2 s; the stack of each thread" in said


def test_row_15_a_trial_that_hangs_twice_is_failed_with_that_reason(sqlite_bureau: Bureau) -> None:
    list(sqlite_bureau.search(2, ["--stall", "1s"], {"max_failures": 7}, fault="hang"))
    record = sqlite_bureau.record()
    assert record.done == record.total == 6
    for trial in record.trials:
        dropout = trial.params["model.output_dropout"]
        assert isinstance(dropout, float)
        if dropout > 0.25:
            assert (trial.outcome, trial.reason) == ("failed", "it made no step for too long, 2 times")
        else:
            assert trial.outcome == "complete"
    assert record.count("failed") > 0


@pytest.mark.heavy_on("sqlite")
def test_row_21_a_poison_trial_ends_failed_after_five_deaths(bureau: Bureau) -> None:
    """I2 and I4: it answers its ticket, and the search ends. Giving back does not count."""
    with_poison = {"max_failures": 7}
    list(bureau.search(2, ["--max-failures", "7"], with_poison, fault="poison"))
    record = bureau.record()
    assert record.done == record.total == len(record.trials) == 6
    failed = [trial for trial in record.trials if trial.outcome == "failed"]
    assert failed and record.count("complete") == 6 - len(failed)
    for trial in failed:
        assert trial.reason == "its worker died 5 times in a row without a new checkpoint"
        assert trial.ticket is not None and trial.ticket.deaths == 5 and trial.ticket.attempts == 6


def reached(bureau: Bureau) -> set[tuple[int, int]]:
    """Give the running tickets that have an epoch behind them, each with how many."""
    return {(ticket.number, ticket.epoch) for ticket in bureau.tickets() if ticket.state == RUNNING and ticket.epoch}


def test_row_21_giving_back_and_a_new_checkpoint_do_not_count_as_deaths(sqlite_bureau: Bureau) -> None:
    for _ in range(3):
        worker = sqlite_bureau.start_worker(pause="0.3")
        wait_for(lambda: any(t.state == RUNNING and t.process for t in sqlite_bureau.tickets()))
        time.sleep(1)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=30) == 143
    assert {ticket.deaths for ticket in sqlite_bureau.tickets()} == {0}
    assert max(ticket.attempts for ticket in sqlite_bureau.tickets()) >= 2
    for _ in range(2):
        before = {(ticket.number, ticket.epoch) for ticket in sqlite_bureau.tickets()}
        worker = sqlite_bureau.start_worker(pause="0.1")
        wait_for(lambda before=before: reached(sqlite_bureau) - before)  # type: ignore[misc]
        worker.kill()
        worker.wait()
    assert max(ticket.deaths for ticket in sqlite_bureau.tickets()) <= 1
    list(sqlite_bureau.search(2))
    check_whole(sqlite_bureau.record())
    assert OPEN not in {ticket.state for ticket in sqlite_bureau.tickets()}
