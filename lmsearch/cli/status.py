"""`lmsearch status`: a study's progress and its workers."""

import time
from typing import TYPE_CHECKING

import click

from lmsearch.cli.options import (
    command_text,
    json_option,
    open_store,
    parse_storage,
    storage_option,
    study_argument,
    the_study,
)
from lmsearch.terminal.output import draw, say_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from lmsearch.store.records import StudyInfo, StudyRecord
    from lmsearch.store.storage import FencedStorage
    from lmsearch.store.workers import WorkerRow

_WATCH_SECONDS = 2.0


@click.command()
@study_argument(required=False)
@click.option("--watch", is_flag=True, help="Refresh every 2 s until all trials are done or Ctrl-C.")
@storage_option
@json_option
def status(study: str | None, watch: bool, storage: str, store_timeout: float | None, as_json: bool) -> None:
    """Show a study's progress and its workers, and how to resume it if nobody is at work.

    A waiting trial was saved and requeued; the next free worker resumes it before it starts a new one. With one study
    in the store, its name may be left out.

    \b
    Example:
        lmsearch status default --watch
    """
    from lmsearch.results.commands import resume_words
    from lmsearch.results.progress import status_document
    from lmsearch.store.records import open_to_look
    from lmsearch.store.tickets import present, read_stop
    from lmsearch.store.trials import StudyReader
    from lmsearch.store.workers import list_workers

    opened = open_store(storage, store_timeout)
    info = open_to_look(opened, study or the_study(opened))
    reader = StudyReader(opened, info)
    record = reader.read()
    if as_json:
        workers = list_workers(opened, info.ref)
        document = status_document(record, present(opened), workers, read_stop(opened, info.ref))
        queued = _in_queue(record, workers)
        say_json(document | {"queued": queued})
        return
    resume = command_text(resume_words(info), parse_storage(storage))
    if not watch:
        draw(_drawn(opened, info, record, resume))
        return
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        while True:
            live.update(_drawn(opened, info, record, resume), refresh=True)
            if record.done == record.total:
                return
            time.sleep(_WATCH_SECONDS)
            record = reader.read()


def _drawn(storage: "FencedStorage", info: "StudyInfo", record: "StudyRecord", resume: str) -> "RenderableType":
    """Read what else there is to know of a study at this moment, and draw it."""
    from lmsearch.launch.pace import seconds_left
    from lmsearch.results.progress import idle_workers, state_of
    from lmsearch.store.tickets import present, read_stop
    from lmsearch.store.workers import list_workers
    from lmsearch.terminal.status import render_status

    now = present(storage)
    workers = list_workers(storage, info.ref)
    state = state_of(record, now, read_stop(storage, info.ref))
    idle = [f"idle: process {one.process} on {one.host} ({one.device})" for one in idle_workers(record, workers)]
    lines = [*idle, *_in_queue(record, workers)]
    return render_status(record, now, state, seconds_left(record, state.working), resume, lines)


def _in_queue(record: "StudyRecord", workers: "Sequence[WorkerRow]") -> list[str]:
    """Say how many workers of a study with trials left wait in a cluster's queue."""
    from lmsearch.launch.slurm import waiting_lines

    if record.done == record.total:
        return []
    return waiting_lines(record.info.ref.key, any(one.launcher == "slurm" for one in workers))
