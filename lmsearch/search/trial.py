"""One trial, from open spec to a number: the only place that knows both Optuna and the trainer."""

import contextlib
import errno
import logging
import math
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from lmsearch.config import RunConfig
from lmsearch.errors import LmsearchError
from lmsearch.folders import WEIGHTS, HostPath, make_folder, named_in, read_name
from lmsearch.formats import stamp
from lmsearch.lm.events import Epoch, Event, Step
from lmsearch.lm.trainer import Trainer
from lmsearch.losses import perplexity
from lmsearch.search.allocation import Allocation, pauses
from lmsearch.search.outcome import COMPLETE, DIVERGED, PAUSED, PRUNED, decide, diverged, final_value, reported_value
from lmsearch.search.strategies import make_pruner, make_sampler, suggest
from lmsearch.store.artifacts import ArtifactsError
from lmsearch.store.belonging import LEFT, Belonging, config_digest, others_in, others_sentence
from lmsearch.store.checkpoints import SHORT, Checkpoint, Checkpoints, Found
from lmsearch.store.distributions import distribution
from lmsearch.store.records import StudyInfo
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import FROM, EpochRow, HeldTicket, Progress, Ticket
from lmsearch.store.tickets import check_study, close_ended, list_tickets
from lmsearch.store.trials import models_beyond, read_epochs
from lmsearch.store.weights import Weights
from lmsearch.text.corpus import Corpus

_log = logging.getLogger(__name__)

_KEPT_MODELS = 3  # weights of the study's best trials
_SAMPLE_WORDS = 40
_MOST_DEATHS = 5  # of a trial's workers, in a row without a new checkpoint
_MOST_STALLS = 2
_MOST_MEMORY_FAILURES = 2  # the second time it was alone


class ReleasedError(Exception):
    """The worker should stop: the trial is saved and requeued."""


class PausedError(ReleasedError):
    """The trial is saved, and paused until its forecast is the best there is to train."""


class OutOfMemoryError(ReleasedError):
    """Out of memory: the trial is requeued, to run alone."""


class DroppedError(Exception):
    """The trial was ended from outside, so there is nothing left to do for it."""


class Control(Protocol):
    """What a trial asks of its lease while it runs."""

    def progress(self, event: Event) -> Progress:
        """Take note of how far the trial is."""
        ...

    def check(self) -> None:
        """Raise `ReleasedError` if the worker is to stop, `LeaseLostError` if another holds the ticket."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrialRunner:
    """Opens trials of one study for one device."""

    storage: FencedStorage
    study: optuna.Study  # of Optuna, over a cache that reads ended trials once
    info: StudyInfo
    corpus: Corpus
    trainer: Trainer
    checkpoints: Checkpoints
    weights: Weights  # of best epochs

    @property
    def allocation(self) -> Allocation:
        """What decides about trials that pause."""
        return Allocation(storage=self.storage, study=self.study, info=self.info, checkpoints=self.checkpoints)

    def open(self, ticket: HeldTicket, ending: bool = False) -> "Trial":
        """Ask Optuna for the ticket's trial, or take it up where it was saved: to end it, with `ending`.

        Raises `DroppedError`.
        """
        self.study.sampler = make_sampler(self.info.spec, ticket.sampler, ticket.number, ticket.fixed)
        self.study.pruner = make_pruner(self.info.spec, ticket.pruner)
        verdict = PRUNED if ending else _verdict(ticket)
        with self.dropping(ticket):
            saved = Found(None, "") if ticket.trial_id is None or verdict else self._saved(ticket)
            with self.storage.asking(ticket, _template(self.info, ticket)):
                trial = self.study.ask()
            return Trial(self, trial, ticket, saved, verdict)

    @contextlib.contextmanager
    def dropping(self, ticket: HeldTicket) -> Iterator[None]:
        """Raise `DroppedError` where the ticket's trial was ended from outside meanwhile."""
        try:
            yield
        except UpdateFinishedTrialError as error:
            self.remove_checkpoints(ticket)
            raise DroppedError(f"the trial of ticket {ticket.number} was ended from outside") from error

    def _saved(self, ticket: HeldTicket) -> Found:
        """Find what the trial resumes from; where there is nothing, forget the epochs of its earlier attempt."""
        digest, reported = self._known(ticket)
        found = self.checkpoints.find(ticket, digest, reported) if digest else Found(None, "")
        if found.remark:
            extra = {"event": "checkpoint_refused", "trial": ticket.trial_number}
            _log.warning("trial %s: %s", ticket.trial_number, found.remark, extra=extra)
        if found.checkpoint is None:
            if ticket.epoch or ticket.step:
                extra = {"event": "restarted", "trial": ticket.trial_number}
                _log.info("trial %s starts again with the same values", ticket.trial_number, extra=extra)
            self.storage.restart(ticket)
            self.checkpoints.remove(ticket, digest, reported)
        return found

    def _known(self, ticket: Ticket) -> tuple[str, list[EpochRow]]:
        """Return the digest of what a ticket's trial computes ("" before its values are drawn), and its epochs."""
        if ticket.trial_id is None or ticket.trial_number is None:
            return "", []
        try:
            params = self.storage.get_trial(ticket.trial_id).params
        except KeyError:  # what Optuna raises where the trial is gone, as with its study
            check_study(self.storage, self.info.ref)
            return "", []
        epochs = read_epochs(self.storage, self.info.ref, ticket.trial_number)
        return config_digest(self.info, params), epochs.get(ticket.trial_number, [])

    def remove_checkpoints(self, ticket: Ticket) -> None:
        """Remove the checkpoints of a ticket's trial, which has ended."""
        self.checkpoints.remove(ticket, *self._known(ticket))

    def end_least_promising(self) -> bool:
        """End the paused trial with the lowest chance, for the disk that its checkpoint takes; false where none is."""
        ticket = self.allocation.least_promising()
        if ticket is None or ticket.trial_id is None:
            return False
        self.storage.leases.pop(ticket.trial_id, None)  # this worker may have held it: now it ends it from outside
        with contextlib.suppress(UpdateFinishedTrialError):
            self.storage.set_trial_state_values(ticket.trial_id, TrialState.PRUNED)
        close_ended(self.storage, self.info.ref)
        self.remove_checkpoints(ticket)
        extra = {"event": "ended", "trial": ticket.trial_number, "outcome": PRUNED}
        _log.info("paused trial %s is pruned, for its checkpoint's disk", ticket.trial_number, extra=extra)
        return True

    def drop(self, ticket: HeldTicket) -> None:
        """Drop what was computed for a ticket that another worker has: what it had reported is that one's start."""
        for now in list_tickets(self.storage, self.info.ref):
            if now.number == ticket.number:
                self.checkpoints.remove_unreported(ticket, self._known(now)[0], now.checkpoint)

    def sweep(self) -> None:
        """Remove the checkpoints and weights of ended trials whose worker died before it could.

        Each worker does so at the end; the trials are read only where a file is there that may have to go.
        """
        paths = self.checkpoints.of_study(self.info.ref.key)
        with contextlib.suppress(ArtifactsError):
            paths += self.checkpoints.shared_of_study(self.info.ref.key)
        kept = {named_in(WEIGHTS, model) for model in models_beyond(self.storage, self.info.ref, 0)}
        names = self.weights.names(self.info.ref.key[:SHORT]) - kept
        if not paths and not names:
            return
        trials = self.study.get_trials(deepcopy=False)
        belonging = Belonging(self.storage, self.info, list_tickets(self.storage, self.info.ref), trials)
        for path in dict.fromkeys(paths):
            if belonging.of_checkpoint(path) == LEFT:
                self.checkpoints.discard(path)
        for name in names:
            if belonging.of_weights(self.weights.folder / name) == LEFT:
                self.weights.remove(self.weights.folder / name)

    def tell_of_others(self) -> None:
        """Say so where files are newer than the store's rows, or of other trainings: it was restored, or copied."""
        if others := others_in(self.storage, self.info, self.weights.folder.parent):
            _log.warning("%s", others_sentence(others), extra={"event": "newer_files"})


def _verdict(ticket: HeldTicket) -> str:
    """Return why a ticket's trial is not to be tried again, "" where it is."""
    if ticket.memory_failures >= _MOST_MEMORY_FAILURES:
        return "infeasible"
    if ticket.stalls >= _MOST_STALLS:
        return f"it made no step for too long, {ticket.stalls} times"
    if ticket.deaths >= _MOST_DEATHS:
        return f"its worker died {ticket.deaths} times in a row without a new checkpoint"
    return ""


def _template(info: StudyInfo, ticket: HeldTicket) -> FrozenTrial:
    """Make the trial that a ticket creates: its fixed values, and where it comes from."""
    attributes: dict[str, Any] = {"ticket": ticket.number, "origin": ticket.origin, "sampler": ticket.sampler}
    if ticket.retry_of is not None:
        attributes[FROM] = f"{info.ref.name}/{ticket.retry_of}"
    return create_trial(
        state=TrialState.RUNNING,
        params=ticket.fixed,
        distributions={path: distribution(info.spec.open[path]) for path in ticket.fixed},
        user_attrs=attributes,
    )


class Trial:
    """One trial while it runs: it takes the events of its training, and answers with its outcome once it has ended.

    `begin` comes first, then `take` with each event of `events`, then `complete`; an error goes to `fail`.
    """

    def __init__(
        self,
        runner: TrialRunner,
        trial: optuna.Trial,
        ticket: HeldTicket,
        found: Found,
        verdict: str,
    ) -> None:
        self.runner = runner
        self.study = runner.study
        self.trial = trial
        self.ticket = ticket
        self.saved = found.checkpoint
        self.verdict = verdict  # why it is not to be tried again; "": it is
        self.config: RunConfig | None = None  # closed once it has started
        self.digest = ""  # of its closed config and the text
        self.rows: list[EpochRow] = list(self.saved.epochs) if self.saved else []
        self.best_model = self._best_of(found)
        self.disk_warned = False
        self.reported: set[int] = set()  # epochs that the store has

    def _best_of(self, found: Found) -> Path | None:
        """Find the weights that a checkpoint names, which may lie beside it in another folder of this host.

        Raises `ArtifactsError`.
        """
        name = found.checkpoint.best_model if found.checkpoint else None
        said = read_name(WEIGHTS, name) if name else None
        if name is None or said is None or (said.key, said.number) != (self._stem, self.trial.number):
            return None
        return self.runner.weights.find(name, [] if found.models is None else [found.models])

    @property
    def _stem(self) -> str:
        # Two stores may have a study of the same name, and then share its folder.
        return self.ticket.study_key[:SHORT]

    def begin(self) -> str | None:
        """Draw its values, and report what its checkpoint knows; the outcome where that ends it already."""
        if self.verdict:
            return self._abandon(self.verdict)
        self.runner.trainer.begin_measuring()
        self.config = self._closed()
        return self._catch_up()

    def events(self) -> Iterator[Event]:
        """Train from where it was saved, or from the beginning."""
        assert self.config is not None, "begin comes first"
        return self.runner.trainer.train(self.config, self.runner.corpus, self.saved.state if self.saved else None)

    def take(self, event: Event, control: Control) -> str | None:
        """Take note of an event, saving and reporting an epoch; the outcome where the trial ends with it.

        Raises `ReleasedError` once it is saved and requeued, and `LeaseLostError`.
        """
        if isinstance(event, Epoch):
            return self._epoch(event, control)
        control.progress(event)
        try:
            control.check()
        except ReleasedError:
            self._release(event)
            raise
        return None

    def fail(self, error: Exception) -> str:
        """End the trial for an error that is nobody's input; raises `OutOfMemoryError` where it is retried."""
        if isinstance(error, KeyError):  # what Optuna raises where the study is gone
            check_study(self.runner.storage, self.runner.info.ref)
        if self.runner.trainer.is_out_of_memory(error):
            return self._memory_failed(self.runner.trainer.peak_memory())
        return self._failed(f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))

    def _memory_failed(self, peak: int) -> str:
        """Requeue the trial to run alone on its device; the second time it is infeasible."""
        if self.ticket.memory_failures + 1 >= _MOST_MEMORY_FAILURES:
            return self._infeasible(peak)
        self.runner.storage.release(self.ticket, None, None, "memory", peak)
        raise OutOfMemoryError(
            f"trial {self.trial.number} ran out of memory at {peak / 1e6:,.0f} MB; "
            f"it is retried alone on {self.runner.trainer.name}"
        )

    def _abandon(self, verdict: str) -> str:
        """End the trial without training it: for what happened to its earlier attempts, or since it was paused."""
        if verdict == PRUNED:
            return self._end(PRUNED, state=TrialState.PRUNED)
        if verdict == "infeasible":
            self._closed()  # the sampler learns from its values
            return self._infeasible(self.ticket.peak_memory or 0)
        return self._failed(verdict, verdict)

    def _infeasible(self, peak: int) -> str:
        self.trial.set_constraint("memory", 1.0)
        self.trial.set_user_attr("reason", "infeasible")
        self.trial.set_user_attr("peak_memory", peak)
        return self._end("infeasible", state=TrialState.PRUNED)

    def _closed(self) -> RunConfig:
        size = len(self.runner.corpus.vocabulary)
        config = self.runner.info.spec.close(suggest(self.trial, self.runner.info.spec), size)
        self.digest = config.digest(self.runner.info.fingerprint)
        if "parameters" not in self.trial.user_attrs:
            self.trial.set_user_attr("parameters", config.model.count_parameters(size))
        return config

    def _catch_up(self) -> str | None:
        """Report the epochs that the checkpoint has and the store lacks, and decide on the last of them."""
        self.reported |= self.runner.storage.get_trial(self.trial._trial_id).intermediate_values.keys()
        for row in self.rows:
            if row.epoch not in self.reported:
                self._report(row, Progress(epoch=row.epoch, step=0, tokens_per_second=None), None)
        # Its owner may have died between an epoch's report and what followed from it.
        return self._decide(self.rows[-1]) if self.saved and self.saved.at_epoch_end else None

    def _release(self, event: Step) -> None:
        """Save in mid-epoch and release the ticket, with the key of the file."""
        progress = Progress(epoch=len(self.rows), step=event.step, tokens_per_second=None)
        key = self._save(event.epoch, event)
        self.runner.storage.release(self.ticket, key, progress)

    def _epoch(self, event: Epoch, control: Control) -> str | None:
        """Save and report one epoch: first the files, then one transaction; return the outcome if it is the end."""
        row = EpochRow(
            epoch=event.number,
            train_loss=event.train_loss,
            valid_loss=event.valid_loss,
            seconds=event.seconds,
            tokens=event.tokens,
            learning_rate=event.learning_rate,
            ended=time.time(),
        )
        previous = self.best_model
        if not diverged(row.valid_loss, self._words) and row.valid_loss < min(
            (r.valid_loss for r in self.rows if math.isfinite(r.valid_loss)), default=math.inf
        ):
            saved = self._on_disk(lambda: self._save_model(event))
            self.best_model = None if saved is None else self.runner.weights.folder / saved
        self._on_disk(self.runner.weights.share)
        self.rows.append(row)
        progress = control.progress(event)
        self._report(row, progress, self._save(event.number, event))
        if previous is not None and previous != self.best_model:
            self.runner.weights.remove(previous)
        _log.info(
            "trial %d: epoch %d, perplexity %.2f",
            self.trial.number,
            row.epoch,
            event.valid_perplexity,
            extra={"event": "epoch", "trial": self.trial.number, **asdict(row)},
        )
        return self._decide(row)

    def _save(self, epoch: int, event: Event) -> str | None:
        state = event.state().to_bytes()
        checkpoint = Checkpoint(
            epochs=tuple(self.rows),
            best_model=None if self.best_model is None else self.best_model.name,
            at_epoch_end=isinstance(event, Epoch),
            state=state,
            digest=self.digest,
        )
        key = self._on_disk(lambda: self._save_within_quota(epoch, event.step, checkpoint))
        self.disk_warned = key is None
        extra = {"event": "saved", "trial": self.trial.number, "epoch": epoch, "step": event.step, "checkpoint": key}
        _log.debug("trial %d: saved in epoch %d at step %d", self.trial.number, epoch, event.step, extra=extra)
        return key

    def _save_within_quota(self, epoch: int, step: int, checkpoint: Checkpoint) -> str:
        """Save a checkpoint; where the quota is reached, paused trials give way, the least promising first."""
        while True:
            try:
                return self.runner.checkpoints.save(self.ticket, epoch, step, checkpoint)
            except OSError as error:
                pausing = pauses(self.runner.info.spec, self.ticket.pruner)
                if error.errno != errno.EDQUOT or not pausing or not self.runner.end_least_promising():
                    raise

    def _on_disk(self, write: Callable[[], str]) -> str | None:
        """Write a file; a full disk costs the file, not the trial, and is reported once."""
        try:
            written = write()
        except OSError as error:
            if not self.disk_warned:
                extra = {"event": "disk", "trial": self.trial.number}
                _log.warning("%s; training continues without new checkpoints", error, extra=extra)
            self.disk_warned = True
            return None
        return written

    def _save_model(self, event: Epoch) -> str:
        assert self.config is not None
        name = f"{self._stem}-trial-{self.trial.number}-{self.digest[:SHORT]}-epoch-{event.number}"
        name += f"-lease-{self.ticket.lease}"
        corpus = self.runner.corpus
        metrics = stamp("model") | {
            "study_key": self.ticket.study_key,
            "trial": self.trial.number,
            "digest": self.digest,
            "valid_loss": event.valid_loss,
            "valid_known_loss": event.valid_known_loss,
            "epoch": event.number,
            "corpus": corpus.fingerprint,
        }
        folder = self.runner.weights.folder
        make_folder(folder)
        self.runner.trainer.save_model(folder / name, event, self.config, corpus, metrics)
        self.runner.weights.add(name)
        return name

    def _report(self, row: EpochRow, progress: Progress, key: str | None) -> None:
        value = reported_value(row.valid_loss, self._words)
        with self.runner.storage.reporting(row, progress, key):
            if row.epoch in self.reported:
                # Trained again, since no checkpoint had it; Optuna's report would pass over it, and over the new file.
                self.runner.storage.set_trial_intermediate_value(self.trial._trial_id, row.epoch, value)
            else:
                self.trial.report(value, row.epoch)
        self.reported.add(row.epoch)

    @property
    def _words(self) -> int:
        return len(self.runner.corpus.vocabulary)

    def _decide(self, row: EpochRow) -> str | None:
        left = self.runner.info.spec.epochs - row.epoch
        outcome = decide(row.valid_loss, self._words, left, self._judge)
        if outcome == DIVERGED:
            self.trial.set_user_attr("reason", DIVERGED)
        if outcome == PAUSED:
            self._pause(row)
        if outcome == COMPLETE:
            return self.complete()
        return None if outcome is None else self._end(outcome, state=TrialState.PRUNED)

    def _judge(self) -> str | None:
        """Ask the pruner about a trial that has not trained all its epochs."""
        if not pauses(self.runner.info.spec, self.ticket.pruner):
            return PRUNED if self.trial.should_prune() else None
        outcome = self.runner.allocation.judge(self.ticket)
        # Without a checkpoint of this epoch it would lose epochs; one that runs alone keeps others waiting.
        can_pause = not self.disk_warned and not self.ticket.memory_failures
        return None if outcome == PAUSED and not can_pause else outcome

    def _pause(self, row: EpochRow) -> None:
        """Release the ticket as paused; raises `PausedError`."""
        self.runner.storage.release(self.ticket, None, None, paused=True)
        raise PausedError(f"trial {self.trial.number} is paused at epoch {row.epoch}")

    def complete(self) -> str:
        """End the trial after its last epoch."""
        if self.best_model is not None and self.best_model.exists():
            self._on_disk(self.runner.weights.share)
            self.trial.set_user_attr("model", str(HostPath(self.runner.checkpoints.host, self.best_model)))
            try:
                sample = self.runner.trainer.sample(self.best_model, _SAMPLE_WORDS)
            except LmsearchError as error:  # the trial has trained, whatever became of its weights since
                extra = {"event": "no_sample", "trial": self.trial.number}
                _log.warning("trial %d gives no sample: %s", self.trial.number, error, extra=extra)
            else:
                self.trial.set_user_attr("sample", sample.text)
                known = sample.metrics.get("valid_known_loss")
                if isinstance(known, float) and known != sample.metrics["valid_loss"]:  # else no word is unknown
                    self.trial.set_user_attr("known_perplexity", perplexity(known))
        return self._end(COMPLETE, value=final_value(row.valid_loss for row in self.rows))

    def _failed(self, reason: str, traceback_text: str) -> str:
        self.trial.set_user_attr("reason", reason[:500])
        self.trial.set_user_attr("traceback", traceback_text[-20_000:])
        return self._end("failed", state=TrialState.FAIL)

    def _end(self, outcome: str, **result: Any) -> str:
        self.study.tell(self.trial, result.get("value"), result.get("state"), skip_if_finished=True)
        if self.digest:
            self.runner.checkpoints.remove(self.ticket, self.digest, self.rows)
        else:  # it was abandoned before its values were read
            self.runner.remove_checkpoints(self.ticket)
        if outcome != COMPLETE and self.best_model is not None:
            self.runner.weights.remove(self.best_model)
        if outcome == COMPLETE:
            keep_best_models(self.runner)
        extra = {"event": "ended", "trial": self.trial.number, "outcome": outcome}
        _log.info("trial %d: %s", self.trial.number, outcome, extra=extra)
        return outcome


def keep_best_models(runner: TrialRunner) -> None:
    """Remove the weights of complete trials that are not among the study's best."""
    names = runner.weights.names(runner.info.ref.key[:SHORT])
    if len(names) <= _KEPT_MODELS:
        return
    surplus = models_beyond(runner.storage, runner.info.ref, _KEPT_MODELS)
    for name in names & {named_in(WEIGHTS, model) for model in surplus}:
        runner.weights.remove(runner.weights.folder / name)
