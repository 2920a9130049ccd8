"""A deadline on each call to PostgreSQL.

Keepalives find a silent network. A peer that acknowledges and never answers (a hung proxy, a frozen server) they do
not find: then another thread shuts the socket, and the call fails like any other lost connection.
"""

import os
import socket
import threading
import time
from typing import Any

import psycopg
import sqlalchemy as sa

ANSWER_SECONDS = 25.0


class Watchdog:
    """Watches the statements that an engine's connections have under way."""

    def __init__(self, engine: sa.Engine, seconds: float | None = None) -> None:
        self.seconds = ANSWER_SECONDS if seconds is None else seconds
        self._deadlines: dict[Any, float] = {}  # by the driver's connection, in monotonic seconds
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        sa.event.listen(engine, "before_cursor_execute", lambda connection, *rest: self._begin(connection))
        sa.event.listen(engine, "after_cursor_execute", lambda connection, *rest: self._forget(_raw(connection)))
        sa.event.listen(engine, "commit", self._begin)
        sa.event.listen(engine, "rollback", self._begin)
        # SQLAlchemy tells of no end of a commit: the connection's return to the pool follows at once.
        sa.event.listen(engine, "checkin", lambda raw, record: self._forget(raw))
        sa.event.listen(engine, "close", lambda raw, record: self._forget(raw))

    def _begin(self, connection: sa.Connection) -> None:
        if connection.invalidated:
            return  # what is rolled back here went down with its connection
        with self._lock:
            self._deadlines[_raw(connection)] = time.monotonic() + self.seconds
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
                self._thread.start()

    def _forget(self, raw: Any) -> None:
        with self._lock:
            self._deadlines.pop(raw, None)

    def _watch(self) -> None:
        while True:
            time.sleep(self.seconds / 10)
            with self._lock:
                late = [raw for raw, deadline in self._deadlines.items() if deadline < time.monotonic()]
                for raw in late:
                    del self._deadlines[raw]
                    _shut(raw)


def _raw(connection: sa.Connection) -> Any:
    return connection.connection.dbapi_connection


def _shut(raw: Any) -> None:
    try:
        with socket.socket(fileno=os.dup(raw.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)
    except (OSError, psycopg.Error):
        pass  # it is closed already
