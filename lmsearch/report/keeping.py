"""The dashboard's notes and plots of a study, kept current while it is searched."""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lmsearch.errors import StoreGoneError
from lmsearch.results.commands import Command
from lmsearch.results.reading import Results, complete, with_epochs
from lmsearch.store.records import StudyRecord
from lmsearch.store.storage import FencedStorage

if TYPE_CHECKING:
    from lmsearch.report.publishing import Publisher

_log = logging.getLogger(__name__)

_PUBLISH_SECONDS = 60.0  # between writings of what the dashboard shows
_SHORT_SECONDS = 10.0  # of a search that draws no plots


class Keeper:
    """Updates notes and plots in the store, at most once a minute, and more seldom if that takes long."""

    def __init__(self, storage: FencedStorage, folder: Path, command: Command) -> None:
        self._storage = storage
        self._folder = folder  # of the study's files
        self._began = time.monotonic()
        self._next = self._began + _PUBLISH_SECONDS
        self._command = command
        self._publisher: Publisher | None = None
        self._complained = False

    def look(self, record: StudyRecord) -> None:
        """Write what has changed, if it is time."""
        if time.monotonic() >= self._next:
            began = time.monotonic()
            with self._tolerating_failure():
                self._write(complete(self._storage, record), plots=True)
            self._next = time.monotonic() + max(_PUBLISH_SECONDS, 30 * (time.monotonic() - began))

    def end(self, results: Results, interrupted: bool) -> None:
        """Write how it ended; plots only where somebody may have looked at them, and nobody waits for the end."""
        with self._tolerating_failure():
            self._write(results, plots=not interrupted and time.monotonic() - self._began > _SHORT_SECONDS)

    @contextlib.contextmanager
    def _tolerating_failure(self) -> Iterator[None]:
        """Leave what the dashboard shows as it is where it cannot be written: that costs no search its life.

        Where the store is gone, the supervisor finds out, and says so.
        """
        try:
            yield
        except (StoreGoneError, KeyError):
            pass
        except Exception as error:
            if not self._complained:
                self._complained = True
                message = "notes and plots for the dashboard cannot be written: %r"
                _log.warning(message, error, extra={"event": "not_published"})

    def _write(self, results: Results, plots: bool) -> None:
        from lmsearch.report.publishing import Publisher  # loads optuna-dashboard, which the first minute needs not

        if self._publisher is None:
            self._publisher = Publisher(storage=self._storage, command=self._command)
        if not plots:
            self._publisher.publish(results, self._folder)
            return
        from lmsearch.report.figures import dashboard_figures  # loads plotly

        self._publisher.publish(with_epochs(self._storage, results), self._folder, dashboard_figures())
