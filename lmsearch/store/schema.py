"""The format of a store: read, written with a new one, and raised by Alembic under a version table of our own."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from optuna.storages._rdb import models

from lmsearch.errors import StoreError
from lmsearch.formats import FIRST, FORMATS, check_number
from lmsearch.store.tables import FORMAT, METADATA, RUNNING, TICKET
from lmsearch.version import __version__

if TYPE_CHECKING:  # Alembic takes a tenth of a second to load, and few commands need it
    from alembic.config import Config

_VERSION_TABLE = "lmsearch_alembic_version"  # Alembic's; Optuna's own is called alembic_version
_VERSION = sa.table(_VERSION_TABLE, sa.column("version_num"))


@dataclass(frozen=True, kw_only=True)
class StoreFormat:
    """The format of a store, and the lmsearch version that brought it there."""

    number: int
    version: str


def head() -> str:
    """Return the newest format that there are migrations to."""
    from alembic.script import ScriptDirectory

    return str(ScriptDirectory.from_config(_config()).get_current_head())


def read_format(connection: sa.Connection) -> StoreFormat | None:
    """Return the format of a store; None where lmsearch has not made its tables."""
    inspector = sa.inspect(connection)
    if not inspector.has_table(_VERSION_TABLE):
        return StoreFormat(number=1, version=FIRST) if inspector.has_table(TICKET.name) else None
    found = connection.execute(sa.select(_VERSION.c.version_num)).scalar_one_or_none()
    if found is None or not found.isdecimal():
        raise StoreError(f"its table {_VERSION_TABLE} says {str(found)[:40]!r}, which is no format")
    version = connection.execute(sa.select(FORMAT.c.lmsearch).where(FORMAT.c.format == int(found))).scalar()
    return StoreFormat(number=int(found), version=str(version))


def check_own(connection: sa.Connection, store_url: str) -> None:
    """Raise `StoreError` for a database that belongs to another program: what stands in it is looked at, not changed.

    Optuna's tables may be there without ours, from a study of Optuna's own or from a creation that was cut short.
    """
    inspector = sa.inspect(connection)
    there = set(inspector.get_table_names())
    tables = models.BaseModel.metadata.tables
    is_optunas = "version_info" in there and "library_version" in _columns(inspector, "version_info")
    foreign = [name for name in inspector.get_view_names() if name in tables]
    for name, table in tables.items():
        # Of an earlier Optuna a table may lack a column; where Optuna has not signed the database, it must be whole.
        wanted = table.primary_key if is_optunas else table.columns
        if name in there and not {column.name for column in wanted} <= _columns(inspector, name):
            foreign.append(name)
    if "alembic_version" in there and "version_info" not in there:
        foreign.append("alembic_version")
    if foreign:
        schema = ", or a schema: ?options=-csearch_path%3DNAME" if connection.engine.name == "postgresql" else ""
        raise StoreError(
            f"the database {store_url} belongs to another program (its table {foreign[0]} is not Optuna's); give "
            f"lmsearch one of its own{schema}"
        )


def _columns(inspector: Any, table: str) -> set[str]:
    return {column["name"] for column in inspector.get_columns(table)}


def format_query() -> Any:
    """Return the query for the number alone, which a worker asks at each claim."""
    return sa.select(_VERSION.c.version_num)


def missing_columns(connection: sa.Connection) -> set[str]:
    """Return the columns of `lmsearch_ticket` that a store of an earlier format lacks."""
    there = {column["name"] for column in sa.inspect(connection).get_columns(TICKET.name)}
    return {column.name for column in TICKET.columns if column.name not in there}


def create_tables(engine: sa.Engine) -> None:
    """Make our tables and write their format, in one transaction; a store that has them already stays as it is."""
    from alembic import command

    with _writing(engine) as connection:
        if read_format(connection) is None:
            METADATA.create_all(connection)
            command.stamp(_config(connection), "head")
            connection.execute(sa.insert(FORMAT).values(format=FORMATS["store"], lmsearch=__version__))


def migrate(engine: sa.Engine, store_url: str, live: Callable[[], sa.ColumnElement[bool]]) -> None:
    """Bring a store to today's format, in one transaction: wholly or not at all.

    `live` gives the condition that a ticket is under a lease that has not run out. Workers of the first version do not
    look whether the format has risen, so where such a lease is live nothing is changed and `StoreError` raised.
    """
    from alembic import command

    with _writing(engine) as connection:
        found = read_format(connection)
        if found is None or found.number >= FORMATS["store"]:
            return  # somebody else has done it
        if found.number == 1 and (hosts := _at_work(connection, live())):
            raise StoreError(
                f"the store {store_url} is of format 1 (lmsearch {found.version}), and workers of that version are at "
                f"work on {', '.join(hosts)}; stop them first, then this lmsearch {__version__} brings it to format "
                f"{FORMATS['store']}"
            )
        config = _config(connection)
        if found.number == 1:
            command.stamp(config, "1")
        command.upgrade(config, "head")
        connection.execute(sa.insert(FORMAT).values(format=FORMATS["store"], lmsearch=__version__))


def check_format(store_url: str, found: StoreFormat) -> None:
    """Raise `NewerFormatError` for a store of a later format."""
    check_number("store", f"the store {store_url}", found.number, found.version)


def _at_work(connection: sa.Connection, live: sa.ColumnElement[bool]) -> list[str]:
    query = sa.select(TICKET.c.host).where(TICKET.c.state == RUNNING, live).distinct()
    return sorted(host or "?" for host in connection.execute(query).scalars())


@contextlib.contextmanager
def _writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Provide a connection within one transaction that nobody else writes in, until its end."""
    with engine.connect() as connection, connection.begin():
        if engine.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # Python's driver begins none before it makes tables
        elif sa.inspect(connection).has_table(TICKET.name):
            connection.exec_driver_sql(f"LOCK TABLE {TICKET.name} IN ACCESS EXCLUSIVE MODE")
        yield connection


def _config(connection: sa.Connection | None = None) -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes |= {"connection": connection, "version_table": _VERSION_TABLE}
    return config
