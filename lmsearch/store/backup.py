"""A SQLite store copied while it is in use, and kept such that its file holds nearly all of it."""

import contextlib
import shlex
import sqlite3
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL

from lmsearch.errors import StoreError
from lmsearch.files import draft_of, sync_folder
from lmsearch.store import url as urls
from lmsearch.store.storage import FencedStorage


def write_back(storage: FencedStorage) -> None:
    """Move what SQLite keeps in its write-ahead log into the file itself, as far as nobody is in the way.

    A copy of the file alone then has all but the last seconds; without this it may be empty for an hour.
    """
    if storage.engine.name != "sqlite":
        return
    with contextlib.suppress(sa.exc.OperationalError), storage.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")


def back_up(url: URL, target: Path) -> None:
    """Copy a SQLite store into one file, whole or not at all, by SQLite's online backup; workers continue meanwhile.

    Raises `StoreError` for a target that is there, and for PostgreSQL, with the command that backs it up.
    """
    if url.get_backend_name() != "sqlite":
        raise StoreError(f"PostgreSQL backs itself up: {_pg_dump(url, target)}")
    if target.exists():
        raise StoreError(f"{target} is there already; name another file")
    draft = draft_of(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        source, copy = urls.connect_sqlite(Path(str(url.database))), sqlite3.connect(draft)
        with contextlib.closing(source), contextlib.closing(copy):
            # In one step, which beside a write-ahead log holds up no writer: in several each write would restart it.
            source.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")  # one file is all
            found = copy.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise StoreError(f"the store {url.database} is damaged ({found}); it was not backed up")
        draft.replace(target)
        sync_folder(target.parent)
    except sqlite3.Error as error:
        raise StoreError(f"the store {url.database} cannot be backed up to {target}: {error}") from error
    finally:
        draft.unlink(missing_ok=True)


def _pg_dump(url: URL, target: Path) -> str:
    shown = urls.redact(url._replace(password=None))
    return shlex.join(["pg_dump", "--format=custom", f"--file={target}", f"--dbname={shown}"])
