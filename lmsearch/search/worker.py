"""A worker: claims and runs trials of one study until nothing is owed or someone says stop."""

import contextlib
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from sqlalchemy.engine import URL

from lmsearch.errors import CorpusError, SearchFailedError
from lmsearch.lm.train import Epoch, Event, Trainer, open_device, train
from lmsearch.search.trial import DroppedError, GiveBackError, TrialRunner
from lmsearch.store import tickets
from lmsearch.store.checkpoints import Checkpoints
from lmsearch.store.records import StudyInfo, open_study, read_study
from lmsearch.store.storage import FencedStorage, LeaseLostError, open_storage
from lmsearch.store.tables import DONE, Progress, Ticket
from lmsearch.text.corpus import Corpus, open_corpus

_IDLE_SECONDS = 0.5  # between looks for a ticket while others run the last ones


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """What a worker is told when it starts."""

    study: str
    storage: URL
    name: str = ""  # "": made up here; a parent gives one, so that it knows whose leases to end
    device: str = "auto"
    folder: Path  # for the study's files on this host, runs/STUDY
    cache: Path
    corpus: str | None = None  # where the text lies on this host, if elsewhere than on the first
    until: float | None = None  # seconds of the epoch after which nothing is claimed and all is saved
    parent_pipe: int | None = None  # a descriptor that is closed when the parent dies
    lease_seconds: float = 30.0
    store_timeout: float = 600.0


class Stop:
    """The one place where a worker learns that it is to stop, and why."""

    def __init__(self, until: float | None) -> None:
        self.exit_code: int | None = None
        self._until = until

    def request(self, exit_code: int) -> None:
        """Ask the worker to stop at the next step; the first request decides the exit code."""
        if self.exit_code is None:
            self.exit_code = exit_code

    def requested(self) -> bool:
        """Tell whether to stop; the end of the time budget is a request with exit code 0."""
        if self._until is not None and time.time() >= self._until:
            self.request(0)
        return self.exit_code is not None

    def listen(self) -> None:
        """Stop on SIGINT, SIGTERM and SIGHUP; at once on a second one."""

        heard: list[int] = []

        def handle(number: int, frame: FrameType | None) -> None:
            heard.append(number)
            if len(heard) > 1:
                os._exit(128 + number)
            self.request(128 + number)

        signal.signal(signal.SIGINT, handle)
        signal.signal(signal.SIGTERM, handle)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
            signal.signal(signal.SIGHUP, handle)


def run_worker(options: WorkerOptions, say: Callable[[str], None], trainer: Trainer = train) -> int:
    """Work until every ticket is answered; give the exit code. Raises `LmsearchError` where it cannot work."""
    stop = Stop(options.until)
    stop.listen()
    if options.parent_pipe is not None:
        _watch_parent(options.parent_pipe, stop)
    device = open_device(options.device)
    storage = open_storage(options.storage, patience=_patience(options.store_timeout, stop, say))
    storage.lease_seconds = options.lease_seconds
    info = open_study(storage, options.study)
    corpus = join_corpus(info, options.cache, options.corpus)
    host = socket.gethostname()
    name = options.name or f"{host}-{os.getpid()}-{secrets.token_hex(4)}"
    holder = tickets.Holder(worker=name, host=host, process=os.getpid(), device=str(device))
    leased = _Leased(storage, stop)
    runner = TrialRunner(
        storage=storage,
        info=info,
        corpus=corpus,
        device=device,
        train=trainer,
        checkpoints=Checkpoints(options.folder.resolve() / "checkpoints", host),
        models=options.folder.resolve() / "models",
        control=leased,
        say=say,
    )
    say(f"worker {name} joined {options.study} on {device}")
    return _work(runner, holder, leased, stop)


def join_corpus(info: StudyInfo, cache: Path, elsewhere: str | None) -> Corpus:
    """Open the study's corpus on this host; raises `CorpusError` where its text is another."""
    corpus = open_corpus(info.spec.data, cache, elsewhere)
    if corpus.fingerprint != info.fingerprint:
        raise CorpusError(
            f"the study {info.ref.name} was begun on {info.corpus} (fingerprint {info.fingerprint}), "
            f"here is {corpus.description} (fingerprint {corpus.fingerprint}); "
            "say where the same text lies with --corpus PATH"
        )
    return corpus


def _work(runner: TrialRunner, holder: tickets.Holder, leased: "_Leased", stop: Stop) -> int:
    failures: list[str] = []
    while not stop.requested():
        ticket = tickets.claim(runner.storage, runner.info.ref, holder)
        if ticket is None:
            tickets.close_ended(runner.storage, runner.info.ref)
            owed = tickets.list_tickets(runner.storage, runner.info.ref)
            if all(ticket.state == DONE for ticket in owed):
                return 0
            time.sleep(_IDLE_SECONDS)
            continue
        outcome = _run_ticket(runner, ticket, leased)
        if outcome == "failed":
            failures.append(_traceback_of(runner, ticket))
            _check_failures(failures, runner.info.spec.settings.max_failures)
        elif outcome is not None:
            failures.clear()
    return stop.exit_code or 0


def _run_ticket(runner: TrialRunner, ticket: Ticket, leased: "_Leased") -> str | None:
    """Run one ticket; None where it did not end here."""
    with leased.renewing(ticket):
        try:
            return runner.run(ticket)
        except GiveBackError:
            runner.say(f"ticket {ticket.number} is saved and given back")
        except LeaseLostError as error:
            runner.checkpoints.remove(ticket, lease=ticket.lease)
            runner.say(f"{error}; what was computed here for it is dropped")
        except DroppedError as error:
            tickets.close_ended(runner.storage, runner.info.ref)
            runner.say(str(error))
    return None


def _traceback_of(runner: TrialRunner, ticket: Ticket) -> str:
    record = read_study(runner.storage, runner.info)
    return next((t.traceback for t in record.trials if t.ticket and t.ticket.number == ticket.number), "")


def _check_failures(failures: list[str], limit: int) -> None:
    last = failures[-limit:]
    if len(last) == limit and len(set(last)) == 1:
        raise SearchFailedError(f"{limit} trials in a row failed in the same way:\n{last[-1]}")


class _Leased:
    """Keeps the lease on the ticket at work: a thread renews it, the trial asks whether to go on."""

    def __init__(self, storage: FencedStorage, stop: Stop) -> None:
        self._storage = storage
        self._stop = stop
        self._lost = threading.Event()
        self._progress = Progress(epoch=0, step=0, tokens_per_second=None)
        self._epoch_began = (0, 0, 0.0)  # epoch, tokens, time

    def progress(self, event: Event) -> Progress:
        """Take note of how far the trial is; tokens per second are those since its epoch began here."""
        done = event.number if isinstance(event, Epoch) else event.epoch - 1
        number = event.number if isinstance(event, Epoch) else event.epoch
        now = time.monotonic()
        if self._epoch_began[0] != number:
            self._epoch_began = (number, event.tokens, now)
        seconds, tokens = now - self._epoch_began[2], event.tokens - self._epoch_began[1]
        speed = tokens / seconds if seconds > 0 and tokens > 0 else self._progress.tokens_per_second
        self._progress = Progress(epoch=done, step=event.step, tokens_per_second=speed)
        return self._progress

    def check(self) -> None:
        """Raise if the lease is lost, or if the worker is to stop."""
        if self._lost.is_set():
            raise LeaseLostError("the ticket is with another worker now")
        if self._stop.requested():
            raise GiveBackError

    @contextlib.contextmanager
    def renewing(self, ticket: Ticket) -> Iterator[None]:
        """Renew the lease three times in its length, in a thread, until the block ends."""
        self._lost.clear()
        self._progress = Progress(epoch=ticket.epoch, step=ticket.step, tokens_per_second=None)
        self._epoch_began = (0, 0, 0.0)
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(self._storage.lease_seconds / 3):
                try:
                    held = self._storage.renew(ticket, self._progress)
                except Exception:
                    continue  # the store is away; the next fenced write finds out how that ended
                if not held and not ended.is_set():
                    self._lost.set()

        thread = threading.Thread(target=renew, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _patience(limit: float, stop: Stop, say: Callable[[str], None]) -> Callable[[float, str], bool]:
    """Wait for the store until `limit` or a request to stop; say once an outage what is waited for."""
    told: list[float] = []

    def wait_on(seconds: float, reason: str) -> bool:
        if not told or seconds < told[-1]:
            say(f"waiting for the store: {reason}")
        told[:] = [seconds]
        return seconds < limit and not stop.requested()

    return wait_on


def _watch_parent(pipe: int, stop: Stop) -> None:
    def watch() -> None:
        os.read(pipe, 1)  # returns when the parent is gone
        stop.request(143)

    threading.Thread(target=watch, name="parent", daemon=True).start()
