"""`lmsearch status`: a study's progress and its workers."""

import time
from typing import TYPE_CHECKING

import click

from lmsearch.cli.options import json_option, open_store, storage_option
from lmsearch.escapes import shown
from lmsearch.spelling import spell_seconds
from lmsearch.terminal.output import draw, say, say_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from lmsearch.store.records import StudyRecord
    from lmsearch.store.storage import FencedStorage
    from lmsearch.store.workers import WorkerRow

_WATCH_SECONDS = 2.0


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
    from lmsearch.launch.slurm import waiting_lines
    from lmsearch.results.progress import status_document
    from lmsearch.store.records import open_to_look
    from lmsearch.store.trials import StudyReader
    from lmsearch.store.workers import list_workers

    opened = open_store(storage, store_timeout)
    info = open_to_look(opened, study)
    reader = StudyReader(opened, info)
    record = reader.read()
    workers = list_workers(opened, info.ref)
    unfinished = record.done < record.total
    queued = waiting_lines(info.ref.key, any(one.launcher == "slurm" for one in workers)) if unfinished else []
    if as_json:
        say_json(status_document(record, _now(opened), workers) | {"queued": queued})
        return
    if not watch:
        draw(render_status(record, _now(opened), workers))
        for line in queued:
            say(line)
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


def render_status(
    record: "StudyRecord", now: tuple[float, str], workers: "Sequence[WorkerRow]" = ()
) -> "RenderableType":
    """Draw the counts, a row for each trial that runs or waits, what is paused, and the workers that have none."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from lmsearch.results.forecasts import paused_forecasts
    from lmsearch.results.progress import count_line, holding, idle_workers, is_started

    forecasts = paused_forecasts(record)
    held = [holding(ticket, now, forecasts) for ticket in record.tickets if is_started(ticket) and not ticket.is_paused]
    line = Text(shown(count_line(record)))
    idle = [
        Text(shown(f"idle: process {one.process} on {one.host} ({one.device})"))
        for one in idle_workers(record, workers)
    ]
    paused = [Text(f"trial {number} {forecast}") for number, forecast in sorted(forecasts.items())]
    if not held:
        return Group(line, *paused, *idle)
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
    return Group(line, rows, *paused, *idle)
