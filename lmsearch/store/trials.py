"""The trials and tickets of a study, read by few queries, and those that have ended once.

Optuna's own reading makes an object of each row; of a study of 10,000 trials that takes seconds. What is read here is
what `TrialRecord` has, by the columns that it needs.
"""

import contextlib
import functools
import gc
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy.orm import Session

from lmsearch.config import Value
from lmsearch.formats import PLAIN
from lmsearch.store.records import StudyInfo, StudyRecord, TrialRecord
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import DONE, EPOCH, FROM, OPEN, PAUSED, TICKET, EpochRow, StudyRef, Ticket
from lmsearch.store.tickets import check_there, of_study

_TEXTS = ("origin", "sampler", "reason", "traceback", "sample", "model", FROM)
_NUMBERS = {"parameters": int, "known_perplexity": float}
_CHUNK = 500  # ids in one query

_TABLES = models.BaseModel.metadata.tables
_TRIAL, _PARAM = _TABLES["trials"].c, _TABLES["trial_params"].c
_CURVE, _ATTRIBUTE = _TABLES["trial_intermediate_values"].c, _TABLES["trial_user_attributes"].c
_VALUE = _TABLES["trial_values"].c
_KIND = models.TrialIntermediateValueModel.TrialIntermediateValueType
_NOT_FINITE = {_KIND.INF_POS: math.inf, _KIND.INF_NEG: -math.inf, _KIND.NAN: math.nan}

Part = sa.ColumnElement[bool]
"""The condition on a trial's id that it is to be read."""


class StudyReader:
    """Reads one study again and again: what has ended is read once."""

    def __init__(self, storage: FencedStorage, info: StudyInfo) -> None:
        self.storage = storage
        self.info = info
        self._trials: dict[int, TrialRecord] = {}  # by Optuna's id
        self._unfinished: list[int] = []  # their ids
        self._tickets: dict[int, Ticket] = {}  # by number

    def read(self, epochs: bool = False) -> StudyRecord:
        """Read the study as it is now, `epochs` with what each epoch gave. Raises `StudyGoneError`."""
        with _without_collector():
            return self.storage.repeat(lambda: self._read(epochs))

    def _read(self, epochs: bool) -> StudyRecord:
        study = self.info.ref
        with _one_moment(self.storage) as session:
            tickets = self._read_tickets(session)
            by_trial = {ticket.trial_id: ticket for ticket in tickets.values() if ticket.trial_id is not None}
            found: dict[int, TrialRecord] = {}
            for ids in [*_chunks(self._unfinished)] or [[]]:
                found |= _read_trials(session, study, by_trial, _newer(study, max(self._trials, default=0), ids))
            if not found:
                check_there(session, study)
        self._tickets = tickets
        self._trials |= found
        self._unfinished = [id for id in (*self._unfinished, *found) if self._trials[id].is_open]
        self._unfinished = sorted(set(self._unfinished))
        trials = sorted(self._trials.values(), key=lambda trial: trial.number)
        if epochs:
            rows = read_epochs(self.storage, study)
            trials = [trial.with_epochs(rows.get(trial.number, ())) for trial in trials]
        return StudyRecord(
            info=self.info, trials=tuple(trials), tickets=tuple(tickets[number] for number in sorted(tickets))
        )

    def _read_tickets(self, session: Session) -> dict[int, Ticket]:
        """Read the tickets that are not done, those that are new, and those that were not done at the last look."""
        known = self._tickets
        open_before = [ticket.number for ticket in known.values() if not ticket.is_done]
        newer = TICKET.c.number > max(known, default=-1)
        now = _tickets(session, self.storage, self.info.ref, sa.or_(TICKET.c.state != DONE, newer))
        for numbers in _chunks([number for number in open_before if number not in now]):
            now |= _tickets(session, self.storage, self.info.ref, TICKET.c.number.in_(numbers))
        gone = [number for number in open_before if number not in now]  # withdrawn
        return {number: ticket for number, ticket in (known | now).items() if number not in gone}


@contextlib.contextmanager
def _one_moment(storage: FencedStorage) -> Iterator[Session]:
    """Provide a transaction in which all queries see the store as it is at the first of them."""
    with storage.transaction() as session:
        if storage.engine.name == "sqlite":
            session.connection().exec_driver_sql("BEGIN")  # Python's driver begins none before it writes
        else:
            session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        yield session


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Let Python's collector of cycles rest: it would look again and again through new objects, which all stay."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def read_study(storage: FencedStorage, info: StudyInfo, epochs: bool = False) -> StudyRecord:
    """Read a study's trials and tickets; `epochs` adds what each epoch gave. Raises `StudyGoneError`."""
    return StudyReader(storage, info).read(epochs)


def read_trial(storage: FencedStorage, info: StudyInfo, number: int) -> TrialRecord | None:
    """Read one trial with its epochs; None where there is none of that number."""

    def call() -> TrialRecord | None:
        with _one_moment(storage) as session:
            query = sa.select(_TRIAL.trial_id).where(_TRIAL.study_id == info.ref.id, _TRIAL.number == number)
            id = session.execute(query).scalar_one_or_none()
            if id is None:
                return None
            tickets = _tickets(session, storage, info.ref, TICKET.c.trial_id == id)
            by_trial = {one.trial_id: one for one in tickets.values() if one.trial_id is not None}
            return _read_trials(session, info.ref, by_trial, _among([id]))[id]

    found = storage.repeat(call)
    return None if found is None else found.with_epochs(read_epochs(storage, info.ref, number).get(number, ()))


def models_beyond(storage: FencedStorage, study: StudyRef, best: int) -> list[str]:
    """List where the weights of complete trials lie that are not among so many best."""
    query = (
        sa.select(_ATTRIBUTE.value_json)
        .select_from(models.TrialModel)
        .join(models.TrialValueModel, sa.and_(_VALUE.trial_id == _TRIAL.trial_id, _VALUE.objective == 0))
        .outerjoin(
            models.TrialUserAttributeModel,
            sa.and_(_ATTRIBUTE.trial_id == _TRIAL.trial_id, _ATTRIBUTE.key == "model"),
        )
        .where(_TRIAL.study_id == study.id, _TRIAL.state == TrialState.COMPLETE)
        .order_by(_VALUE.value.nulls_last(), _TRIAL.number)
        .offset(best)
    )
    texts = storage.do(lambda session: [text for text in session.execute(query).scalars() if text is not None])
    return [model for text in texts if isinstance(model := _parsed(text), str)]


def count_trials(storage: FencedStorage, study: StudyRef) -> int:
    """Return the number of trials of a study."""

    def work(session: Session) -> int:
        query = sa.select(sa.func.count()).select_from(_TABLES["trials"]).where(_TRIAL.study_id == study.id)
        return int(session.execute(query).scalar_one())

    return storage.do(work)


def _newer(study: StudyRef, last: int, ids: Sequence[int]) -> Callable[[Any], Part]:
    """Return the condition for trials that are newer than the last one that was read, and for some others."""
    newer = sa.select(_TRIAL.trial_id).where(_TRIAL.study_id == study.id, _TRIAL.trial_id > last)
    return lambda column: sa.or_(column.in_(newer), column.in_(ids)) if ids else column.in_(newer)


def _among(ids: Sequence[int]) -> Callable[[Any], Part]:
    return lambda column: column.in_(ids)


def _chunks(ids: Sequence[int]) -> Iterable[Sequence[int]]:
    return (ids[first : first + _CHUNK] for first in range(0, len(ids), _CHUNK))


def _tickets(session: Session, storage: FencedStorage, study: StudyRef, which: Part) -> dict[int, Ticket]:
    if storage.format == PLAIN:
        return {}
    found = session.execute(sa.select(*storage.ticket_columns).where(of_study(study), which))
    names = tuple(found.keys())
    tickets = [Ticket(**dict(zip(names, row, strict=True))) for row in found.all()]
    return {ticket.number: ticket for ticket in tickets}


def _read_trials(
    session: Session, study: StudyRef, by_trial: Mapping[int, Ticket], part: Callable[[Any], Part]
) -> dict[int, TrialRecord]:
    """Read trials by their ids: `part` gives the condition on a column that holds one."""
    heads = session.execute(
        sa.select(
            _TRIAL.trial_id,
            _TRIAL.number,
            sa.type_coerce(_TRIAL.state, sa.String),  # the name of a state: an enumeration's processor is slow
            _TRIAL.datetime_start,
            _TRIAL.datetime_complete,
        )
        .where(_TRIAL.study_id == study.id, part(_TRIAL.trial_id))
        .order_by(_TRIAL.number)
    ).all()
    if not heads:
        return {}
    params = _read_params(session, part)
    curves = _read_curves(session, part)
    if not study.key:  # another program's: what it reported at the end is its value, whatever came before
        for id, value in session.execute(sa.select(_VALUE.trial_id, _VALUE.value).where(part(_VALUE.trial_id))).all():
            curves[id] = {max(curves.get(id, ()), default=1): math.inf if value is None else value}
    attributes = _read_attributes(session, part)
    return {
        head[0]: _record(head, params.get(head[0], {}), curves.get(head[0], {}), attributes.get(head[0], {}), by_trial)
        for head in heads
    }


def _record(
    head: Any, params: dict[str, Value], curve: dict[int, float], attrs: dict[str, Any], by_trial: Mapping[int, Ticket]
) -> TrialRecord:
    id, number, state, started, ended = head
    ticket = by_trial.get(id)
    return TrialRecord(
        id=id,
        number=number,
        outcome=_outcome(state, attrs.get("reason", ""), ticket),
        params=params,
        curve=curve,
        origin=attrs.get("origin", ""),
        sampler=attrs.get("sampler", ""),
        reason=attrs.get("reason", ""),
        traceback=attrs.get("traceback", ""),
        sample=attrs.get("sample", ""),
        parameters=attrs.get("parameters"),
        model=model if "\0" not in (model := attrs.get("model", "")) else "",
        origin_trial=attrs.get(FROM, ""),
        started=started,
        ended=ended,
        ticket=ticket,
        known_perplexity=attrs.get("known_perplexity"),
    )


def _read_params(session: Session, part: Callable[[Any], Part]) -> dict[int, dict[str, Value]]:
    found: dict[int, dict[str, Value]] = {}
    mine = part(_PARAM.trial_id)
    kinds = session.execute(sa.select(_PARAM.param_name, _PARAM.distribution_json).where(mine).distinct()).all()
    columns = (_PARAM.trial_id, _PARAM.param_name, _PARAM.param_value)
    if len({name for name, _ in kinds}) == len(kinds):  # each has one distribution, which need not be read each time
        spell = {name: _distribution(text).to_external_repr for name, text in kinds}
        for id, name, value in session.execute(sa.select(*columns).where(mine).order_by(_PARAM.param_id)).all():
            found.setdefault(id, {})[name] = spell[name](value)
        return found
    query = sa.select(*columns, _PARAM.distribution_json).where(mine).order_by(_PARAM.param_id)
    for id, name, value, text in session.execute(query).all():
        found.setdefault(id, {})[name] = _distribution(text).to_external_repr(value)
    return found


@functools.lru_cache(maxsize=1_000)
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)


def _read_curves(session: Session, part: Callable[[Any], Part]) -> dict[int, dict[int, float]]:
    found: dict[int, dict[int, float]] = {}
    query = sa.select(_CURVE.trial_id, _CURVE.step, _CURVE.intermediate_value).where(part(_CURVE.trial_id))
    for id, step, value in session.execute(query.where(_CURVE.intermediate_value_type == _KIND.FINITE)).all():
        found.setdefault(id, {})[step] = value
    for id, curve in found.items():  # mostly they come in order, and a database sorts them all to be sure
        if list(curve) != (steps := sorted(curve)):
            found[id] = {step: curve[step] for step in steps}
    odd = sa.select(_CURVE.trial_id, _CURVE.step, _CURVE.intermediate_value_type)
    for id, step, kind in session.execute(
        odd.where(part(_CURVE.trial_id), _CURVE.intermediate_value_type != _KIND.FINITE)
    ):  # another program's: ours are the vocabulary's size where they are not finite
        found[id] = dict(sorted((found.get(id, {}) | {step: _NOT_FINITE[kind]}).items()))
    return found


def _read_attributes(session: Session, part: Callable[[Any], Part]) -> dict[int, dict[str, Any]]:
    """Read what we keep of trials; what is not of its type is left out: whoever may write may write there."""
    query = sa.select(_ATTRIBUTE.trial_id, _ATTRIBUTE.key, _ATTRIBUTE.value_json)
    wanted = query.where(part(_ATTRIBUTE.trial_id), _ATTRIBUTE.key.in_([*_TEXTS, *_NUMBERS]))
    found: dict[int, dict[str, Any]] = {}
    for id, key, text in session.execute(wanted).all():
        if (value := kept_value(key, text)) is not None:
            found.setdefault(id, {})[key] = value
    return found


def kept_value(key: str, text: str) -> Any:
    """Read an attribute of a trial that we keep; None where it is not of its type: anybody may have written it."""
    value = _parsed(text)
    return value if type(value) is _NUMBERS.get(key, str) else None


@functools.lru_cache(maxsize=10_000)
def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _outcome(state: str, reason: str, ticket: Ticket | None) -> str:
    match state:
        case TrialState.COMPLETE.name:
            return "complete"
        case TrialState.FAIL.name:
            return "failed"
        case TrialState.PRUNED.name:
            return reason if reason in ("diverged", "infeasible") else "pruned"
        case TrialState.RUNNING.name:
            return {OPEN: "waiting", PAUSED: "paused"}.get(ticket.state if ticket else "", "running")
        case _:
            return "waiting"


def read_epochs(storage: FencedStorage, study: StudyRef, trial: int | None = None) -> dict[int, list[EpochRow]]:
    """Return the epochs of a study's trials, or of one of them, by trial number."""
    columns = EPOCH.c
    query = (
        sa.select(columns.trial_number, columns.epoch, columns.train_loss, columns.valid_loss, columns.seconds,
                  columns.tokens, columns.learning_rate,
                  columns.ended if storage.format >= 4 else sa.null())
        .where(columns.study_key == study.key, columns.study_id == study.id)
        .order_by(columns.trial_number, columns.epoch)
    )  # fmt: skip
    if trial is not None:
        query = query.where(columns.trial_number == trial)

    def work(session: Session) -> dict[int, list[EpochRow]]:
        found: dict[int, list[EpochRow]] = {}
        for number, epoch, train_loss, valid_loss, seconds, tokens, rate, ended in session.execute(query).all():
            row = EpochRow(
                epoch=epoch,
                train_loss=math.nan if train_loss is None else train_loss,
                valid_loss=math.nan if valid_loss is None else valid_loss,
                seconds=seconds,
                tokens=tokens,
                learning_rate=rate,
                ended=ended,
            )
            found.setdefault(number, []).append(row)
        return found

    return {} if storage.format == PLAIN else storage.do(work)
