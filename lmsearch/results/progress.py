"""How far a study is, and who works on it."""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lmsearch.results.forecasts import Forecast, paused_forecasts
from lmsearch.spelling import count
from lmsearch.store.records import OUTCOMES, StudyRecord, TrialRecord
from lmsearch.store.tables import OPEN, Ticket
from lmsearch.store.tickets import StopState
from lmsearch.store.workers import WorkerRow

_WINDOW = 0.975  # of `train.bptt` in the mean, where the length of a window is drawn: one in twenty has half of it
_LATELY_SECONDS = 60.0  # twice the usual lease: a worker that was not seen since is not there


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a study stands, and how many of its trials are where."""

    name: str  # finished, running, stopping, stopped, or idle: nobody is at work
    stop: StopState
    working: int  # trials under a lease that has not run out
    queued: int  # trials that nobody has started
    waiting: int  # trials that were saved, to be resumed next

    @property
    def can_resume(self) -> bool:
        """Whether a person may want the command that resumes it."""
        return self.name in ("stopped", "idle")

    def __str__(self) -> str:
        left = [f"{self.queued} queued"] if self.queued else []
        left += [f"{self.waiting} waiting to be resumed"] if self.waiting else []
        match self.name:
            case "finished":
                return "finished"
            case "running":
                return ", ".join([f"{count(self.working, 'trial')} running", *left])
            case "stopping":
                return f"being stopped{self._when}: {count(self.working, 'trial')} left to save"
            case "stopped":
                return ", ".join([f"stopped by `lmsearch stop`{self._when}", *left, "nobody is working"])
            case _:
                return ", ".join(["nobody is working", *left])

    @property
    def _when(self) -> str:
        if self.stop.at is None:
            return ""
        at = datetime.fromtimestamp(self.stop.at)
        return f" at {at:%H:%M}" if at.date() == datetime.now().date() else f" on {at:%Y-%m-%d at %H:%M}"


def state_of(record: StudyRecord, now: tuple[float, str], stop: StopState) -> State:
    """Return where a study stands; `now` is the clock of leases and the boot that it counts from."""
    working = sum(ticket.is_leased(*now) for ticket in record.tickets)
    if record.done == record.total:
        name = "finished"
    elif stop.stopped:
        name = "stopping" if working else "stopped"
    else:
        name = "running" if working else "idle"
    untouched = [ticket for ticket in record.tickets if ticket.state == OPEN]
    return State(
        name=name,
        stop=stop,
        working=working,
        queued=sum(ticket.trial_number is None for ticket in untouched),
        waiting=sum(ticket.trial_number is not None for ticket in untouched),
    )


def epochs_done(record: StudyRecord, ticket: Ticket, trial: TrialRecord | None, later: float = 0.0) -> float:
    """Return how many epochs a started trial has behind it, the part of the one that runs included.

    `later` are seconds since its last heartbeat, in which a running one trained at the speed that it had. Whole epochs
    where the store does not know the size of the text.
    """
    info = record.info
    if trial is None or info.is_plain or info.train_tokens is None:
        return float(ticket.epoch)
    values = {path: info.spec.value(path, trial.params) for path in ("train.batch_size", "train.bptt")}
    window = float(values["train.bptt"])
    if info.spec.value("train.variable_bptt", trial.params):
        window *= _WINDOW
    steps = info.train_tokens / float(values["train.batch_size"]) / window
    part = ticket.step / max(1.0, steps) - ticket.epoch if ticket.step else 0.0
    if ticket.is_running and ticket.tokens_per_second:
        part = max(0.0, part) + later * ticket.tokens_per_second / info.train_tokens
    return ticket.epoch + min(max(part, 0.0), 0.99)


def spell_epochs(done: float, whole: int) -> str:
    """Write how many of so many epochs are done: 3/8, and 3.4/8 in the middle of one."""
    return f"{done:.0f}/{whole}" if done == int(done) else f"{math.floor(10 * done) / 10:.1f}/{whole}"


def status_document(
    record: StudyRecord,
    now: tuple[float, str],
    workers: Sequence[WorkerRow] = (),
    stop: StopState = StopState(),  # noqa: B008  (frozen)
) -> dict[str, Any]:
    """Return a study's state as one document; `now` is the clock of leases and the boot that it counts from."""
    best = record.best
    state = state_of(record, now, stop)
    return {
        "study": record.info.ref.name,
        "total": record.total,
        "done": record.done,
        "state": state.name,
        "stopped_at": stop.at if stop.stopped else None,
        "not_started": state.queued,
        "counts": {outcome: record.count(outcome) for outcome in OUTCOMES},
        "best": None if best is None else {"trial": best.number, "perplexity": best.perplexity, "params": best.params},
        "at_work": started_rows(record, now),
        "workers": [dataclasses.asdict(worker) for worker in workers],
    }


def idle_workers(record: StudyRecord, workers: Sequence[WorkerRow]) -> list[WorkerRow]:
    """List the workers that were seen lately and hold no trial."""
    busy = {ticket.worker for ticket in record.tickets if ticket.is_running}
    lately = time.time() - _LATELY_SECONDS
    return [one for one in workers if one.ended is None and one.seen > lately and one.name not in busy]


def is_started(ticket: Ticket) -> bool:
    """Whether a ticket's trial runs, is paused, or waits to be resumed."""
    return ticket.is_running or ticket.is_paused or (ticket.state == OPEN and ticket.trial_number is not None)


def started_rows(record: StudyRecord, now: tuple[float, str]) -> list[dict[str, Any]]:
    """Return who works on each started ticket, and how far it is, as plain values."""
    forecasts = paused_forecasts(record)
    trials = {trial.number: trial for trial in record.trials}
    return [_row(record, ticket, trials, forecasts, now) for ticket in record.tickets if is_started(ticket)]


def _row(
    record: StudyRecord,
    ticket: Ticket,
    trials: Mapping[int, TrialRecord],
    forecasts: Mapping[int, Forecast],
    now: tuple[float, str],
) -> dict[str, Any]:
    running = ticket.is_running
    trial = None if ticket.trial_number is None else trials.get(ticket.trial_number)
    forecast = None if trial is None else forecasts.get(trial.number)
    silence = _silence(ticket, now)
    return {
        "trial": ticket.trial_number,
        "state": ticket.state if running or ticket.is_paused else "waiting",
        "worker": ticket.worker if running else None,
        "host": ticket.host,
        "process": ticket.process if running else None,
        "device": ticket.device,
        "epoch": ticket.epoch,
        "epochs_done": epochs_done(record, ticket, trial, silence or 0.0),
        "perplexity": trial.perplexity if trial is not None and trial.curve else None,
        "step": ticket.step,
        "tokens_per_second": ticket.tokens_per_second,
        "seconds_since_sign_of_life": silence,
        "attempts": ticket.attempts,
        "alone": ticket.memory_failures == 1,
        "forecast": None if forecast is None else [forecast.low, forecast.high],
    }


def _silence(ticket: Ticket, now: tuple[float, str]) -> float | None:
    """Return the seconds since a ticket's last heartbeat; None where the clock has restarted since."""
    if ticket.seen is None or ticket.boot != now[1]:
        return None
    return max(0.0, now[0] - ticket.seen)


def count_line(record: StudyRecord) -> str:
    """Return in one line how far a study is."""
    if record.info.is_plain:
        parts = [f"{record.info.ref.name} (of another program): {len(record.trials)} trials"]
    else:
        parts = [f"{record.info.ref.name}: {record.done} of {record.total} trials"]
    for outcome in OUTCOMES:
        if number := record.count(outcome):
            parts.append(f"{number} {outcome}")
    if (foreign := sum(trial.ticket is None for trial in record.trials)) and not record.info.is_plain:
        parts.append(f"{foreign} taken over")
    if best := record.best:
        parts.append(f"best {best.perplexity:.2f} (trial {best.number})")
    return ", ".join(parts)
