"""A search disturbed on purpose: workers and parents killed, frozen and stopped, the store cut off, at random.

It runs in a throw-away study and a folder of its own. Only processes and connections of its own search are touched:
before a PostgreSQL it puts a proxy, which alone fails. On a cluster its workers are reached through the launcher, and
the store is left alone: no node could reach a proxy on this host.
"""

import contextlib
import logging
import os
import random
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmsearch.chaos.invariants import (
    Invariant,
    Watch,
    curves_are_undisturbed,
    doubled,
    each_answered_once,
    ended_by_itself,
    ends_are_explained,
    epochs_trained_twice,
    nothing_lost,
    tracebacks,
)
from lmsearch.chaos.proxy import Mode, Proxy, server_address
from lmsearch.chaos.study import write_inputs
from lmsearch.errors import StudyError
from lmsearch.folders import LOGS
from lmsearch.launch.base import Launcher
from lmsearch.launch.search import reach
from lmsearch.machine import is_running
from lmsearch.processes import python
from lmsearch.search.manage import delete
from lmsearch.search.placement import Placement
from lmsearch.store import url as urls
from lmsearch.store.artifacts import Artifacts
from lmsearch.store.records import StudyInfo, StudyRecord, find_study
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import Ticket
from lmsearch.store.tickets import ask_to_stop, leases
from lmsearch.store.trials import StudyReader
from lmsearch.store.workers import end_file, list_workers

_log = logging.getLogger(__name__)

_LEASE_SECONDS = 5.0
_ORPHAN_SECONDS = 15.0  # for workers to be gone when their parent is killed: they notice at once, and end under load
_LOCK_SECONDS = 30.0  # of SQLite's write lock
_LAST_SECONDS = 300.0  # for the search to end once nobody disturbs it
_LOOK_SECONDS = 0.25
_ANSWER_SECONDS = 5.0  # for an engine to say which of its workers this is
_TRIALS_A_WORKER = 3  # queued at a time; more are queued until the time is over


@dataclass(frozen=True, kw_only=True)
class ChaosOptions:
    """What is disturbed, for how long, and by which draw."""

    storage: FencedStorage  # straight to the store, past the proxy
    folder: Path  # of its own; what it needs is written there
    minutes: float
    seed: int
    workers: int
    placement: Placement = field(default_factory=Placement)
    artifacts: Artifacts | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was done to the search, and what it did."""

    faults: dict[str, int]
    invariants: tuple[Invariant, ...]
    trials: int
    lost: int
    doubled: int
    trained_twice: int
    unexplained: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether every promise was kept."""
        return not any(invariant.broken for invariant in self.invariants) and self.trained_twice == 0


@dataclass
class _Run:
    """One `lmsearch run` while it lives."""

    process: "subprocess.Popen[bytes]"
    log: Path
    expected_exits: set[int] = field(default_factory=set)  # exit codes that it may end with for what was done to it


class Chaos:
    """One disturbed search."""

    def __init__(self, options: ChaosOptions) -> None:
        self._options = options
        self._storage = options.storage
        self._random = random.Random(options.seed)
        self.name = f"chaos-{options.seed}-{os.getpid()}"
        self._began = time.monotonic()
        self._watch = Watch()
        self._faults: Counter[str] = Counter()
        self._ends: list[str] = []
        self._unexplained: list[str] = []
        self._kills = 0  # of workers
        self._hasty: set[int] = set()  # processes of searches that were told twice to end
        self._run: _Run | None = None
        self._threads: list[threading.Thread] = []
        self._store_free_at = 0.0  # monotonic: until then the store is left alone
        self._calm_at = 0.0  # monotonic: when all that was done so far is undone
        self._reader: StudyReader | None = None
        self._over = threading.Event()
        self._launcher: Launcher[Any] | None = None  # of a cluster
        url = options.storage.store_url
        here = not options.placement.is_cluster and url.get_backend_name() != "sqlite"
        self._proxy = Proxy(server_address(url)) if here else None
        self._url = url if self._proxy is None else self._proxy.url(url)
        write_inputs(options.folder, _TRIALS_A_WORKER * options.workers)

    # The whole of it.

    def disturb(self) -> Outcome:
        """Disturb the search until the time is over, let it end, and count."""
        until = self._began + 60 * self._options.minutes
        next_fault = self._began + 3.0
        more = False
        while time.monotonic() < until:
            if self._run is None:
                self._run = self._start(more)
                more = False
            if self._ended():
                more = True
            self._look()
            if time.monotonic() >= next_fault and self._run is not None and self._workers():
                self._do_harm()
                next_fault = time.monotonic() + self._random.uniform(2.0, 6.0)
            time.sleep(_LOOK_SECONDS)
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._calm_store()
        last = time.monotonic()
        in_time = self._let_it_end()
        return self._count(in_time, time.monotonic() - last)

    def close(self, keep_files: bool) -> None:
        """Leave nothing behind: no process, no connection, no study. Raises `StudyError` where it is still at work."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._calm_store()
        if self._run is not None:
            _signal(self._run.process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._run.process.wait(60)
            self._run.process.kill()
            self._run.process.wait()
        if self._proxy is not None:
            self._proxy.close()
        info = find_study(self._storage, self.name)
        if info is not None:
            self._let_all_leave(info)
            folder = None if keep_files else self._options.folder / "runs" / self.name
            delete(self._storage, self.name, folder, self._options.artifacts)

    def _let_all_leave(self, info: StudyInfo) -> None:
        ask_to_stop(self._storage, info.ref, stopped=True)
        end = time.monotonic() + 4 * _LEASE_SECONDS
        while leases(self._storage, info.ref) and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)

    # The search.

    def _start(self, more: bool) -> _Run:
        trials = _TRIALS_A_WORKER * self._options.workers
        words = ["run", "chaos.toml", "--name", self.name, "--workers", str(self._options.workers), "--device", "cpu"]
        words += ["--lease-seconds", f"{_LEASE_SECONDS:g}", "--store-timeout", "10m"]
        words += [] if self._options.artifacts is None else ["--artifacts", self._options.artifacts.url]
        words += self._options.placement.words()
        words += ["--more", str(trials)] if more else []
        log = self._options.folder / f"run-{len(self._ends)}.log"
        with log.open("wb") as said:
            process = subprocess.Popen(
                python("-m", "lmsearch.cli.main", *words),
                cwd=self._options.folder,
                env=dict(os.environ) | {"LMSEARCH_STORAGE": urls.full_text(self._url), "LMSEARCH_LOG_FORMAT": "json"},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for this process, which ends the search itself
            )
        return _Run(process, log)

    def _ended(self) -> bool:
        """Take note of a run that has ended; return whether all trials were done."""
        run = self._run
        if run is None or (code := run.process.poll()) is None:
            return False
        self._run = None
        said = run.log.read_text(errors="replace")
        self._ends.append(f"exit {code}")
        if code not in run.expected_exits | {0}:
            self._unexplained.append(f"{run.log.name}: exit {code}")
        if code > 0 and "resume with: lmsearch run" not in said:
            self._unexplained.append(f"{run.log.name}: exit {code} without a command to resume")
        if "Traceback (most recent call last)" in said:
            self._unexplained.append(f"{run.log.name}: a traceback")
        return code == 0

    def _look(self) -> StudyRecord | None:
        record = self._record()
        if record is not None:
            self._watch.look(record)
        return record

    def _record(self, epochs: bool = False) -> StudyRecord | None:
        info = find_study(self._storage, self.name)
        if info is None:
            return None
        if self._reader is None:
            self._reader = StudyReader(self._storage, info)
        return self._reader.read(epochs)

    def _workers(self) -> list[Ticket]:
        """List the tickets whose workers can be reached."""
        record = self._record()
        tickets = () if record is None else record.tickets
        cluster = self._options.placement.is_cluster
        return [
            ticket
            for ticket in tickets
            if ticket.is_running and ticket.process and (cluster or ticket.host == socket.gethostname())
        ]

    def _reach(self, ticket: Ticket | None, number: int) -> bool:
        """Send a signal to a ticket's worker; return whether it was there."""
        if ticket is None or ticket.process is None:
            return False
        if not self._options.placement.is_cluster:
            return _signal(ticket.process, number)
        info = find_study(self._storage, self.name)
        if self._launcher is None and info is not None:
            self._launcher = reach(info, self._options.placement, self._options.folder / "runs" / self.name)
        if self._launcher is None or ticket.worker is None:
            return False
        end = time.monotonic() + _ANSWER_SECONDS
        found = [placed for placed in self._launcher.find() if ticket.worker.startswith(placed.name)]
        while found and time.monotonic() < end:
            for placed in found:
                if self._launcher.look(placed) is None and placed.name == ticket.worker:
                    self._launcher.signal(placed, number)
                    return True
            time.sleep(_LOOK_SECONDS)
        return False

    def _any_worker(self) -> Ticket | None:
        workers = self._workers()
        return self._random.choice(workers) if workers else None

    # The faults.

    def _do_harm(self) -> None:
        faults: list[Callable[[], str | None]] = [
            self._kill_worker,
            self._kill_worker,
            self._kill_worker,
            self._kill_parent,
            self._interrupt,
            self._freeze_worker,
            *([] if self._options.placement.is_cluster else [self._disturb_store] * 3),
        ]
        done = self._random.choice(faults)()
        if done is not None:
            self._faults[done] += 1
            _log.info("%5.0f s  %s", time.monotonic() - self._began, done, extra={"event": "fault"})

    def _kill_worker(self) -> str | None:
        if not self._reach(self._any_worker(), signal.SIGKILL):
            return None
        self._kills += 1
        return "kill -9 of a worker"

    def _kill_parent(self) -> str | None:
        run, workers = self._run, [ticket.process for ticket in self._workers() if ticket.process is not None]
        if run is None or not _signal(run.process.pid, signal.SIGKILL):
            return None
        run.expected_exits.add(-signal.SIGKILL)
        run.process.wait()
        if self._options.placement.is_cluster:
            return "kill -9 of the parent"  # whom the workers outlive
        end = time.monotonic() + _ORPHAN_SECONDS + self._store_away()
        while any(map(is_running, workers)) and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
        if orphans := sum(map(is_running, workers)):
            self._unexplained.append(f"{orphans} workers outlived their parent")
        return "kill -9 of the parent"

    def _store_away(self) -> float:
        """Return how long the store, or a frozen worker, may still keep a worker from leaving."""
        return max(0.0, self._calm_at - time.monotonic())

    def _interrupt(self) -> str | None:
        number = self._random.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
        twice = self._random.random() < 0.3
        run = self._run
        if run is None or not _signal(run.process.pid, number):
            return None
        run.expected_exits |= {128 + number, -number}  # by the signal itself where it has hardly started
        if twice:
            self._hasty.add(run.process.pid)
            time.sleep(self._random.random())
            _signal(run.process.pid, number)
        return number.name + (", twice" if twice else "")

    def _freeze_worker(self) -> str | None:
        ticket = self._any_worker()
        seconds = self._random.uniform(1.0, 3 * _LEASE_SECONDS)
        if not self._reach(ticket, signal.SIGSTOP):
            return None
        self._later(seconds, lambda: self._reach(ticket, signal.SIGCONT))
        return "a worker frozen" + (" beyond its lease" if seconds > _LEASE_SECONDS else "")

    def _disturb_store(self) -> str | None:
        if time.monotonic() < self._store_free_at:
            return None
        return self._lock_file() if self._proxy is None else self._cut_network(self._proxy)

    def _lock_file(self) -> str:
        """Hold SQLite's write lock; half a minute later others have had their time."""
        self._store_free_at = time.monotonic() + 2 * _LOCK_SECONDS
        path = str(self._storage.store_url.database)
        connection = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        connection.execute("BEGIN IMMEDIATE")
        self._later(_LOCK_SECONDS, connection.close)
        return f"SQLite locked for {_LOCK_SECONDS:.0f} s"

    def _cut_network(self, proxy: Proxy) -> str:
        kind = self._random.choice(["gone", "gone", "cut", "cut", "answers", "answers", "slow", "half-open"])
        seconds = self._random.choice([0.0, 2.0, 5.0, 10.0])
        self._store_free_at = time.monotonic() + 5.0 + seconds
        if kind == "gone":
            proxy.mode = Mode.REFUSE
            proxy.cut()
            self._later(seconds, self._calm_store)
            return f"the database gone for {seconds:.0f} s"
        if kind == "cut":
            proxy.cut()
            return "all connections cut"
        if kind == "answers":
            proxy.commits_to_cut = 3
            return "the next three commits are to lose their answers"
        if kind == "slow":
            proxy.delay = 0.25
            self._later(seconds, self._calm_store)
            return "half a second of latency"
        self._store_free_at = time.monotonic() + 60.0
        proxy.mode = Mode.SWALLOW
        self._later(35.0, self._calm_store)
        return "connections half-open for 35 s"

    def _calm_store(self) -> None:
        if self._proxy is None:
            return
        if self._proxy.mode is Mode.SWALLOW:
            self._proxy.cut()
        self._proxy.mode, self._proxy.delay, self._proxy.commits_to_cut = Mode.FORWARD, 0.0, 0

    def _later(self, seconds: float, undo: Callable[[], object]) -> None:
        """Undo a fault after some time, or once all is over."""
        self._calm_at = max(self._calm_at, time.monotonic() + seconds)

        def wait() -> None:
            self._over.wait(seconds)
            undo()

        self._threads.append(threading.Thread(target=wait, name="undo", daemon=True))
        self._threads[-1].start()

    # The end.

    def _let_it_end(self) -> bool:
        """Let the search finish its budget, undisturbed; return whether it did in time."""
        end = time.monotonic() + _LAST_SECONDS
        complete = False
        while not complete and time.monotonic() < end:
            self._run = self._run or self._start(more=False)
            complete = self._ended()
            self._look()
            time.sleep(_LOOK_SECONDS)
        return complete

    def _count(self, in_time: bool, seconds: float) -> Outcome:
        record = self._record(epochs=True)
        if record is None:
            raise StudyError(f"the search did not start; see {self._options.folder / 'run-0.log'}")
        logs = self._options.folder / "runs" / self.name / LOGS
        self._unexplained += tracebacks(logs)
        rows = list_workers(self._options.storage, record.info.ref)
        deaths = sum(row.ended is None and not self._is_explained(row.name, logs) for row in rows)
        if deaths > self._kills:
            self._unexplained.append(f"{deaths} workers died, {self._kills} were killed")
        if self._proxy is not None:
            self._faults["the answer to a commit lost"] = self._proxy.commits_cut  # none where TLS hides commits
        _log.info("each trial is trained again, in one go, to compare its curve", extra={"event": "comparing"})
        answered = each_answered_once(record)
        return Outcome(
            faults=dict(sorted(self._faults.items())),
            invariants=(
                nothing_lost(self._watch),
                answered,
                curves_are_undisturbed(record, self._options.workers, exact=not self._options.placement.is_cluster),
                ended_by_itself(in_time, seconds),
                ends_are_explained(self._ends, self._unexplained),
            ),
            trials=len(record.trials),
            lost=self._watch.lost,
            doubled=doubled(record),
            trained_twice=epochs_trained_twice(logs),
            unexplained=tuple(self._unexplained),
        )

    def _is_explained(self, worker: str, logs: Path) -> bool:
        """Whether a worker that left no end in the store left it beside its log, or was told twice to end at once."""
        hasty = any(worker.startswith(f"{socket.gethostname()}-{parent}-") for parent in self._hasty)
        return hasty or end_file(logs, worker).exists()


def _signal(process: int, number: int) -> bool:
    """Send a signal; return whether there was a process to send it to."""
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return False
    return True
