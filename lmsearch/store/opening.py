"""A store opened, made where it is missing, and known for one of another version."""

import contextlib
import sqlite3
from collections.abc import Iterator

import optuna
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from lmsearch.errors import StoreError, StoreGoneError
from lmsearch.store import url as urls
from lmsearch.store.outages import Outage, Patience, WaitUpTo, is_transient
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import TICKET


def open_storage(
    url: URL, *, create: bool = False, connections: int = 1, patience: Patience | None = None
) -> FencedStorage:
    """Open a store; `create` makes it where it is missing. Raises `StoreError` where it cannot be used."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a process that opens a store is ours
    patience = patience or WaitUpTo(10.0)
    outage = Outage()
    while True:
        try:
            if create:
                urls.check_place(url, create)
                with urls.creation_lock(url):
                    # Optuna's checks open a second connection inside the first.
                    FencedStorage(url, create=True, connections=2).engine.dispose()
            return _opened(url, connections, patience)
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


@contextlib.contextmanager
def creating(storage: FencedStorage) -> Iterator[None]:
    """Hold the lock under which studies and their tickets are created; wait for a store that is away or full."""
    with contextlib.ExitStack() as held:
        # A connection of its own: the lock of PostgreSQL ends with it, whatever becomes of this process.
        storage.persist(lambda again: held.enter_context(urls.creation_lock(storage.place)))
        yield


def _opened(url: URL, connections: int, patience: Patience) -> FencedStorage:
    urls.check_place(url, create=False)
    if not _is_made(url):
        # Somebody may be making it now. Optuna's storage would lend a hand, and its two hands need two connections.
        with urls.creation_lock(url):
            made = _is_made(url)
        if not made:
            raise StoreError(
                f"the store {urls.redact(url)} was not made by lmsearch; `lmsearch run` adds what is missing"
            )
    storage = FencedStorage(url, connections=connections, patience=patience)
    storage.persist(lambda again: _look(storage))
    return storage


def _is_made(url: URL) -> bool:
    """Tell whether a store has all its tables: ours are made last."""
    engine = sa.create_engine(url, **urls.engine_options(url, 1))
    try:
        return sa.inspect(engine).has_table(TICKET.name)
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
    """Name the upgrade: of Optuna where the store is newer, of the store where it is older."""
    mine = f"made by another Optuna than the {optuna.__version__} here ({error})"
    if "storage upgrade" in str(error):
        return f"{mine}; upgrade it with: optuna storage upgrade --storage {urls.redact(url)}"
    return f"{mine}; upgrade Optuna with: pip install -U optuna"
