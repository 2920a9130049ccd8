"""A storage URL opened in the one right way, and shown without its password."""

import contextlib
import functools
import ipaddress
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import filelock
import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from lmsearch.errors import StoreError, StoreGoneError
from lmsearch.folders import absolute
from lmsearch.spelling import nearest
from lmsearch.store.outages import Outage, Patience, is_crowded
from lmsearch.store.watchdog import WatchedConnection

_LOCK_SECONDS = 5.0  # how long SQLite waits for another writer before it is asked again; a signal is handled between
_POOL_SECONDS = 120.0  # how long a thread waits for the connection that another one of its process uses
_PARENT_LOCK = 0x6C6D73  # the number of the advisory lock under which schema and studies are created
_LOCK_LOOK_SECONDS = 0.2  # between attempts to have it
_SHOWN = ("host", "hostaddr", "port", "dbname", "user", "sslmode", "application_name", "connect_timeout")
"""What of a URL's query may be shown; anything else may be a secret, or one misspelt."""

_KEEPALIVES = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
    "application_name": "lmsearch",
    "client_encoding": "utf8",  # a database made under LANG=C says SQL_ASCII, and gives bytes
}

_PREPARE = {"prepare_threshold": None}
"""No prepared statements: behind a pooler the next transaction may run on another server connection."""

_SERVER_SETTINGS = (
    "idle_in_transaction_session_timeout = '25s'",
    "tcp_keepalives_idle = 10",
    "tcp_keepalives_interval = 5",
    "tcp_keepalives_count = 3",
)
"""The server ends what a frozen worker, or a host without power, would hold: a transaction, and its locks."""


def parse_url(text: str) -> URL:
    """Read a storage URL (SQLite or PostgreSQL); a relative SQLite path begins in the working folder."""
    examples = "sqlite:///runs/lmsearch.db or postgresql://user@host/database"
    try:
        text.encode()
        url = make_url(text)
        port = url.port  # one that is no number is found here
    except (ArgumentError, ValueError) as error:
        raise StoreError(f"{_hide(text)!r} is not a storage URL; write {examples}") from error
    if "\0" in str(url.render_as_string(hide_password=False)) or "%00" in text:
        raise StoreError("the storage URL has a byte of zero (%00), which no part of it can have")
    if port is not None and not 0 < port < 1 << 16:
        raise StoreError(f"the storage URL has the port {port}; a port is a number from 1 to 65535")
    lost = text.count("@") > 1 and "@" not in "".join(map(str, url.query.values()))  # a ? began what is no option
    if lost or any("@" in part for part in (url.host, url.database, *url.query) if part):
        raise StoreError(
            "the storage URL has an @ too many: in a user's name or a password write %40 for @, %2F for /, %3A for :"
        )
    match url.drivername:
        case "sqlite" | "sqlite+pysqlite":
            if not url.database or url.database == ":memory:":
                raise StoreError(f"the storage {_hide(text)!r} names no file; write {examples}")
            if url.query:
                raise StoreError("a SQLite storage URL has no options; in a file's name write %3F for a question mark")
            return url.set(database=str(absolute(url.database, "the store")), drivername="sqlite")
        case "postgres" | "postgresql" | "postgresql+psycopg" | "postgresql+psycopg2":
            if not url.database:
                raise StoreError(f"the storage {redact(url)!r} names no database; write {examples}")
            _check_options(url)
            return url.set(drivername="postgresql+psycopg")
        case other:
            raise StoreError(f"the storage {other}:// is not supported; write {examples}")


def _check_options(url: URL) -> None:
    """Refuse what PostgreSQL's own client library does not know; psycopg would take some of it for its arguments."""
    if "replication" in url.query:
        raise StoreError("the storage URL asks for a replication connection, over which no store can be used")
    try:
        for host in (url.host or "").split(","):
            host.encode("idna")  # as a look-up of its address does
        for address in str(url.query.get("hostaddr", "")).split(","):
            ipaddress.ip_address(address or "::")
    except (UnicodeError, ValueError) as error:
        raise StoreError(f"the storage URL has a host that is none: {error}") from error
    known = [option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()]
    for name in url.query:
        if name not in known:
            hint = nearest(name, known)
            hint = hint if "did you mean" in hint else ", which PostgreSQL's client library does not know"
            raise StoreError(f"the storage URL has an option {name!r}{hint}")


def redact(url: URL, here: bool = False) -> str:
    """Return the URL for a person to read, its password as `***`; with `here`, a file below this folder as from it."""
    if here and url.get_backend_name() == "sqlite" and Path(url.database or "").is_relative_to(Path.cwd()):
        url = url.set(database=str(Path(url.database or "").relative_to(Path.cwd())))
    query = {name: value if name in _SHOWN else "***" for name, value in url.query.items()}
    shown = url.set(query=query, drivername=url.get_backend_name()).render_as_string(hide_password=True)
    return shown.replace("%2A%2A%2A", "***")


def has_password(url: URL) -> bool:
    """Whether the URL holds a secret, so that it may not stand on a command line."""
    return bool(url.password) or any(name not in _SHOWN for name in url.query)


def full_text(url: URL) -> str:
    """Return the whole URL, for the environment of a child process and for nothing else."""
    return url.render_as_string(hide_password=False)


def _hide(text: str) -> str:
    # What is no URL may still hold a password, and nobody can say where.
    scheme, separator, _ = text.partition("://")
    if separator:
        return f"{scheme}://…"
    return "…" if any(mark in text for mark in ":@=?") else text


def engine_options(url: URL, connections: int, looking: bool = False) -> dict[str, Any]:
    """Return the arguments for `create_engine`: at most `connections` connections, kept alive.

    With `looking` nothing of a SQLite file is changed, which another program may have made.
    """
    pool = {"pool_size": 1, "max_overflow": connections - 1, "pool_timeout": _POOL_SECONDS}
    if url.get_backend_name() == "sqlite":
        assert url.database is not None
        return pool | {
            "creator": functools.partial(_look_at_sqlite if looking else connect_sqlite, Path(url.database)),
            "poolclass": sa.pool.QueuePool,
        }
    return pool | {"creator": functools.partial(_connect_postgresql, url)}


def _connect_postgresql(url: URL) -> WatchedConnection:
    dialect: Any = PGDialect_psycopg
    words, named = dialect(dbapi=psycopg).create_connect_args(url)
    connection = WatchedConnection.connect(*words, **{**_KEEPALIVES, **_PREPARE, **named})
    connection.execute("; ".join(f"SET {setting}" for setting in _SERVER_SETTINGS))  # one round trip
    connection.commit()
    return connection


def connect_sqlite(path: Path) -> sqlite3.Connection:
    """Open a SQLite file as every process of ours does; one that may not be written to, to look at it."""
    if is_read_only(path):
        return _look_at_sqlite(path)
    connection = sqlite3.connect(path, timeout=_LOCK_SECONDS, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")  # readers and the writer do not wait for each other
    # What is reported as done outlives a power cut: a trial's checkpoints are removed as soon as its end is committed.
    connection.execute("PRAGMA synchronous=FULL")
    return connection


def is_read_only(path: Path) -> bool:
    """Whether a store's file, or the folder in which SQLite writes beside it, may not be written to."""
    return path.exists() and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))


def _look_at_sqlite(path: Path) -> sqlite3.Connection:
    """Open a file for reading alone; what stands in a log beside it, SQLite reads where it can map the log's index."""
    uri = f"file:{quote(str(path))}?mode=ro"
    connection = sqlite3.connect(uri, timeout=_LOCK_SECONDS, check_same_thread=False, uri=True)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.OperationalError as error:
        connection.close()
        if not error.sqlite_errorname.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY")):
            raise  # it is locked, or damaged
        log = path.with_name(f"{path.name}-wal")
        if log.exists() and log.stat().st_size:
            raise StoreError(
                f"the store {path} cannot be read: it is read-only, and its newest changes are in "
                f"{log.name}; copy both files to a folder of yours, or ask its owner for: lmsearch backup FILE"
            ) from error
        # Nobody is at work on it, and nothing is in its log: it can be read as it is.
        connection = sqlite3.connect(f"{uri}&immutable=1", check_same_thread=False, uri=True)
    return connection


def check_location(url: URL, create: bool, write: bool = False) -> None:
    """Refuse a SQLite file that is not there, or, to `write`, not ours to write; make its folder to `create` it."""
    if url.get_backend_name() != "sqlite":
        return
    assert url.database is not None
    path = Path(url.database)
    if create:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the folder of the store {path} cannot be made: {error.strerror}") from error
    elif not path.exists():
        raise StoreError(f"there is no store {path}; start a search with: lmsearch run, or name --storage")
    if path.is_dir():
        raise StoreError(f"the store {path} is a folder; name a file")
    for needed in (path.parent, path):  # SQLite writes beside the file, also to read it
        if (create or write) and needed.exists() and not os.access(needed, os.W_OK):
            raise StoreError(f"the store {path} cannot be used: {needed} is read-only, or not yours to write")


@contextlib.contextmanager
def creation_lock(url: URL, patience: Patience) -> Iterator[None]:
    """Hold the one lock under which schema, studies and their tickets are created.

    Raises `StoreGoneError` where another process holds it for longer than `patience` allows, and `StoreError` where no
    file of a lock can be made.
    """
    waits = _Waits(url, patience)
    if url.get_backend_name() == "sqlite":
        lock_path = lock_file(url)
        try:
            lock_path.touch()  # filelock would ask again for ever
        except OSError as error:
            raise StoreError(f"the store {redact(url)} cannot be used: {lock_path}: {error.strerror}") from error
        lock = filelock.FileLock(lock_path)
        while True:
            try:
                lock.acquire(timeout=_LOCK_LOOK_SECONDS)
            except filelock.Timeout as error:
                waits.once_more(error)
            else:
                break
        try:
            yield
        finally:
            lock.release()
        return
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool, creator=functools.partial(_connect_postgresql, url))
    try:
        with engine.connect() as connection:
            # A lock of the transaction: one of the session would stay with a pooler's connection. Asked again and
            # again: a call that waits for the lock cannot be distinguished from one that gets no answer.
            while True:
                connection.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = 0"))
                if connection.execute(sa.select(sa.func.pg_try_advisory_xact_lock(_PARENT_LOCK))).scalar_one():
                    break
                connection.rollback()
                waits.once_more(None)
                time.sleep(_LOCK_LOOK_SECONDS)
            yield  # closing the connection gives the lock back
    finally:
        engine.dispose()


def lock_file(url: URL) -> Path:
    """Return the file whose lock is held while a SQLite store is made."""
    return Path(f"{url.database}.lock")


class _Waits:
    """Waiting for another process, within one patience."""

    def __init__(self, url: URL, patience: Patience) -> None:
        self._outage = Outage()
        self._reason = f"the store {redact(url)} cannot be used: another process is creating something in it"
        self._patience = patience

    def once_more(self, error: BaseException | None) -> None:
        """Take note of an attempt in vain; raises `StoreGoneError` where there have been too many."""
        self._outage.note(error or TimeoutError(), self._reason)
        if not self._patience(self._outage):
            raise StoreGoneError(self._reason) from error


def explain(url: URL, error: BaseException) -> str:
    """Return in one line which store failed and why, without its password."""
    cause = getattr(error, "orig", None) or error.__cause__ or error
    cause = getattr(cause, "orig", None) or cause
    line = str(cause).strip().splitlines()
    reason = line[0].strip() if line else type(cause).__name__
    if url.password:  # but not where it is part of a word of the message
        reason = re.sub(rf"(?<!\w){re.escape(str(url.password))}(?!\w)", "***", reason)
    if is_crowded(error):
        reason += "; a worker needs one connection: raise the server's max_connections, or start fewer workers"
    return f"the store {redact(url)} cannot be used: {reason}"
