"""The budget and who runs what: tickets claimed, released, added and withdrawn, each in one transaction."""

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy.orm import Session

from lmsearch.errors import StoreError, StudyError
from lmsearch.formats import FORMATS, PLAIN, check_number
from lmsearch.store.schema import format_query
from lmsearch.store.storage import FencedStorage, trouble_values
from lmsearch.store.tables import (
    DONE,
    EPOCH,
    FORMAT,
    OPEN,
    PAUSED,
    RUNNING,
    TICKET,
    WORKER,
    HeldTicket,
    Progress,
    StudyRef,
    Ticket,
)

_STOP = "lmsearch:stop"  # a system attribute of a study


class StudyGoneError(StudyError):
    """The study was deleted, or renamed, while someone worked on it."""

    def __init__(self, study: StudyRef) -> None:
        super().__init__(f"the study {study.name!r} is gone: it was deleted or renamed while this ran")


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who claims: one worker process on one device. Its name is never used twice."""

    worker: str
    host: str
    process: int
    device: str


@dataclass(frozen=True, kw_only=True)
class NewTicket:
    """A trial to add to the budget."""

    origin: str  # manual, grid, search or enqueued
    sampler: str
    pruner: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    retry_of: int | None = None  # the number of the trial whose values it tries again


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What is to become of a study's tickets."""

    add: Sequence[NewTicket] = ()
    withdraw: Sequence[int] = ()


def list_tickets(storage: FencedStorage, study: StudyRef) -> list[Ticket]:
    """Return all tickets of a study, by number."""

    def work(session: Session) -> list[Ticket]:
        return _read(session, storage, study)

    return storage.do(work)


def change_tickets(storage: FencedStorage, study: StudyRef, decide: Callable[[list[Ticket]], Changes]) -> list[Ticket]:
    """Add and withdraw tickets as `decide` says of those there are, alone; return those there are then."""
    batch = uuid.uuid4().hex

    def work(session: Session) -> list[Ticket]:
        lock_study(session, study)
        tickets = _read(session, storage, study)
        if any(ticket.batch == batch for ticket in tickets):
            return tickets  # the reply to the first attempt was lost
        changes = decide(tickets)
        _apply(session, study, changes, batch, 1 + max((t.number for t in tickets), default=-1))
        return _read(session, storage, study)

    return storage.do(work)


def claim(storage: FencedStorage, study: StudyRef, holder: Holder) -> HeldTicket | None:
    """Take the next ticket: started ones first, then enqueued ones, then by number; None where none is to be had now.

    An expired lease is taken over only by a worker that has been connected for a whole lease time itself: after an
    outage every lease looks expired. A ticket whose trial ran out of memory runs alone on its device: it is taken
    where nothing else runs, and where it waits nothing else is started. Raises `StudyGoneError`.

    On PostgreSQL claims do not wait for each other: each passes over the rows that others are just taking. They share
    a lock of the study, which whoever changes its tickets, or claims while one must run alone, holds by itself.
    """

    def call() -> tuple[HeldTicket | None, bool]:
        parameters = _claim_parameters(storage, study, holder)
        with storage.engine.begin() as connection:
            _begin_claim(connection, storage, study)
            if storage.engine.name == "postgresql":
                row = connection.execute(_TAKE_BESIDE_OTHERS[_takes_over(storage)], parameters).mappings().first()
                if row is not None:
                    return HeldTicket(**row), True
            left, alone = connection.execute(_WHAT_IS_LEFT[storage.engine.name, _takes_over(storage)], parameters).one()
            if not left:
                check_there(connection, study)
            return None, not left or (storage.engine.name == "postgresql" and not alone)

    def call_alone() -> HeldTicket | None:
        parameters = _claim_parameters(storage, study, holder)
        with storage.engine.begin() as connection:
            # One after the other, so that two cannot both find a device empty.
            lock_study(connection, study)
            if (room := _room(connection, parameters)) is None:
                return None
            taken = connection.execute(_TAKE[storage.engine.name, _takes_over(storage), room], parameters)
            row = taken.mappings().first()
        return None if row is None else HeldTicket(**row)

    def done() -> HeldTicket | None:
        return _held(storage, study, holder)

    ticket, settled = storage.once(call, lambda: None if (held := done()) is None else (held, True))
    return ticket if settled else storage.once(call_alone, done)


def claim_paused(
    storage: FencedStorage, study: StudyRef, holder: Holder, paused: Sequence[Ticket]
) -> HeldTicket | None:
    """Take the first of these paused tickets that nobody has taken since they were read; None where none is left.

    None of them while a ticket of the study must run alone on its device.
    """

    def call() -> HeldTicket | None:
        parameters = _claim_parameters(storage, study, holder)
        with storage.engine.begin() as connection:
            _begin_claim(connection, storage, study)
            for ticket in paused:
                this = {"the_number": ticket.number, "the_lease": ticket.lease}
                row = connection.execute(_TAKE_PAUSED[storage.engine.name], parameters | this).mappings().first()
                if row is not None:
                    return HeldTicket(**row)
        return None

    return storage.once(call, lambda: _held(storage, study, holder))


def _claim_parameters(storage: FencedStorage, study: StudyRef, holder: Holder) -> dict[str, Any]:
    """Return the parameters of the statements of a claim."""
    return {
        "the_study": study.key,
        "the_id": study.id,
        "the_worker": holder.worker,
        "the_host": holder.host,
        "the_process": holder.process,
        "the_device": holder.device,
        "the_boot": storage.boot(),
        "lease_seconds": storage.lease_seconds,
        "the_time": time.monotonic(),  # on SQLite; PostgreSQL has a clock of its own
    }


def _takes_over(storage: FencedStorage) -> bool:
    connected = storage.connected_since
    return connected is not None and time.monotonic() - connected > storage.lease_seconds


def _begin_claim(connection: sa.Connection, storage: FencedStorage, study: StudyRef) -> None:
    """Look whether the store is still of our format, and on PostgreSQL share the study's lock."""
    if storage.engine.name == "postgresql":
        lock = sa.func.pg_advisory_xact_lock_shared(sa.bindparam("the_lock", type_=sa.BigInteger))
        found = connection.execute(sa.select(_FORMAT_QUERY, lock), {"the_lock": _lock_number(study)}).scalar()
    else:
        found = connection.execute(format_query()).scalar_one_or_none()
    _check_format(connection, found)


_FORMAT_QUERY = format_query().scalar_subquery()


def _lock_number(study: StudyRef) -> int:
    """Return the number of a study's advisory lock, of 63 bits."""
    return int.from_bytes(hashlib.sha256(study.key.encode()).digest()[:8]) >> 1


# The statements of a claim, each built once: to build them costs more than to run them.


def _clock(dialect: str) -> sa.ColumnElement[float]:
    if dialect == "sqlite":
        return sa.bindparam("the_time", type_=sa.Float(53))
    return sa.cast(sa.func.extract("epoch", sa.func.clock_timestamp()), sa.Float(53))


_BOUND = sa.and_(TICKET.c.study_key == sa.bindparam("the_study"), TICKET.c.study_id == sa.bindparam("the_id"))
_ALONE = TICKET.c.memory_failures == 1


def _live(dialect: str) -> sa.ColumnElement[bool]:
    return sa.and_(
        TICKET.c.state == RUNNING, TICKET.c.expires >= _clock(dialect), TICKET.c.boot == sa.bindparam("the_boot")
    )


def _free(dialect: str, takes_over: bool) -> sa.ColumnElement[bool]:
    """Return the condition under which a ticket may be claimed, its device apart."""
    free: sa.ColumnElement[bool] = TICKET.c.state == OPEN
    if takes_over:
        free = sa.or_(free, sa.and_(TICKET.c.state == RUNNING, sa.not_(_live(dialect))))
    return sa.and_(_BOUND, free)


def _next(free: sa.ColumnElement[bool]) -> sa.Select[Any]:
    columns = TICKET.c
    alone_first = sa.case((_ALONE, 0), else_=1)
    started_first = sa.case((columns.trial_id.is_not(None), 0), (columns.origin == "enqueued", 1), else_=2)
    return sa.select(columns.number).where(free).order_by(alone_first, started_first, columns.number).limit(1)


def _taking(dialect: str) -> Any:
    columns = TICKET.c
    clock = _clock(dialect)
    return (
        sa.update(TICKET)
        .where(columns.study_key == sa.bindparam("the_study"))
        .values(
            state=RUNNING,
            lease=columns.lease + 1,
            attempts=columns.attempts + 1,
            # Whoever still held it died without a word.
            deaths=columns.deaths + sa.case((columns.state == RUNNING, 1), else_=0),
            worker=sa.bindparam("the_worker"),
            host=sa.bindparam("the_host"),
            process=sa.bindparam("the_process"),
            device=sa.bindparam("the_device"),
            boot=sa.bindparam("the_boot"),
            expires=clock + sa.bindparam("lease_seconds", type_=sa.Float(53)),
            seen=clock,
            tokens_per_second=None,
        )
        .returning(*columns)
    )


def _take_beside_others(takes_over: bool) -> Any:
    """Return the claim of a study in which nothing must run alone: rows that others are taking are passed over."""
    pick = _next(_free("postgresql", takes_over)).with_for_update(skip_locked=True).cte("pick")
    alone_unfinished = sa.select(TICKET.c.number).where(_BOUND, _ALONE, TICKET.c.state != DONE).exists()
    taking = _taking("postgresql").add_cte(pick)
    return taking.where(TICKET.c.number == sa.select(pick.c.number).scalar_subquery(), sa.not_(alone_unfinished))


def _take(dialect: str, takes_over: bool, room: str) -> Any:
    free = _free(dialect, takes_over)
    wanted = free if room == "any" else sa.and_(free, sa.not_(_ALONE))
    return _taking(dialect).where(TICKET.c.number == _next(wanted).scalar_subquery())


def _take_paused(dialect: str) -> Any:
    alone_unfinished = sa.select(TICKET.c.number).where(_BOUND, _ALONE, TICKET.c.state != DONE).exists()
    as_read = TICKET.c.number == sa.bindparam("the_number"), TICKET.c.lease == sa.bindparam("the_lease")
    return _taking(dialect).where(_BOUND, *as_read, TICKET.c.state == PAUSED, sa.not_(alone_unfinished))


def _what_is_left(dialect: str, takes_over: bool) -> Any:
    left = sa.select(TICKET.c.number).where(_free(dialect, takes_over)).exists()
    alone = sa.select(TICKET.c.number).where(_BOUND, _ALONE, TICKET.c.state != DONE).exists()
    return sa.select(left, alone)


_DIALECTS = ("sqlite", "postgresql")
_TAKE_BESIDE_OTHERS = {takes_over: _take_beside_others(takes_over) for takes_over in (False, True)}
_TAKE = {
    (dialect, takes_over, room): _take(dialect, takes_over, room)
    for dialect in _DIALECTS
    for takes_over in (False, True)
    for room in ("any", "beside")
}
_TAKE_PAUSED = {dialect: _take_paused(dialect) for dialect in _DIALECTS}
_WHAT_IS_LEFT = {
    (dialect, takes_over): _what_is_left(dialect, takes_over) for dialect in _DIALECTS for takes_over in (False, True)
}
_HERE = sa.and_(_BOUND, TICKET.c.host == sa.bindparam("the_host"), TICKET.c.device == sa.bindparam("the_device"))
_OTHERS_HERE = {dialect: sa.select(TICKET.c.memory_failures).where(_HERE, _live(dialect)) for dialect in _DIALECTS}
_WAITS_HERE = sa.select(sa.select(TICKET.c.number).where(_HERE, _ALONE, TICKET.c.state == OPEN).exists())


def _check_format(connection: sa.Connection, found: str | None) -> None:
    """Raise `LmsearchError` where the store is of another format than when this process opened it."""
    if found == str(FORMATS["store"]):
        return
    if found is not None and found.isdecimal() and int(found) > FORMATS["store"]:
        version = connection.execute(sa.select(FORMAT.c.lmsearch).where(FORMAT.c.format == int(found))).scalar()
        check_number("store", "the store", int(found), version)
    raise StoreError("the store was replaced by one of another format while this ran; start again")


def _held(storage: FencedStorage, study: StudyRef, holder: Holder) -> HeldTicket | None:
    mine = sa.select(*TICKET.c).where(
        TICKET.c.study_key == study.key, TICKET.c.worker == holder.worker, TICKET.c.state == RUNNING
    )
    with storage.engine.begin() as connection:
        row = connection.execute(mine).mappings().first()
    return None if row is None else HeldTicket(**row)


def live_lease(storage: FencedStorage) -> sa.ColumnElement[bool]:
    """Return the condition that a ticket is under a lease that has not run out."""
    return sa.and_(TICKET.c.state == RUNNING, TICKET.c.expires >= storage.clock(), TICKET.c.boot == storage.boot())


def _room(connection: sa.Connection, parameters: Mapping[str, Any]) -> str | None:
    """Return which tickets there is room for on the holder's device: `any`, those `beside` others, or none."""
    others = connection.execute(_OTHERS_HERE[connection.engine.name], parameters).scalars().all()
    if 1 in others or (others and connection.execute(_WAITS_HERE, parameters).scalar()):
        return None
    return "beside" if others else "any"


def has_unfinished(storage: FencedStorage, study: StudyRef) -> bool:
    """Whether a study has trials left."""

    def work(session: Session) -> bool:
        left = sa.select(TICKET.c.number).where(of_study(study), TICKET.c.state != DONE).limit(1)
        return session.execute(left).first() is not None

    return storage.do(work)


def has_paused(storage: FencedStorage, study: StudyRef) -> bool:
    """Whether a study has trials that are paused."""

    def work(session: Session) -> bool:
        paused = sa.select(TICKET.c.number).where(of_study(study), TICKET.c.state == PAUSED).limit(1)
        return session.execute(paused).first() is not None

    return storage.do(work)


def release_worker(
    storage: FencedStorage,
    study: StudyRef,
    worker: str,
    trouble: str | None = None,
    peak_memory: int | None = None,
) -> bool:
    """Release what a worker held that is known to have left; `trouble` (a key of `TROUBLES`) says how it ended.

    Returns whether it held anything.
    """
    values = {} if trouble is None else trouble_values(trouble, peak_memory)

    def work(session: Session) -> bool:
        released: Any = session.execute(
            sa.update(TICKET)
            .where(TICKET.c.study_key == study.key, TICKET.c.worker == worker, TICKET.c.state == RUNNING)
            .values({"state": OPEN, "expires": None} | values)
        )
        return bool(released.rowcount)

    return storage.do(work)


def leases(storage: FencedStorage, study: StudyRef) -> list[Ticket]:
    """List the tickets of a study that are under a lease that has not run out."""

    def work(session: Session) -> list[Ticket]:
        rows = session.execute(sa.select(*storage.ticket_columns).where(of_study(study), live_lease(storage)))
        return [Ticket(**row) for row in rows.mappings()]

    return storage.do(work)


def present(storage: FencedStorage) -> tuple[float, str]:
    """Return the time by the clock of leases, in seconds, and the boot that it counts from."""

    def work(session: Session) -> float:
        return float(session.execute(sa.select(storage.clock())).scalar_one())

    return storage.do(work), storage.boot()


@dataclass(frozen=True, kw_only=True)
class StopState:
    """Whether a study stands stopped."""

    requests: int = 0  # how often its workers were asked to stop
    stopped: bool = False
    at: float | None = None  # for people: seconds since 1970, by the clock of the host that asked


def ask_to_stop(storage: FencedStorage, study: StudyRef, stopped: bool) -> None:
    """Ask all workers of a study, everywhere, to save and leave; or, with false, let new ones work again."""
    state = read_stop(storage, study)
    if state.stopped == stopped:
        return
    stored = {"asked": state.requests + stopped, "stopped": stopped, "at": time.time()}
    storage.set_study_system_attr(study.id, _STOP, stored)


def read_stop(storage: FencedStorage, study: StudyRef) -> StopState:
    """Return whether a study stands stopped now, and how often its workers were asked to stop."""

    def work(session: Session) -> StopState:
        return _stop_state(session, study)

    return storage.do(work)


def send_heartbeat(
    storage: FencedStorage, study: StudyRef, ticket: HeldTicket, progress: Progress, also: sa.Update | None = None
) -> tuple[bool, int]:
    """Renew a lease once, without waiting for a store that is away; `also` is executed in the same transaction.

    Returns whether it is still held, and how often the study's workers were asked to stop. It comes from each worker
    every ten seconds, so one transaction has to do.
    """
    requests = 0

    def within(session: Session) -> None:
        nonlocal requests
        if also is not None:
            session.execute(also)
        requests = _stop_state(session, study).requests

    return storage.renew(ticket, progress, within), requests


def _stop_state(session: Session, study: StudyRef) -> StopState:
    attribute = models.StudySystemAttributeModel
    query = sa.select(attribute.value_json).where(attribute.study_id == study.id, attribute.key == _STOP)
    found = session.execute(query).scalar_one_or_none()
    stored = None if found is None else json.loads(found)
    if not isinstance(stored, dict) or not isinstance(stored.get("asked"), int):
        return StopState()
    at = stored.get("at")
    return StopState(
        requests=stored["asked"], stopped=stored.get("stopped") is True, at=at if isinstance(at, float) else None
    )


def close_ended(storage: FencedStorage, study: StudyRef) -> None:
    """Close tickets whose trials were ended from outside: by the dashboard, or by a script of the user's."""
    ended = [state for state in TrialState if state.is_finished()]
    trial = models.TrialModel
    finished = sa.select(trial.trial_id).where(trial.study_id == study.id, trial.state.in_(ended))

    def work(session: Session) -> None:
        session.execute(
            sa.update(TICKET)
            .where(
                TICKET.c.study_key == study.key,
                TICKET.c.state != DONE,
                TICKET.c.trial_id.in_(finished.scalar_subquery()),
            )
            .values(state=DONE, expires=None)
        )

    storage.do(work)


def purge_leftovers(storage: FencedStorage, study: StudyRef) -> None:
    """Remove rows left by a deleted study whose id this study has been given."""

    def work(session: Session) -> None:
        for table in (TICKET, EPOCH):
            session.execute(sa.delete(table).where(table.c.study_id == study.id, table.c.study_key != study.key))

    storage.do(work)


def delete_study(storage: FencedStorage, study: StudyRef) -> None:
    """Remove a study with its trials, tickets and epochs, all or nothing.

    Raises `StudyError` where a worker has a trial of it, and `StudyGoneError`.
    """

    def work(session: Session) -> bool:
        lock_study(session, study)
        if session.execute(sa.select(TICKET.c.number).where(of_study(study), live_lease(storage))).first():
            raise StudyError(f"a worker has just started on {study.name}; stop it first with: lmsearch stop")
        for table in (TICKET, EPOCH):
            session.execute(sa.delete(table).where(table.c.study_key == study.key, table.c.study_id == study.id))
        session.execute(sa.delete(WORKER).where(WORKER.c.study_key == study.key))
        session.delete(session.get(models.StudyModel, study.id))  # with its trials, as Optuna deletes it
        return True

    def done(session: Session) -> bool | None:
        try:
            lock_study(session, study)
        except StudyGoneError:
            return True
        return None

    storage.do_once(work, done)


def lock_study(session: Session | sa.Connection, study: StudyRef) -> None:
    """Let nobody else change or claim a study's tickets until this transaction ends; raises `StudyGoneError`."""
    key, name = models.StudyModel.study_id, models.StudyModel.study_name
    this = (key == study.id, name == study.name)
    connection = session.connection() if isinstance(session, Session) else session
    if connection.engine.name == "sqlite":  # the write lock is the lock
        touched: Any = connection.execute(sa.update(models.StudyModel).where(*this).values(study_id=study.id))
        there = touched.rowcount == 1
    else:
        lock = sa.bindparam("the_lock", type_=sa.BigInteger)
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)), {"the_lock": _lock_number(study)})
        there = connection.execute(sa.select(key).where(*this).with_for_update()).first() is not None
    if not there:
        raise StudyGoneError(study)


def check_study(storage: FencedStorage, study: StudyRef) -> None:
    """Raise `StudyGoneError` where a study is no longer in the store under its name."""

    def work(session: Session) -> None:
        check_there(session, study)

    storage.do(work)


def check_there(session: Session | sa.Connection, study: StudyRef) -> None:
    """Raise `StudyGoneError` where a study's row is no longer there under its name."""
    key, name = models.StudyModel.study_id, models.StudyModel.study_name
    if session.execute(sa.select(key).where(key == study.id, name == study.name)).first() is None:
        raise StudyGoneError(study)


def of_study(study: StudyRef) -> sa.ColumnElement[bool]:
    """Return the condition that a ticket is the study's."""
    return sa.and_(TICKET.c.study_key == study.key, TICKET.c.study_id == study.id)


def _read(session: Session, storage: FencedStorage, study: StudyRef) -> list[Ticket]:
    if storage.format == PLAIN:
        return []
    rows = session.execute(sa.select(*storage.ticket_columns).where(of_study(study)).order_by(TICKET.c.number))
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
            "retry_of": new.retry_of,
        }
        for number, new in enumerate(changes.add, first)
    ]
    if rows:
        session.execute(sa.insert(TICKET), rows)
