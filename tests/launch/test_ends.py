"""How a worker ended is data: a row of the store's table of workers, or a file beside the log where the store is away."""

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from lmsearch.errors import SearchFailedError, StoreGoneError
from lmsearch.launch.base import Exit, Placed
from lmsearch.launch.supervise import Signals, Supervisor
from lmsearch.store import workers
from lmsearch.store.workers import WorkerEnd, end_file, list_workers, read_end, write_end
from tests.bureau import Bureau, wait_for
from tests.conftest import Cli


@pytest.mark.heavy_on("sqlite")
def test_each_worker_stands_in_the_table_and_one_that_was_killed_has_no_end(bureau: Bureau) -> None:
    by_hand = bureau.start_worker(pause="0.2")
    wait_for(lambda: any(ticket.process == by_hand.pid for ticket in bureau.tickets()))
    by_hand.kill()
    by_hand.wait()
    list(bureau.search(2))
    killed, *others = list_workers(bureau.storage, bureau.info.ref)
    assert (killed.process, killed.launcher, killed.end, killed.ended) == (by_hand.pid, "", None, None)
    assert killed.joined <= killed.seen
    assert len(others) == 2 and {one.launcher for one in others} == {"local"}
    for one in others:
        assert one.end == WorkerEnd(exit_code=0, reason="finished") and one.ended is not None
        assert killed.joined < one.joined <= one.seen <= one.ended


@pytest.mark.heavy_on("postgresql")
def test_a_worker_that_is_stopped_or_sees_every_trial_fail_says_so(bureau: Bureau) -> None:
    by_hand = bureau.start_worker(pause="0.2")
    wait_for(lambda: any(ticket.epoch for ticket in bureau.tickets()))
    by_hand.send_signal(signal.SIGTERM)
    assert by_hand.wait(timeout=30) == 143
    with pytest.raises(SearchFailedError, match="3 trials in a row failed in the same way"):
        list(bureau.search(1, fault="always"))
    stopped, failed = list_workers(bureau.storage, bureau.info.ref)
    assert stopped.end == WorkerEnd(exit_code=143, reason="stopped")
    assert failed.end is not None
    assert (failed.exit_code, failed.reason) in ((1, "search failed"), (143, "stopped"))  # itself, or its parent, first
    if failed.reason == "search failed":
        assert "a bug in every trial" in failed.end.sentence


def test_the_end_of_a_worker_whose_store_is_away_is_a_file_and_ends_the_search_with_its_sentence(
    sqlite_bureau: Bureau,
) -> None:
    """No line of its log is read: this launcher's workers have none."""

    class Gone:
        """Places nothing; each of its workers is as one that waited for the store in vain."""

        kind = "gone"

        def __init__(self, logs: Path) -> None:
            self.logs = logs

        def start(self, devices: Sequence[str]) -> list[Placed]:
            return [self._start(workers.new_name()) for _ in devices]

        def find(self) -> list[Placed]:
            return []

        def _start(self, name: str) -> Placed:
            write_end(self.logs, name, WorkerEnd(exit_code=75, reason="store gone", sentence="the store is on holiday"))
            return Placed(name=name, log=self.logs / f"{name}.log")

        def look(self, placed: Placed) -> Exit | None:
            return Exit(code=75)

        def signal(self, placed: Placed, number: int) -> None:
            raise AssertionError("there is nobody to be signalled")

        def close(self, placed: Placed, wait: float) -> None:
            raise AssertionError("there is nobody to be waited for")

    supervisor = Supervisor(sqlite_bureau.storage, sqlite_bureau.info, Gone(sqlite_bureau.folder), Signals())
    with pytest.raises(StoreGoneError, match="^the store is on holiday$"):
        list(supervisor.run(["cpu"]))


def test_an_end_that_cannot_be_read_is_none(sqlite_bureau: Bureau) -> None:
    storage, study, logs = sqlite_bureau.storage, sqlite_bureau.info.ref, sqlite_bureau.folder
    assert read_end(storage, study, "w", logs) is None
    for damaged in ("", "[]", "{}", '{"exit_code": 75}'):
        end_file(logs, "w").write_text(damaged)
        assert read_end(storage, study, "w", logs) is None


@pytest.mark.heavy_on("postgresql")
def test_status_shows_who_has_no_trial(bureau: Bureau, cli: Cli) -> None:
    (only, *rest) = bureau.tickets()
    by_hand = bureau.start_worker(pause="1")
    wait_for(lambda: any(ticket.process == by_hand.pid for ticket in bureau.tickets()))
    with bureau.storage.transaction() as session:  # the others are not to be had now
        from lmsearch.store.tables import TICKET

        others = [ticket.number for ticket in (only, *rest) if not bureau.tickets()[ticket.number].process]
        session.execute(TICKET.delete().where(TICKET.c.number.in_(others)))
    idle = bureau.start_worker()
    wait_for(lambda: len(list_workers(bureau.storage, bureau.info.ref)) == 2)
    shown = cli("status", "tiny", LMSEARCH_STORAGE=bureau.url)
    assert f"idle: process {idle.pid} on {os.uname().nodename} (cpu)" in shown.stdout
    assert f"idle: process {by_hand.pid}" not in shown.stdout
    document = json.loads(cli("status", "tiny", "--json", LMSEARCH_STORAGE=bureau.url).stdout)
    assert [worker["process"] for worker in document["workers"]] == [by_hand.pid, idle.pid]
