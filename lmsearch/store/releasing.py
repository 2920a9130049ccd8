"""A connection is let go of while its worker trains, so that many workers share the few that a server grants."""

import threading
import time
from typing import Any

import sqlalchemy as sa

from lmsearch.store.outages import is_crowded

_IDLE_SECONDS = 1.0  # a heartbeat comes each ten seconds; to connect again takes some milliseconds
_CROWDED_IDLE_SECONDS = 0.05  # once a server had no connection free
_CROWDED_SECONDS = 120.0  # for which a server is taken to be crowded after that


class ConnectionRelease:
    """Closes the connection of an engine that nobody has used for a second; the next use opens another.

    While the server has too few connections for all workers, it closes it at once.
    """

    def __init__(self, engine: sa.Engine, idle_seconds: float = _IDLE_SECONDS) -> None:
        self._engine = engine
        self._idle_seconds = idle_seconds
        self._changed = threading.Condition()
        self._in_use = 0
        self._last_use: float | None = None  # monotonic; None: nothing is open
        self._crowded_until = 0.0  # monotonic
        sa.event.listen(engine, "handle_error", self._note_error)
        sa.event.listen(engine, "checkout", self._note_checkout)
        sa.event.listen(engine, "checkin", self._note_checkin)
        self._thread = threading.Thread(target=self._release, name="connection", daemon=True)
        self._thread.start()

    def _note_checkout(self, *args: Any) -> None:
        if threading.current_thread() is self._thread:
            return
        with self._changed:
            self._in_use += 1

    def _note_checkin(self, *args: Any) -> None:
        if threading.current_thread() is self._thread:
            return
        with self._changed:
            self._in_use = max(0, self._in_use - 1)
            self._last_use = time.monotonic()
            self._changed.notify()

    def _note_error(self, context: sa.ExceptionContext) -> None:
        if is_crowded(context.original_exception):
            self._crowded_until = time.monotonic() + _CROWDED_SECONDS

    def _idle(self) -> float:
        crowded = time.monotonic() < self._crowded_until
        return min(self._idle_seconds, _CROWDED_IDLE_SECONDS) if crowded else self._idle_seconds

    def _release(self) -> None:
        while True:
            with self._changed:
                while self._last_use is None or self._in_use:
                    self._changed.wait()
                last_use = self._last_use
            left = last_use + self._idle() - time.monotonic()
            if left > 0:
                time.sleep(left)
            else:
                self._close(last_use)

    def _close(self, last_use: float) -> None:
        """Close the connection if nobody has used it since.

        It is taken from the pool first, as by everybody else: to dispose of the pool would leave those waiting for
        ever who ask it for a connection in that moment.
        """
        try:
            taken = self._engine.raw_connection()
        except Exception:  # it is closed already, and cannot be opened
            with self._changed:
                self._last_use = None if self._last_use == last_use else self._last_use
            return
        with self._changed:
            is_idle = self._last_use == last_use and not self._in_use
            if is_idle:
                self._last_use = None
        if is_idle:
            taken.invalidate()
        else:
            taken.close()
