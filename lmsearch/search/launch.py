"""The parent of a search: starts workers, restarts them, gives them devices, and watches."""

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from lmsearch.config import DEVICES
from lmsearch.errors import DeviceError, LmsearchError, SearchFailedError, StoreGoneError
from lmsearch.store import url as urls
from lmsearch.store.records import StudyInfo, StudyRecord, TrialRecord, optuna_study, read_study
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import DONE
from lmsearch.store.tickets import close_ended, release_worker

_TICK = 0.25  # seconds between looks at the children
_LOOK = 1.0  # seconds between snapshots of the store
_RESTARTS = 5  # of one place in a row without a trial ended in between
_STORE_SECONDS = 600.0  # of waiting for a store that does not answer
_LOG_TAIL = 4_000  # bytes of a log that are looked through for the last words of a worker

Command = Callable[[str, str, int], Sequence[str]]
"""Gives a worker's command line from its name, its device and the pipe that ends with the parent."""


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
    device: str
    process: subprocess.Popen[bytes]
    pipe: int  # our end; closed by our death
    log: Path
    restarts: int  # of its place, without a trial ended in between
    done: int  # tickets answered when it was started


def default_devices(device: str, workers: int | None) -> list[str]:
    """Give each worker its device: the GPUs in turn, else the CPU; one worker for each by default.

    Raises `DeviceError` for a device that is not there.
    """
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", device) is None:
        raise DeviceError(f"no device is called {device!r}; there are: {', '.join(DEVICES)}")
    gpus = [] if device == "cpu" else [f"cuda:{number}" for number in range(_count_gpus())]
    if device in gpus:
        names = [device]
    elif device.startswith("cuda:") or (device == "cuda" and not gpus):
        raise DeviceError(f"the device {device} was asked for, and this machine has {len(gpus)} CUDA devices")
    else:
        names = gpus or ["cpu"]
    default = len(names) if names[0].startswith("cuda") else _usable_cpus()
    return [names[number % len(names)] for number in range(workers or default)]


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _count_gpus() -> int:
    """Count the GPUs this process may use, in a child, since only PyTorch knows and it takes seconds to load."""
    if shutil.which("nvidia-smi") is None and not Path("/dev/nvidiactl").exists():
        return 0
    code = "import torch; print(torch.cuda.device_count())"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return int(asked.stdout) if asked.returncode == 0 else 0


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
        self._study = optuna_study(storage, info.ref.name)
        self._began = time.monotonic()
        self._error: LmsearchError | None = None
        self._passed_on = 0
        self._done = 0

    def run(self, devices: Sequence[str]) -> Iterator[Snapshot]:
        """Run one worker a device until all have left, giving a snapshot each second and one at the end.

        Raises what ended the search before its time; signals in `signals` are passed on to the workers.
        """
        self.storage.patience = self._wait_on
        record = self._read()
        if record.done == record.total:
            yield self._snapshot(record, 0)
            return
        children: list[_Child | None] = [self._start(device, 0) for device in devices]
        looked = 0.0
        try:
            while children:
                self._pass_on(children)
                for place, child in enumerate(list(children)):
                    children[place] = self._look_after(child)  # kept in place: an error must not lose one
                children = [child for child in children if child is not None]
                if time.monotonic() - looked >= _LOOK:
                    looked = time.monotonic()
                    record = self._read()
                    self._watch_failures(record, children)
                    yield self._snapshot(record, len(children))
                time.sleep(_TICK)
        finally:
            self._end(children)
        if self._error is not None:
            raise self._error
        yield self._snapshot(self._read(), 0)

    def _read(self) -> StudyRecord:
        close_ended(self.storage, self.info.ref)
        record = read_study(self.storage, self.info, self._study)
        self._done = record.done
        return record

    def _wait_on(self, seconds: float, reason: str) -> bool:
        """Wait for the store as long as the workers do, or until a signal."""
        if seconds < _TICK:
            self.notices.append(f"waiting for the store: {reason}")
        return seconds < _STORE_SECONDS and not self.signals.received

    def _start(self, device: str, restarts: int) -> _Child:
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        log = self.folder / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        theirs, ours = os.pipe()
        with log.open("wb") as output:
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
        return _Child(name, device, process, ours, log, restarts, self._done)

    def _look_after(self, child: _Child | None) -> _Child | None:
        """Give the child that stands at this place now; None where it is left empty."""
        if child is None or (code := child.process.poll()) is None:
            return child
        release_worker(self.storage, self.info.ref, child.name)
        os.close(child.pipe)
        if code == 0 or self.signals.received or self._error is not None:
            return None
        restarts = child.restarts if self._done == child.done else 0
        words = _last_words(child.log)
        if code == StoreGoneError.exit_code:
            self._error = StoreGoneError(words.removeprefix("lmsearch: ").partition("; what ran is saved")[0])
        elif code == LmsearchError.exit_code:
            self._error = LmsearchError(words.removeprefix("lmsearch: "))
        elif code == SearchFailedError.exit_code and words.startswith("lmsearch:"):
            self._error = SearchFailedError(words.removeprefix("lmsearch: "))
        elif restarts >= _RESTARTS:
            self._error = SearchFailedError(f"a worker died {_RESTARTS + 1} times in a row; its log is {child.log}")
        if self._error is not None:
            self.signals.received.append(signal.SIGTERM)
            return None
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        self.notices.append(f"a worker died ({how}) and is started again; its log is {child.log}")
        time.sleep(min(0.1 * 2**restarts, 5.0))
        return self._start(child.device, restarts + 1)

    def _watch_failures(self, record: StudyRecord, children: Sequence[_Child | None]) -> None:
        limit = self.info.spec.settings.max_failures
        last = last_failures(self._began_trials(record), limit)
        if last is not None and self._error is None and children:
            self._error = SearchFailedError(f"{limit} trials in a row failed in the same way:\n{last}")
            self.signals.received.append(signal.SIGTERM)

    def _began_trials(self, record: StudyRecord) -> list[TrialRecord]:
        began = time.time() - (time.monotonic() - self._began)
        return [t for t in record.trials if t.ended is not None and t.ended.timestamp() >= began]

    def _pass_on(self, children: Sequence[_Child | None]) -> None:
        for number in self.signals.received[self._passed_on :]:
            self._passed_on += 1
            for child in filter(None, children):
                with contextlib.suppress(ProcessLookupError):
                    child.process.send_signal(number)

    def _end(self, children: Sequence[_Child | None]) -> None:
        """Leave no child behind where the loop was left early: they see our end of the pipe close."""
        left = [child for child in children if child is not None]
        for child in left:
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)
        for child in left:
            child.process.wait()
            os.close(child.pipe)
            with contextlib.suppress(StoreGoneError):  # its lease then runs out by itself
                release_worker(self.storage, self.info.ref, child.name)

    def _snapshot(self, record: StudyRecord, workers: int) -> Snapshot:
        notices, self.notices = tuple(self.notices), []
        return Snapshot(
            record=record,
            workers=workers,
            seconds=time.monotonic() - self._began,
            seconds_left=seconds_left(record, workers),
            notices=notices,
        )


def last_failures(ended: Sequence[TrialRecord], limit: int) -> str | None:
    """Give the traceback with which the last `limit` trials failed, if all failed with the same."""
    last = sorted(ended, key=lambda trial: (trial.ended is None, trial.ended, trial.number))[-limit:]
    told = {trial.traceback for trial in last if trial.outcome == "failed"}
    same = len(last) == limit and len(told) == 1 and all(trial.outcome == "failed" for trial in last)
    return told.pop() if same else None


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


def _last_words(log: Path) -> str:
    """Give what a worker said last: its error sentence, or the end of its traceback."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL))
        lines = file.read().decode(errors="replace").splitlines()
    for number in range(len(lines) - 1, -1, -1):
        if lines[number].startswith("lmsearch: "):
            return "\n".join(lines[number:])
    return lines[-1] if lines else f"it said nothing; its log is {log}"
