"""A worker: claims and runs trials of one study until nothing is owed or someone says stop."""

import contextlib
import faulthandler
import gc
import math
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from optuna.trial import TrialState
from sqlalchemy.engine import URL

from lmsearch.errors import STALLED, CorpusError, SearchFailedError, StoreGoneError
from lmsearch.folders import make_folder
from lmsearch.formats import NewerFormatError
from lmsearch.lm.train import Epoch, Event, Trainer, open_device, train
from lmsearch.search.failures import repeated_failure
from lmsearch.search.trial import DroppedError, GiveBackError, OutOfMemoryError, TrialRunner
from lmsearch.store import tickets
from lmsearch.store.backup import write_back
from lmsearch.store.checkpoints import Checkpoints
from lmsearch.store.copies import open_own_study
from lmsearch.store.opening import open_storage
from lmsearch.store.outages import Outage, Patience
from lmsearch.store.records import StudyInfo, optuna_study
from lmsearch.store.storage import FencedStorage, LeaseLostError
from lmsearch.store.tables import Progress, StudyRef, Ticket
from lmsearch.text.corpus import Corpus, open_corpus

_IDLE_SECONDS = 0.5  # between looks for a ticket while others run the last ones
_FROZEN_SECONDS = 5.0  # of a thread that did not run: then nothing did


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
    until: float | None = None  # seconds after which nothing is claimed and all is saved
    parent_pipe: int | None = None  # a descriptor that is closed when the parent dies
    lease_seconds: float = 30.0
    store_timeout: float = 600.0  # seconds of waiting for a store that does not answer
    stall: float = 600.0  # seconds without a step after which a trial hangs
    max_failures: int | None = None  # in a row with the same traceback; None: the study's
    checkpoints: Path | None = None  # a folder for checkpoints and weights, where they are not to lie in `folder`
    allow_pickle: bool = False  # for a corpus of object arrays


class Stop:
    """The one place where a worker learns that it is to stop, and why."""

    def __init__(self, seconds: float | None) -> None:
        self.exit_code: int | None = None
        # The clock of the wall may jump.
        self._until = None if seconds is None else time.monotonic() + seconds

    def request(self, exit_code: int) -> None:
        """Ask the worker to stop at the next step; the first request decides the exit code."""
        if self.exit_code is None:
            self.exit_code = exit_code

    def requested(self) -> bool:
        """Tell whether to stop; the end of the time budget is a request with exit code 0."""
        if self._until is not None and time.monotonic() >= self._until:
            self.request(0)
        return self.exit_code is not None

    def listen(self) -> None:
        """Stop on SIGINT, SIGTERM, SIGHUP and SIGUSR1; at once on a second one of the first three."""

        heard: list[int] = []

        def handle(number: int, frame: FrameType | None) -> None:
            # Slurm sends SIGUSR1 to each process of a job, and the parent passes on what it got.
            if number != signal.SIGUSR1:
                heard.append(number)
            if len(heard) > 1:
                os._exit(128 + number)
            self.request(128 + number)

        signal.signal(signal.SIGINT, handle)
        signal.signal(signal.SIGTERM, handle)
        signal.signal(signal.SIGUSR1, handle)  # what Slurm sends before it ends a job
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
            signal.signal(signal.SIGHUP, handle)


def run_worker(options: WorkerOptions, say: Callable[[str], None], trainer: Trainer = train) -> int:
    """Work until every ticket is answered; give the exit code. Raises `LmsearchError` where it cannot work."""
    stop = Stop(options.until)
    stop.listen()
    if options.parent_pipe is not None:
        _watch_parent(options.parent_pipe, stop)
    try:
        return _join(options, stop, say, trainer)
    except StoreGoneError as error:
        if not stop.requested():
            raise
        say(f"stopped while the store was away; what ran is saved, its lease runs out by itself ({error})")
        return stop.exit_code or 0


def _join(options: WorkerOptions, stop: Stop, say: Callable[[str], None], trainer: Trainer) -> int:
    device = open_device(options.device)
    storage = open_storage(options.storage, write=True, patience=_patience(options, stop, say))
    storage.lease_seconds = options.lease_seconds
    info = open_own_study(storage, options.study)
    asked, stopped = tickets.read_stop(storage, info.ref)
    if stopped:
        say(f"{options.study} was stopped with `lmsearch stop`; `lmsearch run` lets workers work on it again")
        return 0
    corpus = join_corpus(info, options)
    host = socket.gethostname()
    name = options.name or f"{host}-{os.getpid()}-{secrets.token_hex(4)}"
    holder = tickets.Holder(worker=name, host=host, process=os.getpid(), device=str(device))
    settings = info.spec.settings
    files = study_files(options)
    runner = TrialRunner(
        storage=storage,
        study=optuna_study(storage, info.ref.name),
        info=info,
        corpus=corpus,
        device=device,
        train=trainer,
        checkpoints=Checkpoints(files / "checkpoints", host, settings.checkpoint_bytes),
        models=files / "models",
        control=(leased := _Leased(storage, info.ref, stop, options.stall, asked)),
        say=say,
    )
    with contextlib.suppress(OSError):  # a full disk is told of when there is something to write
        make_folder(files)
    if options.parent_pipe is None:  # else the parent has said it
        runner.tell_of_others()
    gc.freeze()  # what is loaded by now stays: the collection before each trial need not look through it
    say(f"worker {name} joined {options.study} on {device}")
    most = options.max_failures or settings.max_failures
    return _work(runner, holder, leased, stop, most, options.parent_pipe is not None)


def study_files(options: WorkerOptions) -> Path:
    """Give the folder for a worker's checkpoints and weights."""
    shared = options.checkpoints
    return (options.folder if shared is None else shared / options.folder.name).resolve()


def join_corpus(info: StudyInfo, options: WorkerOptions) -> Corpus:
    """Open the study's corpus on this host; raises `CorpusError` where its text is another."""
    corpus = open_corpus(info.spec.data, options.cache, options.corpus, options.allow_pickle)
    if corpus.fingerprint != info.fingerprint:
        raise CorpusError(
            f"the study {info.ref.name} was begun on {info.corpus} (fingerprint {info.fingerprint}), "
            f"here is {corpus.description} (fingerprint {corpus.fingerprint}); "
            "say where the same text lies with --corpus PATH"
        )
    return corpus


def _work(
    runner: TrialRunner,
    holder: tickets.Holder,
    leased: "_Leased",
    stop: Stop,
    max_failures: int,
    has_parent: bool,
) -> int:
    failures: list[str | None] = []  # of the trials that ended here, the traceback; None of one that did not fail
    storage, study = runner.storage, runner.info.ref
    while not stop.requested():
        ticket = tickets.claim(storage, study, holder)
        if ticket is None:
            tickets.close_ended(storage, study)
            if not tickets.owes(storage, study):
                runner.sweep()
                return 0
            leased.hear(tickets.read_stop(storage, study)[0])
            time.sleep(_IDLE_SECONDS)
            continue
        outcome = _run_ticket(runner, ticket, leased)
        if not has_parent:
            write_back(storage)  # else the parent does it
        if outcome is not None:
            failures.append(_traceback_of(runner, ticket) if outcome == "failed" else None)
            _check_failures(failures, max_failures)
    return stop.exit_code or 0


def _run_ticket(runner: TrialRunner, ticket: Ticket, leased: "_Leased") -> str | None:
    """Run one ticket; None where it did not end here."""
    with leased.renewing(ticket):
        try:
            return runner.run(ticket)
        except OutOfMemoryError as error:
            runner.say(str(error))
        except GiveBackError:
            runner.say(f"ticket {ticket.number} is saved and given back")
        except LeaseLostError as error:
            runner.drop(ticket)
            runner.say(f"{error}; what was computed here for it is dropped")
        except DroppedError as error:
            tickets.close_ended(runner.storage, runner.info.ref)
            runner.say(str(error))
        except NewerFormatError:  # its checkpoint is a later lmsearch's, which goes on with it
            runner.storage.give_back(ticket, None, None)
            raise
        except KeyError:  # what Optuna raises where the study is gone
            tickets.check_study(runner.storage, runner.info.ref)
            raise
    return None


def _traceback_of(runner: TrialRunner, ticket: Ticket) -> str:
    failed = runner.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    told = [trial.user_attrs for trial in failed if trial.user_attrs.get("ticket") == ticket.number]
    return str(told[-1].get("traceback", "")) if told else ""


def _check_failures(failures: list[str | None], limit: int) -> None:
    if (failure := repeated_failure(failures, limit)) is not None:
        raise SearchFailedError(f"{limit} trials in a row failed in the same way:\n{failure}")


class _Leased:
    """Keeps the lease on the ticket at work: a thread renews it, the trial asks whether to go on."""

    def __init__(self, storage: FencedStorage, study: StudyRef, stop: Stop, stall: float, asked: int) -> None:
        self._storage = storage
        self._study = study
        self._stop = stop
        self._stall = stall
        self._asked = asked  # how often the study's workers had been asked to stop when this one joined
        self._lost = threading.Event()
        self._progress = Progress(epoch=0, step=0, tokens_per_second=None)
        self._moved = time.monotonic()  # when the trial last made a step
        self._epoch_began = (0, 0, 0.0)  # epoch, tokens, time

    def hear(self, asked: int) -> None:
        """Stop, with exit code 0, where the study's workers were asked to since this one joined."""
        if asked > self._asked:
            self._stop.request(0)

    def progress(self, event: Event) -> Progress:
        """Take note of how far the trial is; tokens per second are those since its epoch began here."""
        done = event.number if isinstance(event, Epoch) else event.epoch - 1
        number = event.number if isinstance(event, Epoch) else event.epoch
        now = self._moved = time.monotonic()
        if self._epoch_began[0] != number:
            self._epoch_began = (number, event.tokens, now)
        seconds, tokens = now - self._epoch_began[2], event.tokens - self._epoch_began[1]
        speed = tokens / seconds if seconds > 0 and tokens > 0 else self._progress.tokens_per_second
        self._progress = Progress(epoch=done, step=event.step, tokens_per_second=speed)
        return self._progress

    def check(self) -> None:
        """Raise if the lease is lost, or if the worker is to stop."""
        if self._lost.is_set():
            raise LeaseLostError("the ticket was ended, or is with another worker now")
        if self._stop.requested():
            raise GiveBackError

    @contextlib.contextmanager
    def renewing(self, ticket: Ticket) -> Iterator[None]:
        """Renew the lease three times in its length, in a thread, until the block ends."""
        self._lost.clear()
        self._progress = Progress(epoch=ticket.epoch, step=ticket.step, tokens_per_second=None)
        self._epoch_began = (0, 0, 0.0)
        self._moved = time.monotonic()
        ended = threading.Event()
        thread = threading.Thread(target=self._renew, args=(ticket, ended), name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            faulthandler.cancel_dump_traceback_later()

    def _renew(self, ticket: Ticket, ended: threading.Event) -> None:
        tick = min(self._storage.lease_seconds / 3, self._stall / 4)
        looked = time.monotonic()
        # Where even this thread comes to nothing, since a library holds the interpreter, the C runtime ends it all.
        faulthandler.dump_traceback_later(2 * self._stall, exit=True)
        while not ended.wait(tick):
            now = time.monotonic()
            if now - looked > tick + _FROZEN_SECONDS or self._storage.waiting:
                self._moved = now  # the process was frozen, or waits for the store
            looked = now
            faulthandler.dump_traceback_later(2 * self._stall, exit=True)
            if now - self._moved > self._stall:
                self._end_stalled(ticket)
            try:
                held, asked = tickets.sign_of_life(self._storage, self._study, ticket, self._progress)
            except Exception:
                continue  # the store is away; the next fenced write finds out how that ended
            self.hear(asked)
            if not held and not ended.is_set():
                self._lost.set()

    def _end_stalled(self, ticket: Ticket) -> None:
        """Leave the process, whose trial hangs, with the stack of each thread in the log."""
        print(f"no step for {self._stall:.0f} s; this is where each thread stands:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        with contextlib.suppress(Exception):
            self._storage.give_back(ticket, None, None, "stall")
        os._exit(STALLED)


def _patience(options: WorkerOptions, stop: Stop, say: Callable[[str], None]) -> Patience:
    """Wait for the store until the limit or a request to stop; say once an outage what is waited for.

    A server that has no connection free is waited for as long as there is a parent.
    """
    limit = options.store_timeout
    crowded_limit = limit if options.parent_pipe is None else math.inf
    told: list[bool] = []

    def wait_on(outage: Outage) -> bool:
        if outage.attempts == 1:
            told.clear()
        if told[-1:] != [outage.is_crowded]:
            say(f"waiting for the store: {outage.reason}")
            told.append(outage.is_crowded)
        return outage.gone < limit and outage.crowded < crowded_limit and not stop.requested()

    return wait_on


def _watch_parent(pipe: int, stop: Stop) -> None:
    def watch() -> None:
        os.read(pipe, 1)  # returns when the parent is gone
        stop.request(143)

    threading.Thread(target=watch, name="parent", daemon=True).start()
