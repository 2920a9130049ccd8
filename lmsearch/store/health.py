"""What a store says of its own health, and what a death or another program may have left in it."""

import sqlite3
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy.orm import Session

from lmsearch.store.storage import FencedStorage, trouble_values
from lmsearch.store.tables import DONE, EPOCH, OPEN, RUNNING, TICKET, StudyRef, Ticket
from lmsearch.store.tickets import of_study


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One limit on the connections to a server; this process's own is not among those in use."""

    name: str
    allowed: int
    used: int
    ours: int  # of those in use, lmsearch's, as far as this role may see


@dataclass(frozen=True, kw_only=True)
class OrphanedTrial:
    """A trial that is RUNNING for Optuna and on no open or running ticket."""

    number: int
    has_ticket: bool  # its ticket is done
    is_ours: bool  # made by lmsearch for a ticket


def server(storage: FencedStorage) -> str:
    """Return the name of the database and its version."""
    if storage.engine.name == "sqlite":
        return f"SQLite {sqlite3.sqlite_version}"
    return f"PostgreSQL {_scalar(storage, 'SHOW server_version').split()[0]}"


def revision(storage: FencedStorage) -> str:
    """Return the revision of Optuna's tables; the store was refused when it was opened if it is not ours."""
    return str(_scalar(storage, "SELECT version_num FROM alembic_version"))


def journal_mode(storage: FencedStorage) -> str:
    """Return SQLite's journal mode; `wal` unless the file system does not support it."""
    return str(_scalar(storage, "PRAGMA journal_mode"))


def damage(storage: FencedStorage) -> list[str]:
    """Let SQLite look for damage in its file; none is []."""

    def work(session: Session) -> list[str]:
        rows = session.connection().exec_driver_sql("PRAGMA quick_check(3)").scalars().all()
        return [line for row in rows if row != "ok" for line in str(row).splitlines()]

    return storage.do(work)


def round_trip(storage: FencedStorage) -> float:
    """Return the seconds that the store takes to answer, the least of five tries."""
    return min(_seconds(storage, sa.select(1)) for _ in range(5))


def write_and_remove(storage: FencedStorage) -> float:
    """Write a row and remove it, in one transaction, so that nobody ever sees it; return the seconds it took."""
    row = {"study_key": f"doctor-{uuid.uuid4().hex[:24]}", "number": 0, "study_id": -1, "fixed": {}}
    row |= dict.fromkeys(("batch", "origin", "sampler", "pruner"), "doctor")
    return _seconds(
        storage, sa.insert(TICKET).values(row), sa.delete(TICKET).where(TICKET.c.study_key == row["study_key"])
    )


_LIMITS = """
WITH client AS (
    SELECT * FROM pg_stat_activity
    WHERE datid IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend' AND pid <> pg_backend_pid()
), mine AS (SELECT * FROM pg_roles WHERE rolname = session_user)
SELECT 'the server''s max_connections', current_setting('max_connections')::int
    - current_setting('superuser_reserved_connections')::int
    - coalesce(current_setting('reserved_connections', true), '0')::int, count(*),
    count(*) FILTER (WHERE application_name = 'lmsearch') FROM client
UNION ALL SELECT 'the CONNECTION LIMIT of the role ' || mine.rolname, mine.rolconnlimit, count(client.pid),
    count(client.pid) FILTER (WHERE application_name = 'lmsearch')
    FROM mine LEFT JOIN client ON client.usesysid = mine.oid
    WHERE mine.rolconnlimit >= 0 AND NOT mine.rolsuper GROUP BY mine.rolname, mine.rolconnlimit
UNION ALL SELECT 'the CONNECTION LIMIT of the database ' || base.datname, base.datconnlimit, count(client.pid),
    count(client.pid) FILTER (WHERE application_name = 'lmsearch')
    FROM mine, pg_database base LEFT JOIN client ON client.datid = base.oid
    WHERE base.datname = current_database() AND base.datconnlimit >= 0 AND NOT mine.rolsuper
    GROUP BY base.datname, base.datconnlimit
"""


def connection_limits(storage: FencedStorage) -> list[Limit]:
    """Return PostgreSQL's limits on connections, the one with the least room first; none on SQLite."""
    if storage.engine.name == "sqlite":
        return []

    def work(session: Session) -> list[Limit]:
        rows = session.connection().exec_driver_sql(_LIMITS).all()
        return [Limit(name=name, allowed=allowed, used=used, ours=ours) for name, allowed, used, ours in rows]

    return sorted(storage.do(work), key=lambda limit: limit.allowed - limit.used)


def release_silent(storage: FencedStorage, ticket: Ticket) -> bool:
    """Release a ticket whose worker died; false where its holder sent a heartbeat after `ticket` was read."""
    mine = (
        TICKET.c.study_key == ticket.study_key,
        TICKET.c.number == ticket.number,
        TICKET.c.lease == ticket.lease,
        TICKET.c.seen <= ticket.seen,
    )
    values = {"state": OPEN, "expires": None} | trouble_values("death")

    def work(session: Session) -> bool:
        session.execute(sa.update(TICKET).where(*mine, TICKET.c.state == RUNNING).values(values))
        # Whoever else released it meanwhile did the same.
        return session.execute(sa.select(TICKET.c.state).where(*mine)).scalar_one_or_none() == OPEN

    return storage.do(work)


def ended_from_outside(storage: FencedStorage, study: StudyRef) -> list[int]:
    """List the trials, by number, that are ended while their tickets are not done."""
    trial = models.TrialModel
    ended = [state for state in TrialState if state.is_finished()]
    query = (
        sa.select(trial.number)
        .join(TICKET, TICKET.c.trial_id == trial.trial_id)
        .where(of_study(study), trial.study_id == study.id, TICKET.c.state != DONE, trial.state.in_(ended))
        .order_by(trial.number)
    )
    return [row[0] for row in _rows(storage, query)]


def orphaned_trials(storage: FencedStorage, study: StudyRef) -> list[OrphanedTrial]:
    """List the trials that are RUNNING for Optuna though no open or running ticket has them."""
    trial, attribute = models.TrialModel, models.TrialUserAttributeModel
    # One statement, so that a worker that creates or ends a trial is seen before or after it, never between.
    query = (
        sa.select(trial.number, TICKET.c.number, attribute.key)
        .outerjoin(TICKET, sa.and_(TICKET.c.trial_id == trial.trial_id, of_study(study)))
        .outerjoin(attribute, sa.and_(attribute.trial_id == trial.trial_id, attribute.key == "ticket"))
        .where(trial.study_id == study.id, trial.state == TrialState.RUNNING)
        .where(sa.or_(TICKET.c.state.is_(None), TICKET.c.state == DONE))
        .order_by(trial.number)
    )
    return [
        OrphanedTrial(number=number, has_ticket=ticket is not None, is_ours=key is not None)
        for number, ticket, key in _rows(storage, query)
    ]


def count_leftovers(storage: FencedStorage, keys: Collection[str]) -> int:
    """Return the number of rows of our tables that belong to no study; `keys` are those of all studies in the store."""
    counts = [sa.select(sa.func.count()).where(table.c.study_key.not_in(list(keys))) for table in (TICKET, EPOCH)]
    return sum(row[0] for count in counts for row in _rows(storage, count))


def remove_leftovers(storage: FencedStorage, keys: Collection[str]) -> None:
    """Remove the rows that `count_leftovers` counts.

    The caller holds the creation lock since before it read the keys: a copy that is being adopted has tickets before
    its key is stored.
    """

    def work(session: Session) -> None:
        for table in (TICKET, EPOCH):
            session.execute(sa.delete(table).where(table.c.study_key.not_in(list(keys))))

    storage.do(work)


def _rows(storage: FencedStorage, query: Any) -> list[Any]:
    def work(session: Session) -> list[Any]:
        return list(session.execute(query).all())

    return storage.do(work)


def _scalar(storage: FencedStorage, statement: str) -> Any:
    def work(session: Session) -> Any:
        return session.connection().exec_driver_sql(statement).scalar()

    return storage.do(work)


def _seconds(storage: FencedStorage, *statements: Any) -> float:
    """Return how long one transaction took; without the waiting, where it had to be repeated."""

    def call() -> float:
        began = time.perf_counter()
        with storage.transaction() as session:
            for statement in statements:
                session.execute(statement)
        return time.perf_counter() - began

    return storage.repeat(call)
