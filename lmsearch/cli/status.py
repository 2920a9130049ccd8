"""`lmsearch status`: a study's progress and its workers."""

import time
from typing import TYPE_CHECKING, Any

import click

from lmsearch.cli.options import json_option, open_store, storage_option
from lmsearch.cli.terminal import draw, say_json
from lmsearch.escapes import shown
from lmsearch.spelling import spell_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from lmsearch.store.records import StudyRecord
    from lmsearch.store.storage import FencedStorage
    from lmsearch.store.tables import Ticket
    from lmsearch.store.workers import WorkerRow

_WATCH_SECONDS = 2.0
_LATELY_SECONDS = 60.0  # twice the usual lease: a worker that was not seen since is not there


@click.command()
@click.argument("study")
@click.option("--watch", is_flag=True, help="Refresh every 2 s until all trials are done or Ctrl-C.")
@storage_option
@json_option
def status(study: str, watch: bool, storage: str, store_timeout: float | None, as_json: bool) -> None:
    """Show a study's progress and its workers.

    A waiting trial was saved and requeued; the next free worker resumes it before it starts a new one.

    \b
    Example:
        lmsearch status default --watch
    """
    from lmsearch.store.records import open_to_look
    from lmsearch.store.trials import StudyReader
    from lmsearch.store.workers import list_workers

    opened = open_store(storage, store_timeout)
    info = open_to_look(opened, study)
    reader = StudyReader(opened, info)
    record = reader.read()
    workers = list_workers(opened, info.ref)
    if as_json:
        say_json(status_document(record, _now(opened), workers))
        return
    if not watch:
        draw(render_status(record, _now(opened), workers))
        return
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        while True:
            live.update(render_status(record, _now(opened), list_workers(opened, info.ref)), refresh=True)
            if record.done == record.total:
                return
            time.sleep(_WATCH_SECONDS)
            record = reader.read()


def _now(storage: "FencedStorage") -> tuple[float, str]:
    from lmsearch.store.tickets import present

    return present(storage)


def status_document(
    record: "StudyRecord", now: tuple[float, str], workers: "Sequence[WorkerRow]" = ()
) -> dict[str, Any]:
    """Return a study's state as one document; `now` is the clock of leases and the boot that it counts from."""
    import dataclasses

    from lmsearch.store.records import OUTCOMES

    best = record.best
    return {
        "study": record.info.ref.name,
        "total": record.total,
        "done": record.done,
        "counts": {outcome: record.count(outcome) for outcome in OUTCOMES},
        "best": None if best is None else {"trial": best.number, "perplexity": best.perplexity, "params": best.params},
        "at_work": [_holding(ticket, now) for ticket in record.tickets if _begun(ticket)],
        "workers": [dataclasses.asdict(worker) for worker in workers],
    }


def _idle(record: "StudyRecord", workers: "Sequence[WorkerRow]") -> "list[WorkerRow]":
    """List the workers that were seen lately and hold no trial."""
    busy = {ticket.worker for ticket in record.tickets if ticket.state == "running"}
    lately = time.time() - _LATELY_SECONDS
    return [one for one in workers if one.ended is None and one.seen > lately and one.name not in busy]


def _begun(ticket: "Ticket") -> bool:
    return ticket.state == "running" or (ticket.state == "open" and ticket.trial_number is not None)


def _holding(ticket: "Ticket", now: tuple[float, str]) -> dict[str, Any]:
    running = ticket.state == "running"
    return {
        "trial": ticket.trial_number,
        "state": "running" if running else "waiting",
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
    }


def _silence(ticket: "Ticket", now: tuple[float, str]) -> float | None:
    """Return the seconds since a ticket's last heartbeat; None where the clock has restarted since."""
    if ticket.seen is None or ticket.boot != now[1]:
        return None
    return max(0.0, now[0] - ticket.seen)


def count_line(record: "StudyRecord") -> str:
    """Say in one line how far a study is."""
    if record.info.is_plain:
        parts = [f"{record.info.ref.name} (of another program): {len(record.trials)} trials"]
    else:
        parts = [f"{record.info.ref.name}: {record.done} of {record.total} trials"]
    for outcome in ("complete", "pruned", "diverged", "infeasible", "failed", "running", "waiting"):
        if count := record.count(outcome):
            parts.append(f"{count} {outcome}")
    if (foreign := sum(trial.ticket is None for trial in record.trials)) and not record.info.is_plain:
        parts.append(f"{foreign} taken over")
    if best := record.best:
        parts.append(f"best {best.perplexity:.2f} (trial {best.number})")
    return ", ".join(parts)


def render_status(
    record: "StudyRecord", now: tuple[float, str], workers: "Sequence[WorkerRow]" = ()
) -> "RenderableType":
    """Draw the counts, then a row for each trial that runs or waits, then the workers that have none."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    held = [_holding(ticket, now) for ticket in record.tickets if _begun(ticket)]
    line = Text(shown(count_line(record)))
    idle = [Text(shown(f"idle: process {one.process} on {one.host} ({one.device})")) for one in _idle(record, workers)]
    if not held:
        return Group(line, *idle)
    rows = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in ("trial", "state", "host", "process", "device", "epoch", "step", "tokens/s", "last seen", "attempts"):
        left = name in ("state", "host", "device")
        rows.add_column(name, justify="left" if left else "right", overflow="fold" if left else "ellipsis")
    for row in held:
        speed, silence = row["tokens_per_second"], row["seconds_since_sign_of_life"]
        running = row["state"] == "running"
        rows.add_row(
            "-" if row["trial"] is None else str(row["trial"]),
            row["state"] + (" (alone)" if row["alone"] else ""),
            shown(row["host"] or ""),
            str(row["process"] or ""),
            shown(row["device"] or ""),
            f"{row['epoch']}/{record.info.spec.epochs}",
            str(row["step"]),
            "" if speed is None or not running else f"{speed:,.0f}",
            "" if silence is None else f"{spell_seconds(silence)} ago",
            str(row["attempts"]),
        )
    return Group(line, rows, *idle)
