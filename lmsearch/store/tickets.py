"""Who owes and who does what: tickets claimed, given back, added and withdrawn, each in one transaction."""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy.orm import Session

from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import DONE, EPOCH, OPEN, RUNNING, TICKET, StudyRef, Ticket


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who claims: one worker process on one device. Its name is never used twice."""

    worker: str
    host: str
    process: int
    device: str


@dataclass(frozen=True, kw_only=True)
class NewTicket:
    """A trial to be owed."""

    origin: str  # manual, grid, search or enqueued
    sampler: str
    pruner: str
    fixed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What is to become of a study's tickets."""

    add: Sequence[NewTicket] = ()
    withdraw: Sequence[int] = ()


def list_tickets(storage: FencedStorage, study: StudyRef) -> list[Ticket]:
    """Give all tickets of a study, by number."""

    def call(again: bool) -> list[Ticket]:
        with storage.transaction() as session:
            return _read(session, study)

    return storage.persist(call)


def change_tickets(storage: FencedStorage, study: StudyRef, decide: Callable[[list[Ticket]], Changes]) -> list[Ticket]:
    """Add and withdraw tickets as `decide` says of those there are, alone; give those there are then."""
    batch = uuid.uuid4().hex

    def call(again: bool) -> list[Ticket]:
        with storage.transaction() as session:
            _lock_study(session, study, storage.engine.name)
            tickets = _read(session, study)
            if any(ticket.batch == batch for ticket in tickets):
                return tickets  # the reply to the first attempt was lost
            changes = decide(tickets)
            _apply(session, study, changes, batch, 1 + max((t.number for t in tickets), default=-1))
            return _read(session, study)

    return storage.persist(call)


def claim(storage: FencedStorage, study: StudyRef, holder: Holder) -> Ticket | None:
    """Take the next ticket: begun ones first, then enqueued ones, then by number; None where there is none.

    An expired lease is taken over only by a worker that has been connected for a whole lease time itself: after an
    outage every lease looks expired.
    """
    columns = TICKET.c
    free: sa.ColumnElement[bool] = columns.state == OPEN
    connected = storage.connected_since
    if connected is not None and time.monotonic() - connected > storage.lease_seconds:
        stale = sa.or_(columns.expires < storage.clock(), columns.boot != storage.boot())
        free = sa.or_(free, sa.and_(columns.state == RUNNING, stale))
    begun_first = sa.case((columns.trial_id.is_not(None), 0), (columns.origin == "enqueued", 1), else_=2)
    pick = (
        sa.select(columns.number)
        .where(columns.study_key == study.key, columns.study_id == study.id, free)
        .order_by(begun_first, columns.number)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    take = (
        sa.update(TICKET)
        .where(columns.study_key == study.key, columns.number == pick)
        .values(
            state=RUNNING,
            lease=columns.lease + 1,
            attempts=columns.attempts + 1,
            worker=holder.worker,
            host=holder.host,
            process=holder.process,
            device=holder.device,
            boot=storage.boot(),
            expires=storage.clock() + storage.lease_seconds,
            tokens_per_second=None,
        )
        .returning(*columns)
    )

    def call(again: bool) -> Ticket | None:
        with storage.transaction() as session:
            if again:  # the reply to the first attempt may have been lost
                mine = sa.select(*columns).where(
                    columns.study_key == study.key, columns.worker == holder.worker, columns.state == RUNNING
                )
                held = session.execute(mine).mappings().first()
                if held is not None:
                    return Ticket(**held)
            row = session.execute(take).mappings().first()
        return None if row is None else Ticket(**row)

    return storage.persist(call)


def release_worker(storage: FencedStorage, study: StudyRef, worker: str) -> None:
    """Give back what a worker held that is known to be dead."""

    def call(again: bool) -> None:
        with storage.transaction() as session:
            session.execute(
                sa.update(TICKET)
                .where(TICKET.c.study_key == study.key, TICKET.c.worker == worker, TICKET.c.state == RUNNING)
                .values(state=OPEN, expires=None)
            )

    storage.persist(call)


def close_ended(storage: FencedStorage, study: StudyRef) -> None:
    """Close tickets whose trials were ended from outside: by the dashboard, or by a script of the user's."""
    ended = [state for state in TrialState if state.is_finished()]
    trial = models.TrialModel
    finished = sa.select(trial.trial_id).where(trial.study_id == study.id, trial.state.in_(ended))

    def call(again: bool) -> None:
        with storage.transaction() as session:
            session.execute(
                sa.update(TICKET)
                .where(
                    TICKET.c.study_key == study.key,
                    TICKET.c.state != DONE,
                    TICKET.c.trial_id.in_(finished.scalar_subquery()),
                )
                .values(state=DONE, expires=None)
            )

    storage.persist(call)


def purge_strays(storage: FencedStorage, study: StudyRef) -> None:
    """Remove rows left by a deleted study whose id this study has been given."""

    def call(again: bool) -> None:
        with storage.transaction() as session:
            for table in (TICKET, EPOCH):
                session.execute(sa.delete(table).where(table.c.study_id == study.id, table.c.study_key != study.key))

    storage.persist(call)


def _lock_study(session: Session, study: StudyRef, engine: str) -> None:
    key = models.StudyModel.study_id
    if engine == "sqlite":  # the write lock is the lock
        session.execute(sa.update(models.StudyModel).where(key == study.id).values(study_id=study.id))
    else:
        session.execute(sa.select(key).where(key == study.id).with_for_update())


def _read(session: Session, study: StudyRef) -> list[Ticket]:
    rows = session.execute(
        sa.select(*TICKET.c)
        .where(TICKET.c.study_key == study.key, TICKET.c.study_id == study.id)
        .order_by(TICKET.c.number)
    )
    return [Ticket(**row) for row in rows.mappings()]


def _apply(session: Session, study: StudyRef, changes: Changes, batch: str, first: int) -> None:
    if changes.withdraw:
        session.execute(
            sa.delete(TICKET).where(
                TICKET.c.study_key == study.key,
                TICKET.c.number.in_(list(changes.withdraw)),
                TICKET.c.lease == 0,
            )
        )
    rows = [
        {
            "study_key": study.key,
            "number": number,
            "study_id": study.id,
            "batch": batch,
            "origin": new.origin,
            "sampler": new.sampler,
            "pruner": new.pruner,
            "fixed": dict(new.fixed),
        }
        for number, new in enumerate(changes.add, first)
    ]
    if rows:
        session.execute(sa.insert(TICKET), rows)
