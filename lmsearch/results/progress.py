"""How far a study is, and who works on it."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lmsearch.results.forecasts import Forecast, paused_forecasts
from lmsearch.store.records import OUTCOMES, StudyRecord
from lmsearch.store.tables import OPEN, Ticket
from lmsearch.store.workers import WorkerRow

_LATELY_SECONDS = 60.0  # twice the usual lease: a worker that was not seen since is not there


def status_document(record: StudyRecord, now: tuple[float, str], workers: Sequence[WorkerRow] = ()) -> dict[str, Any]:
    """Return a study's state as one document; `now` is the clock of leases and the boot that it counts from."""
    best = record.best
    forecasts = paused_forecasts(record)
    return {
        "study": record.info.ref.name,
        "total": record.total,
        "done": record.done,
        "counts": {outcome: record.count(outcome) for outcome in OUTCOMES},
        "best": None if best is None else {"trial": best.number, "perplexity": best.perplexity, "params": best.params},
        "at_work": [holding(ticket, now, forecasts) for ticket in record.tickets if is_started(ticket)],
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


def holding(ticket: Ticket, now: tuple[float, str], forecasts: Mapping[int, Forecast]) -> dict[str, Any]:
    """Return who works on a started ticket, and how far it is, as plain values."""
    running = ticket.is_running
    forecast = None if ticket.trial_number is None else forecasts.get(ticket.trial_number)
    return {
        "trial": ticket.trial_number,
        "state": ticket.state if running or ticket.is_paused else "waiting",
        "worker": ticket.worker if running else None,
        "host": ticket.host,
        "process": ticket.process if running else None,
        "device": ticket.device,
        "epoch": ticket.epoch,
        "step": ticket.step,
        "tokens_per_second": ticket.tokens_per_second,
        "seconds_since_sign_of_life": _silence(ticket, now),
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
        if count := record.count(outcome):
            parts.append(f"{count} {outcome}")
    if (foreign := sum(trial.ticket is None for trial in record.trials)) and not record.info.is_plain:
        parts.append(f"{foreign} taken over")
    if best := record.best:
        parts.append(f"best {best.perplexity:.2f} (trial {best.number})")
    return ", ".join(parts)
