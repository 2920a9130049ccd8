"""A study that was copied or renamed by another program, made a study of its own again.

optuna-dashboard renames by copying and deleting; `optuna.copy_study` copies also between stores. A copy has the
attributes of the study and its trials, but no tickets, and its key belongs to another study.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.orm import Session

from lmsearch.store.opening import creating
from lmsearch.store.records import StudyInfo, open_study, store_info
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import DONE, EPOCH, OPEN, TICKET, StudyRef, Ticket
from lmsearch.store.tickets import list_tickets

_REASON = "copied"


def is_copy(storage: FencedStorage, info: StudyInfo) -> bool:
    """Whether a study is a copy that nobody has adopted yet."""
    if info.home_id != info.ref.id:
        return True
    # In another store it may have got the same id.
    return not list_tickets(storage, info.ref) and any(
        "ticket" in trial.user_attrs for trial in storage.get_all_trials(info.ref.id, deepcopy=False)
    )


def open_own_study(storage: FencedStorage, name: str) -> StudyInfo:
    """Open a study to write to it: one that another program copied or renamed is made a study of its own first."""
    info = open_study(storage, name)
    if not is_copy(storage, info):
        return info
    with creating(storage):
        info = open_study(storage, name)
        return adopt_copy(storage, info)[0] if is_copy(storage, info) else info


def adopt_copy(storage: FencedStorage, info: StudyInfo) -> tuple[StudyInfo, bool]:
    """Make a copy a study of its own, with a key and tickets; return whether the original's open tickets are known.

    Its ended trials answer its tickets as they did in the original. Its running ones, whose workers are the
    original's, are recorded as failed, and their tickets are requeued with the same values. The caller holds the
    creation lock.
    """
    adopted = replace(
        info, ref=StudyRef(name=info.ref.name, id=info.ref.id, key=secrets.token_hex(16)), home_id=info.ref.id
    )
    trials = storage.get_all_trials(info.ref.id, deepcopy=False)
    for trial in trials:
        if not trial.state.is_finished() and "ticket" in trial.user_attrs:
            storage.set_trial_user_attr(trial._trial_id, "reason", _REASON)
            storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    original = _tickets_of(storage, info.ref.key)
    rows = _rows(adopted, trials, original)

    def work(session: Session) -> None:
        if session.execute(sa.select(TICKET.c.number).where(TICKET.c.study_key == adopted.ref.key)).first():
            return  # the reply to the first attempt was lost
        if rows:
            session.execute(sa.insert(TICKET), rows)
        _copy_epochs(session, info.ref.key, adopted, {trial.number: trial._trial_id for trial in trials})

    storage.do(work)
    store_info(storage, adopted)  # last: until it is written, the copy is adopted again
    return adopted, bool(original)


def _tickets_of(storage: FencedStorage, key: str) -> list[Ticket]:
    def work(session: Session) -> list[Ticket]:
        rows = session.execute(
            sa.select(*storage.ticket_columns).where(TICKET.c.study_key == key).order_by(TICKET.c.number)
        )
        return [Ticket(**row) for row in rows.mappings()]

    return storage.do(work)


def _rows(info: StudyInfo, trials: Sequence[FrozenTrial], original: Sequence[Ticket]) -> list[dict[str, Any]]:
    """Return the copy's tickets: those of the original where it is known, else one for each trial that had one."""
    by_ticket = {n: trial for trial in trials if isinstance(n := trial.user_attrs.get("ticket"), int)}
    if not original:
        return [_row(info, number, trial, _origin(info, trial)) for number, trial in sorted(by_ticket.items())]
    rows = []
    for ticket in original:
        known: dict[str, Any] = {
            "origin": ticket.origin,
            "sampler": ticket.sampler,
            "pruner": ticket.pruner,
            "fixed": ticket.fixed,
            "retry_of": ticket.retry_of,
        }
        rows.append(_row(info, ticket.number, by_ticket.get(ticket.number), known))
    return rows


def _origin(info: StudyInfo, trial: FrozenTrial) -> dict[str, Any]:
    settings, attributes = info.spec.settings, trial.user_attrs
    return {
        "origin": attributes.get("origin", "search"),
        "sampler": attributes.get("sampler", settings.sampler),
        "pruner": settings.pruner,
        "fixed": {},
        "retry_of": None,
    }


def _row(info: StudyInfo, number: int, trial: FrozenTrial | None, known: Mapping[str, Any]) -> dict[str, Any]:
    row = dict(known) | {
        "study_key": info.ref.key,
        "number": number,
        "study_id": info.ref.id,
        "batch": _REASON,
        "state": OPEN,
        "trial_id": None,
        "trial_number": None,
    }
    if trial is None:
        return row
    if trial.state.is_finished():
        return row | {"state": DONE, "trial_id": trial._trial_id, "trial_number": trial.number}
    return row | {"fixed": dict(known["fixed"]) | dict(trial.params)}


def _copy_epochs(session: Any, key: str, info: StudyInfo, trial_ids: Mapping[int, int]) -> None:
    rows = session.execute(sa.select(*EPOCH.c).where(EPOCH.c.study_key == key)).mappings().all()
    copied = [
        dict(row) | {"study_key": info.ref.key, "study_id": info.ref.id, "trial_id": trial_ids[row["trial_number"]]}
        for row in rows
        if row["trial_number"] in trial_ids
    ]
    if copied:
        session.execute(sa.insert(EPOCH), copied)
