"""What the commands have in common that start workers and watch them: `run` and `confirm`."""

import contextlib
import functools
import time
from typing import TYPE_CHECKING, Any

from lmsearch import stopping
from lmsearch.cli.options import WORK_STORE_SECONDS, command_text, timestamped
from lmsearch.cli.terminal import bearing, leave_terminal, say
from lmsearch.config import BUILT_IN_CORPORA
from lmsearch.processes import python

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lmsearch.launch.supervise import Signals, Snapshot, Supervisor
    from lmsearch.results.reading import Results
    from lmsearch.search.start import Prepared
    from lmsearch.store.records import StudyRecord


_PUBLISH_SECONDS = 60.0  # between writings of what the dashboard shows
_SHORT_SECONDS = 10.0  # of a search that draws no plots


def supervisor(prepared: "Prepared", signals: "Signals", quiet: bool) -> "Supervisor":
    """Return what starts the workers of a search on this host and watches them."""
    import os

    from lmsearch.launch.local import LocalLauncher, worker_environment
    from lmsearch.launch.supervise import Supervisor

    def words(name: str, device: str, pipe: int) -> list[str]:
        return python("-m", "lmsearch.cli.main", "worker", *worker_words(prepared, name, device, pipe))

    work, environment = prepared.work, worker_environment(os.environ, prepared.storage.place)
    return Supervisor(
        prepared.storage,
        prepared.info,
        LocalLauncher(words, prepared.folder, environment),
        signals,
        store_timeout=WORK_STORE_SECONDS if work.store_timeout is None else work.store_timeout,
        max_failures=work.max_failures,
        say=None if quiet else timestamped,
    )


def worker_words(prepared: "Prepared", name: str, device: str, pipe: int) -> list[str]:
    """Return the arguments of `lmsearch worker` for one worker of a search."""
    words = [prepared.info.ref.name, "--name", name, "--device", device, "--parent-pipe", str(pipe)]
    corpus = prepared.text or prepared.info.spec.data.corpus
    words += [] if corpus in BUILT_IN_CORPORA else ["--corpus", corpus]
    if prepared.until is not None:
        words += ["--until", f"{max(1.0, prepared.until - time.monotonic()):.0f}s"]
    return words + prepared.work.words()


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
        from lmsearch.report.figures import make_figure
        from lmsearch.results.reading import with_epochs

        self._publisher.publish(with_epochs(self._prepared.storage, results), self._prepared.folder, make_figure)


def why_over(prepared: "Prepared") -> str:
    """Say why a search ended that has trials left."""
    from lmsearch.store.tickets import read_stop

    _, stopped = read_stop(prepared.storage, prepared.info.ref)
    return "stopped by `lmsearch stop`" if stopped else "the time limit is reached"
