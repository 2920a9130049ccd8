"""Every write of a leased trial fenced.

The scheme: before Optuna's own statements, and in the same transaction, a write renews the lease on the trial's
ticket. Where that finds no row, someone else holds the ticket, and the write is rolled back. Parts of
`RDBStorage` and `_CachedStorage` that are private to Optuna are used; tests guard each.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session

from lmsearch.errors import LmsearchError
from lmsearch.store.outages import Patience
from lmsearch.store.repeating import RepeatingStorage
from lmsearch.store.schema import missing_columns
from lmsearch.store.tables import (
    DONE,
    EPOCH,
    FROM,
    OPEN,
    PAUSED,
    RUNNING,
    TICKET,
    TROUBLES,
    EpochRow,
    HeldTicket,
    Progress,
    StudyRef,
    ticket_columns,
)

R = TypeVar("R")


class LeaseLostError(LmsearchError):
    """Another worker holds the ticket now; whatever the caller computed for it is void."""


class _AlreadyCreatedError(Exception):
    """The trial is there: the reply to an earlier attempt was lost."""

    def __init__(self, trial_id: int | None) -> None:
        super().__init__(trial_id)
        self.trial_id = trial_id  # None: the ticket knows it


class FencedStorage(RepeatingStorage):
    """Optuna's storage, under leases.

    `leases` maps a trial to the ticket under which this process writes to it: a lost lease stays there, so that
    later writes are refused too. Within `asking` the next trial that is created is that of a ticket.
    """

    def __init__(
        self,
        url: URL,
        *,
        create: bool = False,
        connections: int = 1,
        patience: Patience | None = None,
        looking: bool = False,
    ) -> None:
        self.leases: dict[int, HeldTicket] = {}
        self.lease_seconds = 30.0
        self._asking: tuple[HeldTicket, FrozenTrial] | None = None
        self._reporting: tuple[EpochRow, Progress, str | None] | None = None
        super().__init__(url, create=create, connections=connections, patience=patience, looking=looking)

    def read_as(self, number: int) -> None:
        """Read a store of an earlier format as it is: what its tickets lack has its first value."""
        self.format = number

        self.ticket_columns = self.do(lambda session: ticket_columns(missing_columns(session.connection())))

    def renewal(self, ticket: HeldTicket, **values: Any) -> sa.Update:
        """Return the UPDATE that renews a lease and sets `values`; it finds a row while nobody else has claimed.

        It asks for the lease number, not for its expiry: a slow holder whom nobody replaced continues.
        """
        values.setdefault("expires", self.clock() + self.lease_seconds)
        values["seen"] = self.clock()
        return sa.update(TICKET).where(*_under(ticket)).values(values)

    def _fence(self, trial_id: int, **values: Any) -> None:
        """Begin this thread's transaction with the renewal of the trial's lease, or with SQLite's write lock."""
        session = self.scoped_session()
        ticket = self.leases.get(trial_id)
        if ticket is not None:
            trial = models.TrialModel
            # SQLite gives the ids of deleted trials to others: this one must still be the study's.
            there = sa.exists().where(trial.trial_id == trial_id, trial.study_id == ticket.study_id)
            if _rowcount(session.execute(self.renewal(ticket, **values).where(there))) != 1:
                session.rollback()
                raise LeaseLostError(f"trial {ticket.trial_number} is with another worker now")
        elif self.engine.name == "sqlite":
            key = models.TrialModel.trial_id
            session.execute(sa.update(models.TrialModel).where(key == trial_id).values(trial_id=trial_id))

    def _fenced(self, trial_id: int, write: Callable[[], R], **values: Any) -> R:
        def call() -> R:
            self._fence(trial_id, **values)
            return write()

        return self.repeat(call)

    # Creation: the trial and its id in the ticket, or neither.

    @contextlib.contextmanager
    def asking(self, ticket: HeldTicket, template: FrozenTrial) -> Iterator[None]:
        """Make the next created trial that of `ticket`: the one it has, or a new one made from `template`."""
        self._asking = (ticket, template)
        try:
            yield
        finally:
            self._asking = None

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        if self._asking is None:
            return self._create_outside(study_id, template_trial)
        ticket, template = self._asking

        def call() -> FrozenTrial:
            trial_id = self._trial_of(ticket)
            if trial_id is None:
                try:
                    trial = super(FencedStorage, self)._create_new_trial(study_id, template)
                    trial_id = trial._trial_id
                except _AlreadyCreatedError:
                    trial_id = self._trial_of(ticket)
            if trial_id is None:
                raise LeaseLostError(f"ticket {ticket.number} is with another worker now")
            self.leases[trial_id] = ticket
            return RDBStorage.get_trial(self, trial_id)

        return self.repeat(call)

    def _create_outside(self, study_id: int, template: FrozenTrial | None) -> FrozenTrial:
        """Create a trial that answers no ticket; one that is taken over from another study once."""
        create = super()._create_new_trial

        def call() -> FrozenTrial:
            try:
                return create(study_id, template)
            except _AlreadyCreatedError as error:
                assert error.trial_id is not None
                return RDBStorage.get_trial(self, error.trial_id)

        return self.repeat(call)

    def _trial_of(self, ticket: HeldTicket) -> int | None:
        with self.transaction() as session:
            session.execute(self.renewal(ticket))
            return session.execute(sa.select(TICKET.c.trial_id).where(*_under(ticket))).scalar_one_or_none()

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: Session
    ) -> models.TrialModel:
        # Optuna makes several attempts at this by itself.
        if self._asking is None and (taken := _taken_over(session, study_id, template_trial)) is not None:
            raise _AlreadyCreatedError(taken)
        trial = super()._get_prepared_new_trial(study_id, template_trial, session)
        if self._asking is not None:
            ticket, _ = self._asking
            take = self.renewal(ticket, trial_id=trial.trial_id, trial_number=trial.number)
            if _rowcount(session.execute(take.where(TICKET.c.trial_id.is_(None)))) != 1:
                raise _AlreadyCreatedError(None)
        return trial

    # Writes to a trial.

    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None,
    ) -> None:
        write = super()._set_trial_param
        self._fenced(
            trial_id,
            lambda: write(trial_id, param_name, param_value_internal, distribution, previous_distribution),
        )

    @contextlib.contextmanager
    def reporting(self, row: EpochRow, progress: Progress, checkpoint: str | None) -> Iterator[None]:
        """Let the next intermediate value carry an epoch's figures, in its transaction."""
        self._reporting = (row, progress, checkpoint)
        try:
            yield
        finally:
            self._reporting = None

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Store one value; with `reporting`, also the epoch's figures and how far the ticket is."""
        write = super().set_trial_intermediate_value
        if self._reporting is None:
            self._fenced(trial_id, lambda: write(trial_id, step, intermediate_value))
            return
        row, progress, checkpoint = self._reporting
        ticket = self.leases[trial_id]

        def write_both() -> None:
            self.scoped_session().execute(self._upsert_epoch(ticket.study_key, ticket.study_id, trial_id, row))
            write(trial_id, step, intermediate_value)

        self._fenced(trial_id, write_both, **_progress_values(progress), **_checkpoint_values(checkpoint))

    def add_epochs(self, study: StudyRef, trial_id: int, rows: Sequence[EpochRow]) -> None:
        """Store the epochs of a trial that was taken over from another study."""

        def work(session: Session) -> None:
            for row in rows:
                session.execute(self._upsert_epoch(study.key, study.id, trial_id, row))

        self.do(work)

    def _upsert_epoch(self, key: str, study_id: int, trial_id: int, row: EpochRow) -> Any:
        names = {
            "study_key": key,
            "trial_number": self._number_of(trial_id),
            "epoch": row.epoch,
        }
        rest = {
            "study_id": study_id,
            "trial_id": trial_id,
            "train_loss": row.train_loss if math.isfinite(row.train_loss) else None,
            "valid_loss": row.valid_loss if math.isfinite(row.valid_loss) else None,
            "seconds": row.seconds,
            "tokens": row.tokens,
            "learning_rate": row.learning_rate,
            "ended": row.ended,
        }
        insert = sqlite.insert if self.engine.name == "sqlite" else postgresql.insert
        statement = insert(EPOCH).values(names | rest)
        return statement.on_conflict_do_update(index_elements=list(names), set_=rest)

    def _number_of(self, trial_id: int) -> int:
        query = sa.select(models.TrialModel.number).where(models.TrialModel.trial_id == trial_id)
        number = self.scoped_session().execute(query).scalar_one_or_none()
        if number is None:
            raise KeyError(trial_id)  # as Optuna says it of a trial that is gone
        return int(number)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Store one attribute, fenced."""
        write = super().set_trial_user_attr
        self._fenced(trial_id, lambda: write(trial_id, key, value))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Store one attribute, fenced."""
        write = super().set_trial_system_attr
        self._fenced(trial_id, lambda: write(trial_id, key, value))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Change a trial's state; the one that ends it closes its ticket in the same transaction."""
        write = super().set_trial_state_values
        if self._asking is not None and state == TrialState.RUNNING:
            return False  # Optuna's own queue is not ours to take from
        ends: dict[str, Any] = {"state": DONE, "expires": None} if state.is_finished() else {}

        def call() -> bool:
            try:
                self._fence(trial_id, **ends)
                return write(trial_id, state, values)
            except UpdateFinishedTrialError:
                self.scoped_session.remove()
                raise

        def done() -> bool | None:
            trial = RDBStorage.get_trial(self, trial_id)
            is_so = trial.state == state and (values is None or list(values) == trial.values)
            return True if ends and is_so else None

        return self.once(call, done)

    def restart(self, ticket: HeldTicket) -> None:
        """Forget the epochs of a trial that must start again, since its state cannot be had here."""

        def work(session: Session) -> None:
            value = models.TrialIntermediateValueModel
            if _rowcount(session.execute(self.renewal(ticket, epoch=0, step=0, checkpoint=None))) != 1:
                raise LeaseLostError(f"ticket {ticket.number} is with another worker now")
            state = sa.select(models.TrialModel.state).where(models.TrialModel.trial_id == ticket.trial_id)
            found = session.execute(state).scalar_one_or_none()
            if found is None:
                raise KeyError(ticket.trial_id)  # as Optuna says it of a trial that is gone
            if found != TrialState.RUNNING:
                raise UpdateFinishedTrialError(f"the trial of ticket {ticket.number} is ended")
            session.execute(sa.delete(value).where(value.trial_id == ticket.trial_id))
            session.execute(
                sa.delete(EPOCH).where(
                    EPOCH.c.study_key == ticket.study_key, EPOCH.c.trial_number == ticket.trial_number
                )
            )

        self.do(work)

    def release(
        self,
        ticket: HeldTicket,
        checkpoint: str | None,
        progress: Progress | None,
        trouble: str | None = None,
        peak_memory: int | None = None,
        paused: bool = False,
    ) -> None:
        """Release a ticket, so that any worker can resume it; raises `LeaseLostError`.

        `trouble` (a key of `TROUBLES`) says that its holder did not do so of its own will; `peak_memory` is in bytes.
        A `paused` one is claimed only by whoever decides that it is to continue.
        """
        state = PAUSED if paused else OPEN
        values: dict[str, Any] = {"state": state, "expires": None} | _checkpoint_values(checkpoint)
        values |= {} if progress is None else _progress_values(progress)
        values |= {} if trouble is None else trouble_values(trouble, peak_memory)

        def work(session: Session) -> bool:
            held = self.renewal(ticket, **values).where(TICKET.c.state == RUNNING)
            if _rowcount(session.execute(held)) != 1:
                raise LeaseLostError(f"ticket {ticket.number} is with another worker now")
            return True

        def done(session: Session) -> bool | None:
            found = session.execute(sa.select(TICKET.c.state).where(*_under(ticket))).scalar_one_or_none()
            return True if found == state else None

        self.do_once(work, done)

    def renew(
        self, ticket: HeldTicket, progress: Progress, within: Callable[[Session], object] = lambda session: None
    ) -> bool:
        """Renew a lease once, without waiting for a store that is away; false where it is lost.

        `within` is done in the same transaction.
        """
        held = self.renewal(ticket, **_progress_values(progress)).where(TICKET.c.state == RUNNING)
        try:
            with self.transaction() as session:
                found = _rowcount(session.execute(held)) == 1
                within(session)
        except Exception:
            self.connected_since = None
            raise
        self.note_connected()
        return found


def _under(ticket: HeldTicket) -> tuple[sa.ColumnElement[bool], ...]:
    """Return the condition for a ticket's row while nobody has claimed it since."""
    return (
        TICKET.c.study_key == ticket.study_key,
        TICKET.c.number == ticket.number,
        TICKET.c.lease == ticket.lease,
    )


def _taken_over(session: Session, study_id: int, template: FrozenTrial | None) -> int | None:
    """Return the id of the trial that was taken over from the same place as `template`, None where there is none."""
    if template is None or FROM not in template.user_attrs:
        return None
    trial, attribute = models.TrialModel, models.TrialUserAttributeModel
    mark = json.dumps(template.user_attrs[FROM])
    query = (
        sa.select(trial.trial_id)
        .join(attribute, attribute.trial_id == trial.trial_id)
        .where(trial.study_id == study_id, attribute.key == FROM, attribute.value_json == mark)
        .limit(1)
    )
    return session.execute(query).scalar_one_or_none()


def trouble_values(trouble: str, peak_memory: int | None = None) -> dict[str, Any]:
    """Return what a ticket's row gains by a trouble; `peak_memory` is in bytes."""
    column = TROUBLES[trouble]
    return {column.name: column + 1} | ({} if peak_memory is None else {"peak_memory": peak_memory})


def _checkpoint_values(checkpoint: str | None) -> dict[str, Any]:
    # A new checkpoint is progress: the deaths before it no longer count.
    return {} if checkpoint is None else {"checkpoint": checkpoint, "deaths": 0}


def _progress_values(progress: Progress) -> dict[str, Any]:
    return {
        "epoch": progress.epoch,
        "step": progress.step,
        "tokens_per_second": progress.tokens_per_second,
    }


def _rowcount(result: Any) -> int:
    return int(result.rowcount)
