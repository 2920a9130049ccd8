"""The supervision of a search: which workers are wanted, which are restarted, and what ends the search."""

import contextlib
import logging
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmsearch.errors import STALLED, LmsearchError, SearchFailedError, StoreGoneError
from lmsearch.launch.base import Exit, Launcher, Placed
from lmsearch.launch.pace import seconds_left
from lmsearch.search.failures import check_failures, tracebacks_of
from lmsearch.store import workers
from lmsearch.store.backup import write_back
from lmsearch.store.outages import Outage
from lmsearch.store.records import StudyInfo, StudyRecord, TrialRecord
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import OPEN
from lmsearch.store.tickets import check_study, close_ended, release_worker
from lmsearch.store.trials import StudyReader
from lmsearch.store.workers import WorkerEnd

_log = logging.getLogger(__name__)

_TICK = 0.25  # seconds between looks at the workers
_LOOK = 1.0  # seconds between snapshots of the store
_WRITE_BACK = 10.0  # seconds between the moments at which the file of a SQLite store is brought up to date
_RESTARTS = 5  # of one slot in a row, of workers that died with no trial in hand
_REFUSED_PAUSE = 30.0  # seconds before an engine that refused workers is asked for them again
_LONGEST_PAUSE = 5.0  # seconds before a worker that died is started again
_LEAVING_SECONDS = 30.0  # for a worker to leave once no trial is left; a frozen one never does
_LOG_TAIL = 4_000  # bytes of a log of which the last line is shown


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The search at one moment."""

    record: StudyRecord
    workers: int
    seconds: float  # since the run began
    seconds_left: float | None
    notices: tuple[str, ...]  # what happened since the snapshot before
    stopping: int = 0  # how often a person has asked it to stop


@dataclass
class Signals:
    """Signals that the parent got and is to pass on; the command's handlers add to them."""

    received: list[int] = field(default_factory=list)


@dataclass
class _Slot:
    """Where one worker stands after another."""

    device: str
    worker: Any = None  # as the launcher has placed it
    progress: int = 0  # of the search when it was started: epochs that its tickets have had
    restarts: int = 0  # without progress of the search in between
    empty_handed: int = 0  # of these, how many died before they had a trial: a trial counts its own deaths
    start_at: float = 0.0  # monotonic
    left: bool = False
    is_dormant: bool = False  # its worker left because others had the last trials


class Supervisor:
    """Keeps the workers of one study at work until no trial is left, or something ends the search."""

    def __init__(
        self,
        storage: FencedStorage,
        info: StudyInfo,
        launcher: Launcher[Any],
        signals: Signals,
        store_timeout: float = 600.0,
        max_failures: int | None = None,
    ) -> None:
        self.storage = storage
        self.info = info
        self.launcher = launcher
        self.signals = signals
        self.notices: list[str] = []
        self._store_timeout = store_timeout
        self._max_failures = max_failures or info.spec.settings.max_failures
        self._reader = StudyReader(storage, info)
        self._started = time.monotonic()
        self._error: LmsearchError | None = None
        self._passed_on = 0
        self._progress = 0
        self._ended_before: set[int] = set()  # numbers of trials
        self._ended: list[TrialRecord] = []  # in the order in which they were seen to end
        self._nothing_left_since: float | None = None
        self._has_started = False
        self._is_done = False
        self._unclaimed: set[int] = set()  # numbers of open tickets at the last look

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
        slots = [_Slot(device) for device in devices]
        looked = written_back = 0.0
        self._adopt(slots)
        try:
            if missing := [slot for slot in slots if slot.worker is None]:
                self._start(missing)
            while not all(slot.left for slot in slots):
                if self._pass_on(slots):
                    looked = 0.0  # to be acknowledged at once
                for slot in slots:
                    self._look_after(slot)
                if time.monotonic() - looked >= _LOOK:
                    looked = time.monotonic()
                    record = self._read()
                    self._watch_failures(record)
                    self._end_those_who_stay(record, slots)
                    self._wake(record, slots)
                    yield self._snapshot(record, sum(slot.worker is not None for slot in slots))
                if time.monotonic() - written_back >= _WRITE_BACK:
                    written_back = time.monotonic()
                    write_back(self.storage)
                time.sleep(_TICK)
        except StoreGoneError:
            if not self.signals.received:
                raise
            self._pass_on(slots)
            self._note(
                "left",
                "stopped while the store was unreachable: progress is saved, and its leases expire by themselves",
            )
        finally:
            self._end(slots)
        if self._error is not None:
            raise self._error
        yield self._snapshot(self._last_record(record), 0)

    def detach(self, devices: Sequence[str]) -> int:
        """Start what is missing of one worker a device, and leave them all at work; return how many were started.

        Raises `LmsearchError` where the engine refuses them.
        """
        slots = [_Slot(device) for device in devices]
        self._adopt(slots)
        missing = [slot for slot in slots if slot.worker is None]
        self._has_started = False
        if missing:
            self._start(missing)
        return len(missing)

    def _adopt(self, slots: Sequence[_Slot]) -> None:
        """Take over the workers that an earlier parent has left, instead of starting as many again."""
        found = self.launcher.find()
        for slot, worker in zip(slots, found, strict=False):
            slot.worker, slot.progress = worker, self._progress
        self._has_started = bool(found)
        if found:
            count = min(len(found), len(slots))
            self._note("adopted", f"{count} workers of an earlier run are still there, and are counted")

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
        """Read how the search ended; an interrupted one by what was known, where the store is away."""
        try:
            return self._read()
        except StoreGoneError:
            if not self.signals.received:
                raise
            return record

    def _wait_on(self, outage: Outage) -> bool:
        """Wait for the store as long as the workers do, or until a signal; for a free connection without limit."""
        if outage.attempts == 1:
            self._note("waiting_for_store", f"waiting for the store: {outage.reason}")
        return outage.gone < self._store_timeout and not self.signals.received

    def _note(self, event: str, sentence: str, **extra: object) -> None:
        """Log what happened, and keep it for the next snapshot."""
        _log.warning("%s", sentence, extra={"event": event, "study": self.info.ref.name, **extra})
        self.notices.append(sentence)

    def _start(self, slots: Sequence[_Slot]) -> None:
        """Start what is to stand in some slots; where the engine refuses it, that is tried again."""
        try:
            placed = self.launcher.start([slot.device for slot in slots])
        except LmsearchError as error:
            if not self._has_started:
                raise
            self._note("not_started", f"no worker can be started now, which is tried again: {error}")
            for slot in slots:
                slot.start_at = time.monotonic() + _REFUSED_PAUSE
            return
        self._has_started = True
        for slot, worker in zip(slots, placed, strict=True):
            slot.worker, slot.progress = worker, self._progress
            extra = {"event": "worker_started", "worker": worker.name, "device": slot.device}
            _log.debug("worker %s is started on %s", worker.name, slot.device, extra=extra)

    def _look_after(self, slot: _Slot) -> None:
        """Start what is to stand in this slot, and take note of what has ended there."""
        if slot.left:
            return
        if slot.worker is None:
            if self.signals.received or (slot.is_dormant and self._is_done):
                slot.left = True
            elif slot.is_dormant:
                return
            elif time.monotonic() >= slot.start_at:
                self._start([slot])
            return
        if (exit := self.launcher.look(slot.worker)) is None:
            return
        worker, slot.worker = slot.worker, None
        stopping = bool(self.signals.received) or self._error is not None
        end = None if exit.code < 0 else self._end_of(worker)
        trouble = None if stopping or end is not None or exit.code == 0 else _trouble(exit)
        had_trial = exit.code == STALLED  # and has released it
        with contextlib.suppress(StoreGoneError):  # the lease then runs out by itself
            peak = exit.peak_memory if trouble else None
            had_trial |= release_worker(self.storage, self.info.ref, worker.name, trouble, peak)
        if exit.code == 0 and not stopping and end is not None and end.reason == workers.IDLE:
            slot.is_dormant = True
        elif exit.code == 0 or stopping:
            slot.left = True
        elif exit.is_cancelled:
            sentence = f"{worker.name} was cancelled, and nothing takes its place"
            self._note("worker_cancelled", sentence, worker=worker.name)
            slot.left = True
        elif end is not None and (error := _error_of(end)) is not None:
            self._stop_with(error)
            slot.left = True
        else:
            self._restart(slot, worker, exit, trouble, had_trial)

    def _end_of(self, worker: Placed) -> WorkerEnd | None:
        """Return how a worker left by itself; None where it did not."""
        with contextlib.suppress(StoreGoneError):
            return workers.read_end(self.storage, self.info.ref, worker.name, worker.log.parent)
        return None

    def _restart(self, slot: _Slot, worker: Placed, exit: Exit, trouble: str | None, had_trial: bool) -> None:
        if self._progress != slot.progress:
            slot.restarts = slot.empty_handed = 0
        slot.restarts += 1
        slot.empty_handed = 0 if had_trial else slot.empty_handed + 1
        if slot.empty_handed > _RESTARTS:
            died = f"a worker died {slot.empty_handed} times before it had a trial; its log is {worker.log}"
            self._stop_with(SearchFailedError(died))
            slot.left = True
            return
        slot.start_at = time.monotonic() + min(0.1 * 2**slot.restarts, _LONGEST_PAUSE)
        why = f" ({_last_line(worker)[:200]})" if trouble == "death" and exit.code > 0 else ""
        self._note(
            "worker_ended",
            f"a worker {_spell_end(exit.code, trouble)}; it is restarted; its log is {worker.log}{why}",
            worker=worker.name,
            exit_code=exit.code,
            trouble=trouble,
        )

    def _stop_with(self, error: LmsearchError) -> None:
        self._error = error
        self.signals.received.append(signal.SIGTERM)

    def _watch_failures(self, record: StudyRecord) -> None:
        known = self._ended_before | {trial.number for trial in self._ended}
        # In the order in which they were seen: the clocks of several hosts need not agree.
        self._ended += [trial for trial in record.trials if trial.ended is not None and trial.number not in known]
        try:
            check_failures(tracebacks_of(self._ended), self._max_failures)
        except SearchFailedError as error:
            if self._error is None:
                self._stop_with(error)

    def _end_those_who_stay(self, record: StudyRecord, slots: Sequence[_Slot]) -> None:
        """Once no trial is left, kill a worker that does not exit: it has nothing that could be lost."""
        if record.done < record.total:
            self._nothing_left_since = None
        elif self._nothing_left_since is None:
            self._nothing_left_since = time.monotonic()
        elif time.monotonic() - self._nothing_left_since > _LEAVING_SECONDS and not self.signals.received:
            for slot in slots:
                if slot.worker is not None:
                    self.launcher.signal(slot.worker, signal.SIGKILL)
                    self._note(
                        "worker_killed",
                        f"a worker did not exit and is killed; its log is {slot.worker.log}",
                        worker=slot.worker.name,
                    )
                    slot.left = True

    def _wake(self, record: StudyRecord, slots: Sequence[_Slot]) -> None:
        """Start workers again that had left for want of trials, where some have been open for two looks now."""
        self._is_done = record.done == record.total
        unclaimed = {ticket.number for ticket in record.tickets if ticket.state == OPEN}
        dormant = [slot for slot in slots if slot.is_dormant]
        for slot, _ in zip(dormant, unclaimed & self._unclaimed, strict=False):
            slot.is_dormant = False
        self._unclaimed = unclaimed

    def _pass_on(self, slots: Sequence[_Slot]) -> bool:
        """Pass on the signals that are new; return whether there were any."""
        before = self._passed_on
        for number in self.signals.received[self._passed_on :]:
            self._passed_on += 1
            for slot in slots:
                if slot.worker is not None:
                    # A second request is to stop at once, also what hangs in a library.
                    self.launcher.signal(slot.worker, number if self._passed_on == 1 else signal.SIGKILL)
        return self._passed_on > before

    def _end(self, slots: Sequence[_Slot]) -> None:
        """Leave no worker behind where the loop was left early."""
        placed = [slot.worker for slot in slots if slot.worker is not None]
        for worker in placed:
            if not self._passed_on:  # a second signal would end them in the midst of saving
                self.launcher.signal(worker, signal.SIGTERM)
        for worker in placed:
            self.launcher.close(worker, _LEAVING_SECONDS)
            with contextlib.suppress(StoreGoneError):  # its lease then runs out by itself
                release_worker(self.storage, self.info.ref, worker.name)

    def _snapshot(self, record: StudyRecord, workers: int) -> Snapshot:
        notices = tuple(self.notices)
        self.notices.clear()
        return Snapshot(
            record=record,
            workers=workers,
            seconds=time.monotonic() - self._started,
            seconds_left=seconds_left(record, workers),
            notices=notices,
            stopping=0 if self._error is not None else len(self.signals.received),
        )


def _trouble(exit: Exit) -> str:
    """Return what a worker died of, as its ticket counts it."""
    if exit.out_of_memory:
        return "memory"
    return "stall" if exit.code == STALLED or exit.hung else "death"


def _error_of(end: WorkerEnd) -> LmsearchError | None:
    """Return the error that ends the search, where a worker left with one that every worker would meet."""
    kinds = {workers.STORE_GONE: StoreGoneError, workers.REFUSED: LmsearchError, workers.FAILED: SearchFailedError}
    kind = kinds.get(end.reason)
    return None if kind is None else kind(end.sentence)


def _last_line(worker: Placed) -> str:
    """Return the last line of a worker's log, for a person."""
    try:
        lines = worker.log.read_bytes()[-_LOG_TAIL:].decode(errors="replace").splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else f"its log {worker.log} is empty"


def _spell_end(code: int, trouble: str | None) -> str:
    if trouble == "memory":
        return "ran out of memory and was killed"
    if trouble == "stall":
        return "ended itself, because its trial made no progress"
    return f"died (signal {-code})" if code < 0 else f"died (exit code {code})"
