"""Notifications of a search to wherever a person is: mail, chat, a phone, by Apprise."""

import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lmsearch.errors import ConfigError
from lmsearch.extras import load
from lmsearch.results.progress import count_line
from lmsearch.store.records import StudyRecord

_log = logging.getLogger(__name__)

_LAST_SECONDS = 15.0  # that the end of a search waits for what was not sent yet


class Notifier:
    """Sends what happens from a thread of its own: one that fails, or takes long, costs the search nothing.

    Raises `ConfigError` for a URL that Apprise does not know, and where Apprise is not installed.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self._study = ""
        self._told: set[str] = set()  # of the first trial that ended, that failed
        self._has_looked = False
        self._outbox: queue.Queue[tuple[str, str] | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._apprise = _open(urls) if urls else None

    @contextmanager
    def watching(self, study: str) -> Iterator[None]:
        """Notify of a search while it runs and of the error that ends it; then wait a little for what is left."""
        self._study = study
        if self._apprise is None:
            yield
            return
        self._thread = threading.Thread(target=self._send, args=(self._apprise,), daemon=True, name="notifications")
        self._thread.start()
        try:
            yield
        except Exception as error:
            self.tell("trouble", str(error) or type(error).__name__)
            raise
        finally:
            self._outbox.put(None)
            self._thread.join(_LAST_SECONDS)

    def look(self, record: StudyRecord) -> None:
        """Tell of the first trial that has ended, and of the first that has failed."""
        if self._thread is None:
            return
        kinds = {"ended": [trial for trial in record.trials if not trial.is_open and not trial.is_taken_over]}
        kinds["failed"] = [trial for trial in kinds["ended"] if trial.outcome == "failed"]
        is_resumed = not self._has_looked and len(kinds["ended"]) > 1
        self._has_looked = True
        for kind, trials in kinds.items():
            if not trials or kind in self._told:
                continue
            self._told.add(kind)
            if is_resumed:
                continue  # the first was long ago
            what = f"{trials[0].outcome}: {trials[0].reason}" if trials[0].reason else f"is {trials[0].outcome}"
            self.tell(f"the first trial has {kind}", f"trial {trials[0].number} {what}; {count_line(record)}")

    def tell(self, what: str, text: str) -> None:
        """Tell one thing."""
        self._outbox.put((f"lmsearch {self._study}: {what}", text))

    def _send(self, apprise: Any) -> None:
        complained = False
        while (message := self._outbox.get()) is not None:
            title, body = message
            try:
                sent = apprise.notify(title=title, body=body)
            except Exception:  # a plug-in of somebody else's
                sent = False
            if not sent and not complained:
                complained = True
                _log.warning("a notification could not be sent; the search goes on", extra={"event": "not_notified"})


def _open(urls: Sequence[str]) -> Any:
    apprise = load("apprise", "notify")
    logging.getLogger("apprise").setLevel(logging.CRITICAL)  # its messages have the URLs, and so their secrets
    opened = apprise.Apprise()
    for number, url in enumerate(urls, 1):
        if not opened.add(url):
            which = f"URL {number}" if len(urls) > 1 else "the URL"
            scheme = url.partition("://")[0] if "://" in url else ""
            raise ConfigError(f"{which} of --notify is none that Apprise knows{f' ({scheme}://…)' if scheme else ''}")
    return opened
