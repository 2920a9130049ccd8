"""A store opened, made where it is missing, and known for one of another version."""

import contextlib
import functools
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import optuna
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from lmsearch.errors import StoreError, StoreGoneError
from lmsearch.formats import FORMATS, PLAIN
from lmsearch.store import schema
from lmsearch.store import url as urls
from lmsearch.store.outages import Outage, Patience, WaitUpTo, is_transient
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tickets import live_lease


def open_storage(
    url: URL, *, create: bool = False, write: bool = False, connections: int = 1, patience: Patience | None = None
) -> FencedStorage:
    """Open a store: to read it, with `write` to change it, with `create` to make it first where it is missing.

    Who opens a store of an earlier format to write brings it to today's; who only looks reads it as it is. Raises
    `StoreError` where it cannot be used, and `NewerFormatError` where a later lmsearch wrote it.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a process that opens a store is ours
    patience = patience or WaitUpTo(10.0)
    outage = Outage()
    while True:
        try:
            if create:
                urls.check_location(url, create)
                if _format_of(url) is None:
                    _make(url, patience)
            return _opened(url, write or create, connections, patience)
        except (SQLAlchemyError, StorageInternalError, sqlite3.Error, OSError) as error:
            reason = urls.explain(url, error)
            if not is_transient(error):
                raise StoreError(reason) from error
            outage.note(error, reason)
            if not patience(outage):
                raise StoreGoneError(reason) from error
            outage.wait()
        except RuntimeError as error:  # Optuna: made by another version
            raise StoreError(f"the store {urls.redact(url)} cannot be used: {_other_version(url, error)}") from error


def _make(url: URL, patience: Patience) -> None:
    """Make what a store lacks, unless another process has made it meanwhile."""
    with urls.creation_lock(url, patience):
        if _format_of(url) is None:
            # Optuna's checks open a second connection inside the first.
            FencedStorage(url, create=True, connections=2).engine.dispose()


@contextlib.contextmanager
def creating(storage: FencedStorage) -> Iterator[None]:
    """Hold the lock under which studies and their tickets are created; wait for a store that is away or full."""
    with contextlib.ExitStack() as held:
        # A connection of its own: the lock of PostgreSQL ends with it, whatever becomes of this process.
        storage.repeat(lambda: held.enter_context(urls.creation_lock(storage.store_url, storage.patience)))
        yield


def _opened(url: URL, write: bool, connections: int, patience: Patience) -> FencedStorage:
    urls.check_location(url, create=False, write=write)
    found = _format_of(url)  # another program's is not even locked
    if found is None and _may_be_made_now(url):
        # Optuna's storage would lend a hand, and its two hands need two connections.
        with urls.creation_lock(url, patience):
            found = _format_of(url)
    if found is None:
        if not write and _has_optunas(url):
            return _plain(url, connections, patience)
        raise StoreError(f"the store {urls.redact(url)} was not made by lmsearch; `lmsearch run` adds what is missing")
    schema.check_format(urls.redact(url), found)
    storage = FencedStorage(url, connections=connections, patience=patience)
    storage.repeat(lambda: _look(storage))
    if found.number < FORMATS["store"]:
        if write:
            with creating(storage):
                live = functools.partial(live_lease, storage)
                storage.repeat(lambda: schema.migrate(storage.engine, urls.redact(url), live))
        else:
            storage.read_as(found.number)
    return storage


def _has_optunas(url: URL) -> bool:
    with _looking(url) as connection:
        return sa.inspect(connection).has_table("version_info")


def _may_be_made_now(url: URL) -> bool:
    """Whether another process may be making the store: in a SQLite file it would have made a lock beside it."""
    return url.get_backend_name() != "sqlite" or urls.lock_file(url).exists()


def _plain(url: URL, connections: int, patience: Patience) -> FencedStorage:
    """Open a database that plain Optuna made, to look at it: nothing of ours is in it, and nothing is added."""
    storage = FencedStorage(url, connections=connections, patience=patience, looking=True)
    storage.repeat(lambda: _look(storage))
    storage.format = PLAIN
    return storage


def _format_of(url: URL) -> schema.StoreFormat | None:
    """Return the format of a store; None where it does not have all its tables.

    Raises `StoreError` where that is since it belongs to another program. Nothing is written.
    """
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        return None  # it is yet to be made
    with _looking(url) as connection:
        found = schema.read_format(connection)
        if found is None:
            schema.check_own(connection, urls.redact(url))
        return found


@contextlib.contextmanager
def _looking(url: URL) -> Iterator[sa.Connection]:
    """Provide a connection to a database in which nothing is changed, which may be another program's."""
    engine = sa.create_engine(url, **urls.engine_options(url, 1, looking=True))
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def _look(storage: FencedStorage) -> None:
    with storage.transaction() as session:
        connection = session.connection()
        revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        if revision != storage.get_head_version():
            older = " (older: storage upgrade)" if revision in storage.get_all_versions() else ""
            raise RuntimeError(f"its tables are of revision {revision}{older}")


def _other_version(url: URL, error: RuntimeError) -> str:
    """Return which upgrade is needed: of Optuna where the store is newer, of the store where it is older."""
    mine = f"made by another Optuna than the {optuna.__version__} here ({error})"
    if "storage upgrade" in str(error):
        return f"{mine}; upgrade it with: optuna storage upgrade --storage {urls.redact(url)}"
    return f"{mine}; upgrade Optuna with: pip install -U optuna"
