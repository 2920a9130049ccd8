"""Times without the store: which errors pass by themselves, and how long a caller is willing to wait."""

import random
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, PendingRollbackError

_TRANSIENT_CLASSES = ("08", "25", "40", "53", "55", "57", "58")
"""PostgreSQL's error classes that pass by themselves: connection, transaction, resources, locks, operator."""

_CROWDED_STATE = "53300"  # too many connections
_CROWDED_WORDS = ("too many", "connection slots")
_PASSING_REFUSALS = ("starting up", "shutting down", "recovery", "terminating", *_CROWDED_WORDS)
"""What a server says that will take a connection later; other refusals (no such database, wrong password) stay."""

_SETTLED = (
    "no password supplied",
    "invalid ",
    "not found",
    "does not support SSL",
    "SSL was required",
    "certificate",
    "has group or world access",
    "channel binding required",
    "channel binding is required",
    "weak sslmode",
    "could not parse network address",
)
"""What libpq says, without a code, of a URL or a file that no waiting makes right."""

_SQLITE_PASSING = (
    "SQLITE_BUSY",
    "SQLITE_LOCKED",
    "SQLITE_IOERR",
    "SQLITE_FULL",
    "SQLITE_CANTOPEN",
    "SQLITE_PROTOCOL",
)
_LONGEST_PAUSE = 2.0  # seconds between two attempts; a stop takes effect between them


class Outage:
    """One time without the store, from the first attempt that failed.

    Two clocks run: `gone` while the store does not answer, `crowded` while it answers that it has no connection
    free. A server that says so is not gone. Both are in seconds.
    """

    def __init__(self) -> None:
        self.gone = 0.0
        self.crowded = 0.0
        self.attempts = 0
        self.reason = ""
        self.is_crowded = False
        self._seen = time.monotonic()
        self._pause = 0.05

    def note(self, error: BaseException, reason: str) -> None:
        """Take note of a failed attempt."""
        now = time.monotonic()
        self.is_crowded = is_crowded(error)
        if self.is_crowded:
            self.crowded += now - self._seen
        else:
            self.gone += now - self._seen
        self._seen = now
        self.attempts += 1
        self.reason = reason

    def wait(self) -> None:
        """Pause before the next attempt, each time longer; of many that were refused not all at once."""
        time.sleep(self._pause * (random.uniform(0.5, 1.5) if self.is_crowded else 1.0))
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)


Patience = Callable[[Outage], bool]
"""Tells whether to wait on; it is asked after each failed attempt."""


@dataclass(frozen=True)
class WaitUpTo:
    """Patience for at most `limit` seconds, be the store gone or full."""

    limit: float

    def __call__(self, outage: Outage) -> bool:
        """Whether to wait on."""
        return outage.gone + outage.crowded < self.limit


def is_transient(error: BaseException) -> bool:
    """Whether a failed call may succeed when it is repeated: the database was away, busy or full."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        return is_transient(error.__cause__)
    if isinstance(error, PendingRollbackError):
        return True
    cause = database_error(error)
    if isinstance(cause, sqlite3.Error):
        return getattr(cause, "sqlite_errorname", "SQLITE_ERROR").startswith(_SQLITE_PASSING)
    return isinstance(error, DBAPIError) and cause is not None and _server_may_answer(cause)


def is_crowded(error: BaseException) -> bool:
    """Whether the server is there and has no connection free."""
    cause = database_error(error)
    if cause is None or isinstance(cause, sqlite3.Error):
        return False
    state: str | None = getattr(cause, "sqlstate", None)
    return state == _CROWDED_STATE or (state is None and _refused_with(cause, _CROWDED_WORDS))


def database_error(error: BaseException) -> BaseException | None:
    """Return the driver's own error that stands behind Optuna's or SQLAlchemy's."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        return database_error(error.__cause__)
    return error.orig if isinstance(error, DBAPIError) else error


def _server_may_answer(cause: BaseException) -> bool:
    state: str | None = getattr(cause, "sqlstate", None)
    if state is not None:
        return state.startswith(_TRANSIENT_CLASSES)
    if "FATAL:" in str(cause):  # refused when connecting: libpq gives the words alone
        return _refused_with(cause, _PASSING_REFUSALS)
    # A proxy that fails over may answer with what libpq takes for an invalid response.
    if any(word in str(cause).replace("invalid response", "") for word in _SETTLED):
        return False
    return type(cause).__name__ in ("OperationalError", "InterfaceError", "ConnectionTimeout")


def _refused_with(cause: BaseException, words: tuple[str, ...]) -> bool:
    return "FATAL:" in str(cause) and any(word in str(cause) for word in words)
