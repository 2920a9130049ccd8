"""The parent of a search: starts workers, restarts them, assigns their devices, and watches."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO

from lmsearch.errors import STALLED, LmsearchError, SearchFailedError, StoreGoneError
from lmsearch.folders import make_folder
from lmsearch.launch.logs import ended_by_faulthandler, last_words
from lmsearch.machine import count_oom_kills
from lmsearch.search.failures import repeated_failure
from lmsearch.store import url as urls
from lmsearch.store.backup import write_back
from lmsearch.store.outages import Outage
from lmsearch.store.records import StudyInfo, StudyRecord, TrialRecord
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import DONE
from lmsearch.store.tickets import check_study, close_ended, release_worker
from lmsearch.store.trials import StudyReader

_TICK = 0.25  # seconds between looks at the children
_LOOK = 1.0  # seconds between snapshots of the store
_WRITE_BACK = 10.0  # seconds between the moments at which the file of a SQLite store is brought up to date
_RESTARTS = 5  # of one place in a row, of workers that died with no trial in hand
_LONGEST_PAUSE = 5.0  # seconds before a worker that died is started again
_LEAVING_SECONDS = 30.0  # for a worker to leave once nothing is owed; a frozen one never does
_OWN_ENDS = (0, StoreGoneError.exit_code, LmsearchError.exit_code)  # of a worker that left by itself
_OOM_SECONDS = 5.0  # between the kernel's count of a kill and the end of the process

Command = Callable[[str, str, int], Sequence[str]]
"""Returns a worker's command line from its name, its device and the pipe that ends with the parent."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The search at one moment."""

    record: StudyRecord
    workers: int
    seconds: float  # since the run began
    seconds_left: float | None
    notices: tuple[str, ...]  # what happened since the snapshot before


@dataclass
class Signals:
    """Signals that the parent got and is to pass on; the command's handlers add to them."""

    received: list[int] = field(default_factory=list)


@dataclass
class _Child:
    name: str
    process: subprocess.Popen[bytes]
    pipe: int  # our end; closed by our death
    log: Path
    progress: int  # of the search when it was started: epochs that its tickets have had


@dataclass
class _Place:
    """Where one worker stands after another."""

    device: str
    child: _Child | None = None
    restarts: int = 0  # without progress of the search in between
    empty_handed: int = 0  # of these, how many died before they had a trial: a trial counts its own deaths
    start_at: float = 0.0  # monotonic
    left: bool = False


@dataclass(frozen=True, kw_only=True)
class _End:
    """How a child ended."""

    code: int  # negative: a signal
    peak_memory: int  # bytes


class Launcher:
    """Workers of one study on this host, as child processes."""

    def __init__(
        self,
        storage: FencedStorage,
        info: StudyInfo,
        folder: Path,
        command: Command,
        signals: Signals,
        environment: Mapping[str, str],
        store_timeout: float = 600.0,
        max_failures: int | None = None,
        oom_kills: Callable[[], int] = count_oom_kills,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.storage = storage
        self.info = info
        self.folder = folder
        self.command = command
        self.signals = signals
        # The URL travels by the environment: command lines can be read by everybody.
        self.environment = dict(environment) | {
            "LMSEARCH_STORAGE": urls.full_text(storage.place),
            "OMP_NUM_THREADS": "1",  # a trial sets its own number of threads
        }
        self.notices: list[str] = []
        self._say = say or self.notices.append  # for what cannot wait for the next snapshot
        self._store_timeout = store_timeout
        self._max_failures = max_failures or info.spec.settings.max_failures
        self._oom_kills = oom_kills
        self._oom_seen = oom_kills()
        self._oom_at = -_OOM_SECONDS  # monotonic: when the count last rose
        self._oom_rises = 0  # that no death of ours has answered yet
        self._reader = StudyReader(storage, info)
        self._began = time.monotonic()
        self._error: LmsearchError | None = None
        self._passed_on = 0
        self._progress = 0
        self._ended_before: set[int] = set()  # numbers of trials
        self._ended: list[TrialRecord] = []  # in the order in which they were seen to end
        self._nothing_owed_since: float | None = None

    def run(self, devices: Sequence[str]) -> Iterator[Snapshot]:
        """Run one worker a device until all have left, giving a snapshot each second and one at the end.

        Raises what ended the search before its time; signals in `signals` are passed on to the workers.
        """
        self.storage.patience = self._wait_on
        record = self._read()
        if record.done == record.total:
            yield self._snapshot(record, 0)
            return
        self._ended_before = {trial.number for trial in record.trials if trial.ended is not None}
        places = [_Place(device) for device in devices]
        looked = written_back = 0.0
        try:
            while not all(place.left for place in places):
                self._pass_on(places)
                self._count_oom()
                for place in places:
                    self._look_after(place)
                if time.monotonic() - looked >= _LOOK:
                    looked = time.monotonic()
                    record = self._read()
                    self._watch_failures(record)
                    self._end_those_who_stay(record, places)
                    yield self._snapshot(record, sum(place.child is not None for place in places))
                if time.monotonic() - written_back >= _WRITE_BACK:
                    written_back = time.monotonic()
                    write_back(self.storage)
                time.sleep(_TICK)
        except StoreGoneError:
            if not self.signals.received:
                raise
            self._pass_on(places)
            self.notices.append(
                "stopped while the store was unreachable: progress is saved, and its leases expire by themselves"
            )
        finally:
            self._end(places)
        if self._error is not None:
            raise self._error
        yield self._snapshot(self._last_record(record), 0)

    def _read(self) -> StudyRecord:
        try:
            close_ended(self.storage, self.info.ref)
            record = self._reader.read()
        except KeyError:  # what Optuna raises where the study is gone
            check_study(self.storage, self.info.ref)
            raise
        self._progress = record.done + sum(ticket.epoch for ticket in record.tickets)
        return record

    def _last_record(self, record: StudyRecord) -> StudyRecord:
        """Read how the search ended; an interrupted one as last known, where the store is unreachable."""
        try:
            return self._read()
        except StoreGoneError:
            if not self.signals.received:
                raise
            return record

    def _wait_on(self, outage: Outage) -> bool:
        """Wait for the store as long as the workers do, or until a signal; for a free connection without limit."""
        if outage.attempts == 1:
            self._say(f"waiting for the store: {outage.reason}")
        return outage.gone < self._store_timeout and not self.signals.received

    def _start(self, device: str) -> _Child:
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        log = self.folder / "logs" / f"{name}.log"
        theirs, ours = os.pipe()
        with self._open_log(log) as output:
            process = subprocess.Popen(
                list(self.command(name, device, theirs)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs,),
                env=self.environment,
                start_new_session=True,  # Ctrl-C reaches the parent alone, which passes it on once
            )
        os.close(theirs)
        return _Child(name, process, ours, log, self._progress)

    def _open_log(self, log: Path) -> IO[bytes]:
        try:
            with contextlib.suppress(OSError):  # a full disk costs the mark, not the log
                make_folder(self.folder)
            log.parent.mkdir(parents=True, exist_ok=True)
            return log.open("wb")
        except OSError as error:
            self.notices.append(f"warning: a worker has no log: {error}")
            return Path(os.devnull).open("wb")

    def _look_after(self, place: _Place) -> None:
        """Start what is to stand at this place, and take note of what has ended there."""
        if place.left:
            return
        if place.child is None:
            if self.signals.received:
                place.left = True
            elif time.monotonic() >= place.start_at:
                place.child = self._start(place.device)
            return
        if (end := _reap(place.child.process)) is None:
            return
        child, place.child = place.child, None
        os.close(child.pipe)
        asked = bool(self.signals.received) or self._error is not None
        trouble = None if asked or end.code in _OWN_ENDS else self._trouble(end, child.log)
        had_trial = end.code == STALLED  # and has given it back
        with contextlib.suppress(StoreGoneError):  # the lease then runs out by itself
            peak = end.peak_memory if trouble else None
            had_trial |= release_worker(self.storage, self.info.ref, child.name, trouble, peak)
        if end.code == 0 or asked:
            place.left = True
            return
        if self._progress != child.progress:
            place.restarts = place.empty_handed = 0
        place.restarts += 1
        place.empty_handed = 0 if had_trial else place.empty_handed + 1
        self._error = self._ends_the_search(end.code, child, place.empty_handed)
        if self._error is not None:
            self.signals.received.append(signal.SIGTERM)
            place.left = True
            return
        pause = min(0.1 * 2**place.restarts, _LONGEST_PAUSE)
        place.start_at = time.monotonic() + pause
        why = f" ({last_words(child.log)[:200]})" if trouble == "death" and end.code > 0 else ""
        self.notices.append(f"a worker {_spell_end(end.code, trouble)}; it is restarted; its log is {child.log}{why}")

    def _count_oom(self) -> None:
        """Note a rise of the kernel's count; one that no death of ours follows was somebody else's."""
        count = self._oom_kills()
        if time.monotonic() - self._oom_at > _OOM_SECONDS:
            self._oom_rises = 0
        if count > self._oom_seen:
            self._oom_at = time.monotonic()
            self._oom_rises += count - self._oom_seen
        self._oom_seen = count

    def _trouble(self, end: _End, log: Path) -> str:
        """Return what a worker died of, as its ticket counts it."""
        self._count_oom()
        if end.code == -signal.SIGKILL and self._oom_rises > 0:
            self._oom_rises -= 1
            return "memory"
        return "stall" if end.code == STALLED or (end.code == 1 and ended_by_faulthandler(log)) else "death"

    def _ends_the_search(self, code: int, child: _Child, empty_handed: int) -> LmsearchError | None:
        words = last_words(child.log)
        told = words.removeprefix("lmsearch: ")
        if code == StoreGoneError.exit_code:
            return StoreGoneError(told.partition("; progress is saved")[0])
        if code == LmsearchError.exit_code:
            return LmsearchError(told)
        if code == SearchFailedError.exit_code and words.startswith("lmsearch:"):
            return SearchFailedError(told)
        if empty_handed > _RESTARTS:
            return SearchFailedError(
                f"a worker died {empty_handed} times before it had a trial; its log is {child.log}"
            )
        return None

    def _watch_failures(self, record: StudyRecord) -> None:
        known = self._ended_before | {trial.number for trial in self._ended}
        # In the order in which they were seen: the clocks of several hosts need not agree.
        self._ended += [trial for trial in record.trials if trial.ended is not None and trial.number not in known]
        last = last_failures(self._ended, self._max_failures)
        if last is not None and self._error is None:
            self._error = SearchFailedError(f"{self._max_failures} trials in a row failed in the same way:\n{last}")
            self.signals.received.append(signal.SIGTERM)

    def _end_those_who_stay(self, record: StudyRecord, places: Sequence[_Place]) -> None:
        """Once no trial is left, kill a worker that does not exit: it has nothing that could be lost."""
        if record.done < record.total:
            self._nothing_owed_since = None
        elif self._nothing_owed_since is None:
            self._nothing_owed_since = time.monotonic()
        elif time.monotonic() - self._nothing_owed_since > _LEAVING_SECONDS and not self.signals.received:
            for place in places:
                if place.child is not None:
                    _send(place.child, signal.SIGKILL)
                    self.notices.append(f"a worker did not exit and is killed; its log is {place.child.log}")
                    place.left = True

    def _pass_on(self, places: Sequence[_Place]) -> None:
        for number in self.signals.received[self._passed_on :]:
            self._passed_on += 1
            for place in places:
                if place.child is not None:
                    # A second request is to stop at once, also what hangs in a library.
                    _send(place.child, number if self._passed_on == 1 else signal.SIGKILL)

    def _end(self, places: Sequence[_Place]) -> None:
        """Leave no child behind where the loop was left early: they see our end of the pipe close."""
        children = [place.child for place in places if place.child is not None]
        for child in children:
            if not self._passed_on:  # a second signal would end them in the midst of saving
                _send(child, signal.SIGTERM)
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(_LEAVING_SECONDS)
            if child.process.returncode is None:  # frozen, or hung in a library
                _send(child, signal.SIGKILL)
                child.process.wait()
            os.close(child.pipe)
            with contextlib.suppress(StoreGoneError):  # its lease then runs out by itself
                release_worker(self.storage, self.info.ref, child.name)

    def _snapshot(self, record: StudyRecord, workers: int) -> Snapshot:
        notices = tuple(self.notices)
        self.notices.clear()
        return Snapshot(
            record=record,
            workers=workers,
            seconds=time.monotonic() - self._began,
            seconds_left=seconds_left(record, workers),
            notices=notices,
        )


def _send(child: _Child, number: int) -> None:
    # Not by Popen, which would take the child's end from `_reap`. Until that has it, the number is nobody else's.
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.process.pid, number)


def _reap(process: "subprocess.Popen[bytes]") -> _End | None:
    """Return how a child ended, None while it runs; `wait4` alone tells how much memory it used."""
    pid, status, used = os.wait4(process.pid, os.WNOHANG)
    if pid == 0:
        return None
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024
    return _End(code=process.returncode, peak_memory=unit * used.ru_maxrss)


def _spell_end(code: int, trouble: str | None) -> str:
    if trouble == "memory":
        return "ran out of memory and was killed"
    if trouble == "stall":
        return "ended itself, because its trial made no progress"
    return f"died (signal {-code})" if code < 0 else f"died (exit code {code})"


def last_failures(ended: Sequence[TrialRecord], limit: int) -> str | None:
    """Return the traceback with which the last `limit` trials of ours failed, if all failed with the same.

    Trials that another program added, or that were taken over, have no ticket and do not count.
    """
    own = [trial for trial in ended if trial.ticket is not None]
    return repeated_failure([trial.traceback if trial.outcome == "failed" else None for trial in own], limit)


def seconds_left(record: StudyRecord, workers: int) -> float | None:
    """Estimate the rest of the search from the pace so far; None before an epoch has been measured."""
    measured = [trial for trial in record.trials if trial.curve and trial.started is not None]
    if not workers or not measured:
        return None
    ended = [trial for trial in measured if trial.ended is not None]
    whole = record.info.spec.epochs
    expected = sum(len(trial.curve) for trial in ended) / len(ended) if len(ended) >= 3 else whole
    times = [_wall_seconds(trial) / len(trial.curve) for trial in ended] or [
        _wall_seconds(trial) / len(trial.curve) for trial in measured
    ]
    each = sum(times) / len(times)
    open_epochs = sum(max(0.5, expected - ticket.epoch) for ticket in record.tickets if ticket.state != DONE)
    busy = max(1, min(workers, sum(ticket.state != DONE for ticket in record.tickets)))
    return each * open_epochs / busy


def _wall_seconds(trial: TrialRecord) -> float:
    assert trial.started is not None
    return max(0.0, ((trial.ended or datetime.now()) - trial.started).total_seconds())
