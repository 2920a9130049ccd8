"""What the commands have in common that start workers and watch them: `run` and `confirm`."""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmsearch import stopping
from lmsearch.cli.options import WORK_STORE_SECONDS, command_text, timestamped, work_words
from lmsearch.cli.terminal import bearing, leave_terminal, say
from lmsearch.config import BUILT_IN_CORPORA
from lmsearch.folders import study_folder
from lmsearch.processes import python

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lmsearch.launch.supervise import Signals, Supervisor
    from lmsearch.results.reading import Results
    from lmsearch.store.records import StudyInfo, StudyRecord
    from lmsearch.store.storage import FencedStorage
    from lmsearch.store.tables import Ticket
    from lmsearch.text.corpus import Corpus


_PUBLISH_SECONDS = 60.0  # between writings of what the dashboard shows
_SHORT_SECONDS = 10.0  # of a search that draws no plots


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything that is checked and made before the first worker starts."""

    url: Any
    storage: "FencedStorage"
    info: "StudyInfo"
    corpus: "Corpus"
    devices: list[str]
    until: float | None  # monotonic
    options: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Return the folder for the study's files."""
        return study_folder(self.info.ref.name)

    def supervisor(self, signals: "Signals") -> "Supervisor":
        """Return what starts the workers and watches them."""
        import os

        from lmsearch.launch.local import LocalLauncher, worker_environment
        from lmsearch.launch.supervise import Supervisor

        timeout = self.options["store_timeout"]
        return Supervisor(
            self.storage,
            self.info,
            LocalLauncher(self._worker_words, self.folder, worker_environment(os.environ, self.storage.place)),
            signals,
            store_timeout=WORK_STORE_SECONDS if timeout is None else timeout,
            max_failures=self.options["max_failures"],
            say=None if self.options["quiet"] or self.options["as_json"] else timestamped,
        )

    def command(self, words: "Sequence[str]") -> str:
        """Write a command so that a person can copy it, with how it finds the store."""
        return command_text(list(words), self.url)

    def tickets(self) -> list["Ticket"]:
        """List the study's tickets."""
        from lmsearch.store.tickets import list_tickets

        return list_tickets(self.storage, self.info.ref)

    def _worker_words(self, name: str, device: str, pipe: int) -> list[str]:
        words = python("-m", "lmsearch.cli.main", "worker", self.info.ref.name)
        words += ["--name", name, "--device", device, "--parent-pipe", str(pipe)]
        corpus = str(self.options.get("corpus") or self.info.spec.data.corpus)
        if corpus not in BUILT_IN_CORPORA:
            words += ["--corpus", corpus]
        if self.until is not None:
            words += ["--until", f"{max(1.0, self.until - time.monotonic()):.0f}s"]
        return words + work_words(self.options)


def listen(signals: "Signals") -> None:
    """Gather the signals that ask to stop in `signals`."""
    import signal

    def act(number: int) -> None:
        if number != stopping.SLURMS or not signals.received:  # a second one would end the workers at once
            signals.received.append(number)
        if number == signal.SIGHUP:
            leave_terminal()

    stopping.listen(act)


def watch(snapshots: Any, quiet: bool, keeper: "Keeper") -> "StudyRecord":
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

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
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
                self._write(complete(self._setup.storage, record), plots=True)
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
            self._publisher = Publisher(storage=self._setup.storage, command=self._setup.command)
        if not plots:
            self._publisher.publish(results, self._setup.folder)
            return
        from lmsearch.report.figures import make_figure
        from lmsearch.results.reading import with_epochs

        self._publisher.publish(with_epochs(self._setup.storage, results), self._setup.folder, make_figure)


def why_over(setup: Setup) -> str:
    """Say why a search ended that has trials left."""
    from lmsearch.store.tickets import read_stop

    _, stopped = read_stop(setup.storage, setup.info.ref)
    return "stopped by `lmsearch stop`" if stopped else "the time limit is reached"
