"""A worker: claims and runs trials of one study until none is left or someone stops it."""

import contextlib
import gc
import logging
import math
import os
import random
import socket
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from optuna.exceptions import OptunaError
from optuna.trial import TrialState
from sqlalchemy.engine import URL

from lmsearch import stopping
from lmsearch.errors import ConfigError, LmsearchError, StoreGoneError
from lmsearch.folders import LOGS, make_folder
from lmsearch.formats import NewerFormatError
from lmsearch.lm.trainers import TRAINERS
from lmsearch.machine import hold_gpu
from lmsearch.search.allocation import pauses
from lmsearch.search.corpora import join_corpus
from lmsearch.search.failures import check_failures
from lmsearch.search.lease import Lease
from lmsearch.search.trial import Control, DroppedError, OutOfMemoryError, PausedError, ReleasedError, TrialRunner
from lmsearch.search.work import WorkOptions
from lmsearch.spelling import nearest
from lmsearch.store import tickets, workers
from lmsearch.store.artifacts import ArtifactsError, study_files
from lmsearch.store.backup import write_back
from lmsearch.store.checkpoints import Checkpoints
from lmsearch.store.copies import open_own_study
from lmsearch.store.opening import open_storage
from lmsearch.store.outages import Outage, Patience
from lmsearch.store.records import optuna_study
from lmsearch.store.releasing import ConnectionRelease
from lmsearch.store.storage import FencedStorage, LeaseLostError
from lmsearch.store.tables import HeldTicket, StudyRef
from lmsearch.store.weights import Weights
from lmsearch.store.workers import WorkerEnd

_log = logging.getLogger(__name__)

_IDLE_SECONDS = 0.5, 5.0  # between looks for a ticket while others run the last ones: at least, at most
_IDLE_SHARE = 0.1  # of the time that it has been idle: hundreds of workers that wait are not to busy the store
_AWAY_SECONDS = 5.0  # between looks for a checkpoint in an object store that does not answer


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """The options of a worker."""

    study: str
    storage: URL
    name: str = ""  # "": made up here; a parent gives one, so that it knows whose leases to end
    device: str = "auto"
    folder: Path  # for the study's files on this host, runs/STUDY
    cache: Path
    corpus: str | None = None  # where the text lies on this host, if elsewhere than on the first
    time_limit: float | None = None  # seconds after which nothing is claimed and all is saved
    parent_pipe: int | None = None  # a descriptor that is closed when the parent dies
    work: WorkOptions = field(default_factory=WorkOptions)
    trainer: str = "lstm"  # one of TRAINERS


class Stop:
    """The one place where a worker learns that it is to stop, and why."""

    def __init__(self, seconds: float | None) -> None:
        self.exit_code: int | None = None
        self.is_idle = False  # it leaves while others run the last trials
        self.requests = 0  # how often the study's workers had been asked to stop when this one joined
        # The clock of the wall may jump.
        self._until = None if seconds is None else time.monotonic() + seconds

    def request(self, exit_code: int) -> None:
        """Ask the worker to stop at the next step; the first request decides the exit code."""
        if self.exit_code is None:
            self.exit_code = exit_code

    def note_request(self, requests: int) -> None:
        """Stop, with exit code 0, where the study's workers were asked to since this one joined."""
        if requests > self.requests:
            self.request(0)

    def requested(self) -> bool:
        """Whether to stop; the end of the time budget is a request with exit code 0."""
        if self._until is not None and time.monotonic() >= self._until:
            self.request(0)
        return self.exit_code is not None

    def listen(self) -> None:
        """Stop on the signals that ask for it; at once on a second one that a person or a system sends."""
        received: list[int] = []

        def act(number: int) -> None:
            # The parent passes on what it got, also what Slurm has sent to each process by itself.
            if number != stopping.SLURMS:
                received.append(number)
            if len(received) > 1:
                os._exit(128 + number)
            self.request(128 + number)

        stopping.listen(act)


def run_worker(options: WorkerOptions) -> int:
    """Work until all trials are done; return the exit code. Raises `LmsearchError` where it cannot work."""
    stop = Stop(options.time_limit)
    stop.listen()
    if options.parent_pipe is not None:
        _watch_parent(options.parent_pipe, stop)
    options = options if options.name else replace(options, name=workers.new_name())
    end = _Ending(options)
    try:
        code = _join(options, stop, end)
        reason = workers.STOPPED if stop.exit_code is not None else workers.IDLE if stop.is_idle else workers.FINISHED
        end.write(WorkerEnd(exit_code=code, reason=reason))
        return code
    except LmsearchError as error:
        end.write(WorkerEnd.of_error(error))
        if not isinstance(error, StoreGoneError) or not stop.requested():
            raise
        _log.warning(
            "stopped while the store was unreachable; progress is saved, and its lease expires by itself (%s)",
            error,
            extra={"event": "left", "worker": options.name},
        )
        return stop.exit_code or 0


class _Ending:
    """Writes how a worker leaves: into the table of workers, and where the store is away, beside its log."""

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self.joined: tuple[FencedStorage, StudyRef] | None = None

    def write(self, end: WorkerEnd) -> None:
        """Write the end; nothing that goes wrong with it changes how the worker leaves."""
        name = self._options.name
        with contextlib.suppress(Exception):
            if self.joined is not None and end.reason != workers.STORE_GONE:
                workers.leave(*self.joined, name, end)
                return
        with contextlib.suppress(OSError):
            if (logs := self._options.folder / LOGS).is_dir():
                workers.write_end(logs, name, end)


def _join(options: WorkerOptions, stop: Stop, ending: _Ending) -> int:
    if options.trainer not in TRAINERS:
        raise ConfigError(f"no trainer is called {options.trainer!r}{nearest(options.trainer, TRAINERS)}")
    trainer = TRAINERS[options.trainer](options.device)
    hold_gpu(trainer.name)
    storage = open_storage(options.storage, write=True, patience=_patience(options, stop))
    storage.lease_seconds = options.work.lease_seconds
    if storage.engine.name == "postgresql":
        ConnectionRelease(storage.engine)
    info = open_own_study(storage, options.study)
    state = tickets.read_stop(storage, info.ref)
    if state.stopped:
        _log.info("%s was stopped with `lmsearch stop`; `lmsearch run` resumes it", options.study)
        return 0
    corpus = join_corpus(info, options.cache, options.corpus, options.work.artifacts, options.work.allow_pickle)
    host = socket.gethostname()
    holder = tickets.Holder(worker=options.name, host=host, process=os.getpid(), device=trainer.name)
    settings = info.spec.settings
    files = study_files(options.work.artifacts, info.ref.name, info.ref.key, options.folder)
    runner = TrialRunner(
        storage=storage,
        study=optuna_study(storage, info.ref.name),
        info=info,
        corpus=corpus,
        trainer=trainer,
        checkpoints=Checkpoints.of(files, host, settings.checkpoint_bytes),
        weights=Weights.of(files),
    )
    with contextlib.suppress(OSError):  # a full disk is reported when there is something to write
        make_folder(files.folder)
    if options.parent_pipe is None:  # else the parent has said it
        runner.tell_of_others()
    gc.freeze()  # what is loaded by now stays: the collection before each trial need not look through it
    workers.join(storage, info.ref, holder, os.environ.get("LMSEARCH_LAUNCHER", ""))
    ending.joined = storage, info.ref
    _log.info(
        "worker %s joined %s on %s",
        options.name,
        options.study,
        trainer.name,
        extra={"event": "joined", "worker": options.name, "study": options.study, "device": trainer.name},
    )
    stop.requests = state.requests
    return _work(runner, holder, stop, options)


def _work(runner: TrialRunner, holder: tickets.Holder, stop: Stop, options: WorkerOptions) -> int:
    failures: list[str | None] = []  # of the trials that ended here, the traceback; None of one that did not fail
    storage, study = runner.storage, runner.info.ref
    max_failures = options.work.max_failures or runner.info.spec.settings.max_failures
    beaten = worked = time.monotonic()
    stacks = None if options.parent_pipe is None else workers.stacks_file(options.folder / LOGS, holder.worker)
    pausing = False  # whether the study is known to have trials that pause
    away: float | None = None  # since when the artifacts do not answer where they must
    while not stop.requested():
        choice = runner.allocation.choose() if pausing else None
        ticket = tickets.claim_paused(storage, study, holder, choice.tickets) if choice and choice.tickets else None
        ending = ticket is not None and choice is not None and choice.ending
        ticket = ticket or tickets.claim(storage, study, holder)
        if ticket is None:
            if not pausing and tickets.has_paused(storage, study):
                pausing = True
                continue
            tickets.close_ended(storage, study)
            if not tickets.has_unfinished(storage, study):
                runner.sweep()
                return 0
            stop.note_request(tickets.read_stop(storage, study).requests)
            if time.monotonic() - beaten > storage.lease_seconds / 3:
                beaten = time.monotonic()
                with contextlib.suppress(Exception):  # a hint; the next claim finds out what is wrong
                    workers.beat(storage, study, holder.worker)
            if options.work.idle is not None and time.monotonic() - worked > options.work.idle:
                stop.is_idle = True
                return 0
            _rest(stop, time.monotonic() - worked)
            continue
        _log.debug(
            "claimed ticket %d with lease %d",
            ticket.number,
            ticket.lease,
            extra={"event": "claimed", "ticket": ticket.number, "lease": ticket.lease},
        )
        pausing = pausing or pauses(runner.info.spec, ticket.pruner)
        lease = Lease(storage, study, ticket, options.work.stall, stop.requested, stop.note_request, stacks)
        try:
            outcome = _run_ticket(runner, lease, ending)
        except ArtifactsError as error:  # starting the trial again would cost all its epochs
            away = away or time.monotonic()
            if time.monotonic() - away > options.work.patience:
                raise
            _log.warning("waiting for a checkpoint: %s", error, extra={"event": "waiting_for_artifacts"})
            _sleep(stop, _AWAY_SECONDS)
            continue
        away = None
        if options.parent_pipe is None:
            write_back(storage)  # else the parent does it
        worked = time.monotonic()
        if outcome is not None:
            failures.append(_traceback_of(runner, ticket) if outcome == "failed" else None)
            check_failures(failures, max_failures)
    return stop.exit_code or 0


def _rest(stop: Stop, idle: float) -> None:
    """Sleep until it is time to look for a ticket again, after so many seconds without one."""
    least, most = _IDLE_SECONDS
    _sleep(stop, min(most, max(least, _IDLE_SHARE * idle)) * random.uniform(0.8, 1.2))


def _sleep(stop: Stop, seconds: float) -> None:
    """Sleep, but no longer than half a second once asked to stop."""
    end = time.monotonic() + seconds
    while not stop.requested() and (left := end - time.monotonic()) > 0:
        time.sleep(min(0.5, left))


def _run_ticket(runner: TrialRunner, lease: Lease, ending: bool) -> str | None:
    """Run one ticket, or end it without training; None where it did not end here."""
    ticket = lease.ticket
    with lease.renewing():
        try:
            return run_trial(runner, ticket, lease, ending)
        except OutOfMemoryError as error:
            _log.warning("%s", error, extra={"event": "out_of_memory", "ticket": ticket.number})
        except PausedError as error:
            _log.info("%s", error, extra={"event": "paused", "ticket": ticket.number})
        except ReleasedError:
            message = "ticket %d is saved and requeued"
            _log.info(message, ticket.number, extra={"event": "requeued", "ticket": ticket.number})
        except LeaseLostError as error:
            runner.drop(ticket)
            message = "%s; what was computed here for it is dropped"
            _log.warning(message, error, extra={"event": "lease_lost", "ticket": ticket.number})
        except DroppedError as error:
            tickets.close_ended(runner.storage, runner.info.ref)
            _log.warning("%s", error, extra={"event": "dropped", "ticket": ticket.number})
        except (NewerFormatError, ArtifactsError):  # its checkpoint waits: for a later lmsearch, or for its store
            runner.storage.release(ticket, None, None)
            raise
        except KeyError:  # what Optuna raises where the study is gone
            tickets.check_study(runner.storage, runner.info.ref)
            raise
    return None


def run_trial(runner: TrialRunner, ticket: HeldTicket, control: Control, ending: bool = False) -> str:
    """Run a ticket's trial to its end, and return its outcome; an error that is nobody's input ends it as failed.

    With `ending` it is pruned where it stands. Raises `ReleasedError` once it is saved and requeued, `LeaseLostError`
    where another worker has it now, and `DroppedError` where it was ended from outside.
    """
    trial = runner.open(ticket, ending)
    with runner.dropping(ticket):
        try:
            if (outcome := trial.begin()) is not None:
                return outcome
            for event in trial.events():
                if (outcome := trial.take(event, control)) is not None:
                    return outcome
            return trial.complete()
        except (ReleasedError, LmsearchError, OptunaError):
            raise
        except Exception as error:
            return trial.fail(error)


def _traceback_of(runner: TrialRunner, ticket: HeldTicket) -> str:
    failed = runner.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    attributes = [trial.user_attrs for trial in failed if trial.user_attrs.get("ticket") == ticket.number]
    return str(attributes[-1].get("traceback", "")) if attributes else ""


def _patience(options: WorkerOptions, stop: Stop) -> Patience:
    """Wait for the store until the limit or a request to stop; log once an outage what is waited for.

    A server that has no connection free is waited for as long as there is a parent.
    """
    limit = options.work.patience
    crowded_limit = limit if options.parent_pipe is None else math.inf
    logged: list[bool] = []

    def wait_on(outage: Outage) -> bool:
        if outage.attempts == 1:
            logged.clear()
        if logged[-1:] != [outage.is_crowded]:
            _log.warning("waiting for the store: %s", outage.reason, extra={"event": "waiting_for_store"})
            logged.append(outage.is_crowded)
        return outage.gone < limit and outage.crowded < crowded_limit and not stop.requested()

    return wait_on


def _watch_parent(pipe: int, stop: Stop) -> None:
    def watch() -> None:
        os.read(pipe, 1)  # returns when the parent is gone
        stop.request(143)

    threading.Thread(target=watch, name="parent", daemon=True).start()
