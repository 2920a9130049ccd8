"""`lmsearch top`."""

import click

from lmsearch.cli.options import open_store, storage_option, study_argument, the_study


@click.command()
@study_argument(required=False)
@storage_option
def top(study: str | None, storage: str, store_timeout: float | None) -> None:
    """Watch a study on the whole terminal: its best trials, curves, workers, and the log of the chosen trial's worker.

    It only looks: the search neither needs nor notices it. The arrow keys choose a trial, q leaves. Install what it
    needs with pip install 'lmsearch[top]'.

    \b
    Example:
        lmsearch top default
    """
    import sys

    from lmsearch.errors import ConfigError
    from lmsearch.extras import load
    from lmsearch.folders import study_folder
    from lmsearch.launch.pace import seconds_left
    from lmsearch.results.progress import state_of
    from lmsearch.store.records import open_to_look
    from lmsearch.store.tickets import present, read_stop
    from lmsearch.store.trials import StudyReader
    from lmsearch.store.workers import list_workers

    load("textual", "top")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("lmsearch top needs a terminal; elsewhere: lmsearch status --watch")
    from lmsearch.terminal.top import Moment, StudyTop

    opened = open_store(storage, store_timeout)
    info = open_to_look(opened, study or the_study(opened))
    reader = StudyReader(opened, info)

    def read() -> Moment:
        record = reader.read(epochs=True)
        now = present(opened)
        state = state_of(record, now, read_stop(opened, info.ref))
        left = seconds_left(record, state.working)
        return Moment(record=record, state=state, now=now, workers=list_workers(opened, info.ref), seconds_left=left)

    StudyTop(read, study_folder(info.ref.name)).run()
