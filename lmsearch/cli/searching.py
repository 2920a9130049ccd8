"""What the commands have in common that start workers and watch them: `run` and `confirm`."""

from typing import TYPE_CHECKING, Any

from lmsearch import stopping
from lmsearch.cli.options import command_text
from lmsearch.terminal import logs
from lmsearch.terminal.output import leave_terminal, say, tolerating_lost_output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lmsearch.launch.supervise import Signals, Snapshot, Supervisor
    from lmsearch.search.start import Prepared
    from lmsearch.store.records import StudyRecord


def output_words(options: dict[str, Any]) -> list[str]:
    """Return the options about what is printed, for the command that resumes."""
    return (["--quiet"] if options["quiet"] else []) + (["--json"] if options["as_json"] else [])


def listen(signals: "Signals", is_cluster: bool = False) -> None:
    """Gather the signals that ask to stop in `signals`; the workers of a cluster outlive the terminal."""
    import os
    import signal

    def act(number: int) -> None:
        if number == signal.SIGHUP:
            leave_terminal()
            if is_cluster:
                os._exit(128 + number)
        if number != stopping.SLURMS or not signals.received:  # a second one would end the workers at once
            signals.received.append(number)

    stopping.listen(act)


def watch(snapshots: "Iterable[Snapshot]", quiet: bool, *looks: "Callable[[StudyRecord], None]") -> "StudyRecord":
    """Draw the search until it ends, let others look at it too, and return the study as it is then."""
    from lmsearch.terminal.live import open_view

    if not quiet:
        logs.write_with(logs.timestamped)
    try:
        with tolerating_lost_output(), open_view(quiet) as view:
            for snapshot in snapshots:
                with tolerating_lost_output():
                    view.show(snapshot)
                for look in looks:
                    look(snapshot.record)
    finally:
        logs.write_with(logs.plain)
    record: StudyRecord = snapshot.record
    return record


def leave_at_work(prepared: "Prepared", supervision: "Supervisor") -> int:
    """Start the workers that are missing, and return at once: they need no parent."""
    name, url = prepared.info.ref.name, prepared.storage.store_url
    started = supervision.detach(prepared.devices)
    with tolerating_lost_output():
        there = len(prepared.devices) - started
        say(f"{started} workers are queued" + (f", {there} are there already" if there else ""))
        for words, what in (("status", "watch them"), ("stop", "stop them"), ("best", "the result")):
            say(f"  {command_text(['lmsearch', words, name], url)}    # {what}")
    return 0


def why_over(prepared: "Prepared") -> str:
    """Return why a search ended that has trials left."""
    from lmsearch.store.tickets import read_stop

    stopped = read_stop(prepared.storage, prepared.info.ref).stopped
    return "stopped by `lmsearch stop`" if stopped else "the time limit is reached"
