"""What the commands have in common that start workers and watch them: `run` and `confirm`."""

import contextlib
import functools
import time
from typing import TYPE_CHECKING, Any

from lmsearch import stopping
from lmsearch.cli import logs
from lmsearch.cli.options import command_text
from lmsearch.cli.terminal import bearing, leave_terminal, say

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lmsearch.launch.supervise import Signals, Snapshot
    from lmsearch.results.reading import Results
    from lmsearch.search.start import Prepared
    from lmsearch.store.records import StudyRecord


_PUBLISH_SECONDS = 60.0  # between writings of what the dashboard shows
_SHORT_SECONDS = 10.0  # of a search that draws no plots


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
    with bearing(), open_view(quiet) as view:
        for snapshot in snapshots:
            with bearing():
                view.show(snapshot)
            keeper.look(snapshot.record)
    record: StudyRecord = snapshot.record
    return record


class Keeper:
    """Updates notes and plots in the store, at most once a minute, and more seldom if that takes long."""

    def __init__(self, prepared: "Prepared") -> None:
        self._prepared = prepared
        self._began = time.monotonic()
        self._next = self._began + _PUBLISH_SECONDS
        self._publisher: Any = None
        self._complained = False

    def look(self, record: "StudyRecord") -> None:
        """Write what has changed, if it is time."""
        from lmsearch.results.reading import complete

        if time.monotonic() >= self._next:
            began = time.monotonic()
            with self._bearing():
                self._write(complete(self._prepared.storage, record), plots=True)
            self._next = time.monotonic() + max(_PUBLISH_SECONDS, 30 * (time.monotonic() - began))

    def end(self, results: "Results", interrupted: bool) -> None:
        """Write how it ended; plots only where somebody may have looked at them, and nobody waits for the end."""
        with self._bearing():
            self._write(results, plots=not interrupted and time.monotonic() - self._began > _SHORT_SECONDS)

    @contextlib.contextmanager
    def _bearing(self) -> "Iterator[None]":
        """Leave what the dashboard shows as it is where it cannot be written: that costs no search its life.

        Where the store is gone, the launcher finds out, and says so.
        """
        from lmsearch.errors import StoreGoneError

        try:
            yield
        except (StoreGoneError, KeyError):
            pass
        except Exception as error:
            if not self._complained:
                self._complained = True
                say(f"warning: notes and plots for the dashboard cannot be written: {error!r}", err=True)

    def _write(self, results: "Results", plots: bool) -> None:
        from lmsearch.report.publishing import Publisher

        if self._publisher is None:
            self._publisher = Publisher(
                storage=self._prepared.storage,
                command=functools.partial(command_text, url=self._prepared.storage.place),
            )
        if not plots:
            self._publisher.publish(results, self._prepared.folder)
            return
        from lmsearch.report.figures import dashboard_figures
        from lmsearch.results.reading import with_epochs

        self._publisher.publish(
            with_epochs(self._prepared.storage, results), self._prepared.folder, dashboard_figures()
        )


def why_over(prepared: "Prepared") -> str:
    """Say why a search ended that has trials left."""
    from lmsearch.store.tickets import read_stop

    _, stopped = read_stop(prepared.storage, prepared.info.ref)
    return "stopped by `lmsearch stop`" if stopped else "the time limit is reached"
