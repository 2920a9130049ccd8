"""A connection is let go of while its worker trains, so that many workers share the few that a server grants."""

import threading
import time
from typing import Any

import sqlalchemy as sa

_IDLE_SECONDS = 1.0  # a heartbeat comes each ten seconds; to connect again takes some milliseconds


class ConnectionRelease:
    """Closes the connection of an engine that nobody has used for a second; the next use opens another."""

    def __init__(self, engine: sa.Engine, idle_seconds: float = _IDLE_SECONDS) -> None:
        self._engine = engine
        self._idle_seconds = idle_seconds
        self._changed = threading.Condition()
        self._in_use = 0
        self._last_use: float | None = None  # monotonic; None: nothing is open
        sa.event.listen(engine, "checkout", self._note_checkout)
        sa.event.listen(engine, "checkin", self._note_checkin)
        threading.Thread(target=self._release, name="connection", daemon=True).start()

    def _note_checkout(self, *args: Any) -> None:
        with self._changed:
            self._in_use += 1

    def _note_checkin(self, *args: Any) -> None:
        with self._changed:
            self._in_use = max(0, self._in_use - 1)
            self._last_use = time.monotonic()
            self._changed.notify()

    def _release(self) -> None:
        while True:
            with self._changed:
                while self._last_use is None or self._in_use:
                    self._changed.wait()
                left = self._last_use + self._idle_seconds - time.monotonic()
                if left <= 0:
                    self._last_use = None
                    # One that is taken in this moment stays open until it is given back, and is then collected.
                    self._engine.dispose()
                    continue
            time.sleep(left)
