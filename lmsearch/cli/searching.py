"""What the commands have in common that start workers and watch them: `run` and `confirm`."""

from typing import TYPE_CHECKING, Any

from lmsearch import stopping
from lmsearch.cli import logs
from lmsearch.cli.terminal import leave_terminal, tolerating_lost_output

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lmsearch.launch.supervise import Signals, Snapshot
    from lmsearch.report.keeping import Keeper
    from lmsearch.search.start import Prepared
    from lmsearch.store.records import StudyRecord


def output_words(options: dict[str, Any]) -> list[str]:
    """Return the options about what is printed, for the command that resumes."""
    return (["--quiet"] if options["quiet"] else []) + (["--json"] if options["as_json"] else [])


def listen(signals: "Signals") -> None:
    """Gather the signals that ask to stop in `signals`."""
    import signal

    def act(number: int) -> None:
        if number != stopping.SLURMS or not signals.received:  # a second one would end the workers at once
            signals.received.append(number)
        if number == signal.SIGHUP:
            leave_terminal()

    stopping.listen(act)


def watch(snapshots: "Iterable[Snapshot]", quiet: bool, keeper: "Keeper") -> "StudyRecord":
    """Draw the search until it ends, keep the dashboard's notes current, and return the study as it is then."""
    from lmsearch.cli.live import open_view

    if not quiet:
        logs.write_with(logs.timestamped)
    try:
        with tolerating_lost_output(), open_view(quiet) as view:
            for snapshot in snapshots:
                with tolerating_lost_output():
                    view.show(snapshot)
                keeper.look(snapshot.record)
    finally:
        logs.write_with(logs.plain)
    record: StudyRecord = snapshot.record
    return record


def why_over(prepared: "Prepared") -> str:
    """Return why a search ended that has trials left."""
    from lmsearch.store.tickets import read_stop

    _, stopped = read_stop(prepared.storage, prepared.info.ref)
    return "stopped by `lmsearch stop`" if stopped else "the time limit is reached"
