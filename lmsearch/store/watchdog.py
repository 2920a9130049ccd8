"""A deadline on each call to PostgreSQL.

Keepalives find a silent network. A peer that acknowledges and never answers (a hung proxy, a frozen server) they do
not find: then another thread shuts the socket, and the call fails like any other lost connection.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg

ANSWER_SECONDS = 25.0
_TICK = 1.0  # seconds between looks


class WatchedConnection(psycopg.Connection[Any]):
    """A connection on which each call has its answer within `ANSWER_SECONDS`, or fails.

    Making the connection has a limit of its own, psycopg's `connect_timeout`.
    """

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        """Wait for the server: all that is sent on an open connection, by whatever library, comes through here."""
        with _watchdog.watching(self):
            return super().wait(*args, **kwargs)


class _Watchdog:
    """Shuts the sockets of calls that last too long."""

    def __init__(self) -> None:
        self._deadlines: dict[psycopg.Connection[Any], float] = {}  # in monotonic seconds
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def watching(self, connection: psycopg.Connection[Any]) -> Iterator[None]:
        with self._lock:
            self._deadlines[connection] = time.monotonic() + ANSWER_SECONDS
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._deadlines.pop(connection, None)

    def _watch(self) -> None:
        while True:
            time.sleep(_TICK)
            with self._lock:  # so that no call ends, and gives its descriptor back, in between
                late = [one for one, deadline in self._deadlines.items() if deadline < time.monotonic()]
                for connection in late:
                    del self._deadlines[connection]
                    _shut(connection)


_watchdog = _Watchdog()


def _shut(connection: psycopg.Connection[Any]) -> None:
    try:
        with socket.socket(fileno=os.dup(connection.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)
    except (OSError, psycopg.Error):
        pass  # it is closed already
