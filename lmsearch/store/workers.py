"""The workers of a study: who joined, when each was last seen, and how it left.

A hint for people and launchers. No claim and no fence reads it: what a worker may write, its lease on a ticket decides.
Where the store is away when a worker leaves, its end is a file beside its log.
"""

import json
import os
import secrets
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session

from lmsearch.errors import LmsearchError, SearchFailedError, StoreGoneError
from lmsearch.files import replace_file
from lmsearch.folders import read_document
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import WORKER, StudyRef
from lmsearch.store.tickets import Holder

FINISHED, STOPPED, REFUSED, STORE_GONE, FAILED = "finished", "stopped", "refused", "store gone", "search failed"
IDLE = "idle"
"""Why a worker left: no trial is left; it was asked to stop; it cannot work here; the store; trials fail alike; others
have the last trials."""

_LONGEST_SENTENCE = 2_000  # characters


@dataclass(frozen=True, kw_only=True)
class WorkerEnd:
    """How a worker left by itself; one that was killed has none."""

    exit_code: int
    reason: str
    sentence: str = ""

    @classmethod
    def of_error(cls, error: LmsearchError) -> "WorkerEnd":
        """Return the end that an error is."""
        reasons = {StoreGoneError: STORE_GONE, SearchFailedError: FAILED}
        reason = reasons.get(type(error), REFUSED)
        return cls(exit_code=error.exit_code, reason=reason, sentence=str(error)[:_LONGEST_SENTENCE])


@dataclass(frozen=True, kw_only=True)
class WorkerRow:
    """One worker of a study. Times are in seconds since 1970, by the server's clock, on SQLite the host's."""

    name: str
    host: str
    process: int
    device: str
    launcher: str  # what started it; "": a person
    joined: float
    seen: float
    ended: float | None  # when it left
    exit_code: int | None
    reason: str | None
    sentence: str | None

    @property
    def end(self) -> WorkerEnd | None:
        """How it left; None while it is at work, or where it was killed."""
        if self.exit_code is None:
            return None
        return WorkerEnd(exit_code=self.exit_code, reason=self.reason or "", sentence=self.sentence or "")


def new_name() -> str:
    """Make up the name of a worker: the host and process that name it, and something random."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def join(storage: FencedStorage, study: StudyRef, holder: Holder, launcher: str) -> None:
    """Note that a worker has joined a study; `launcher` is what started it, "" for a person."""

    def work(session: Session) -> None:
        session.execute(sa.delete(WORKER).where(_this(study, holder.worker)))
        session.execute(
            sa.insert(WORKER).values(
                study_key=study.key,
                name=holder.worker,
                host=holder.host,
                process=holder.process,
                device=holder.device,
                launcher=launcher,
                joined=_now(storage),
                seen=_now(storage),
            )
        )

    storage.do(work)


def beat(storage: FencedStorage, study: StudyRef, name: str) -> None:
    """Note that a worker is there, without waiting for a store that is away."""
    with storage.transaction() as session:
        session.execute(seen_now(storage, study, name))


def seen_now(storage: FencedStorage, study: StudyRef, name: str) -> sa.Update:
    """Return the UPDATE which notes that a worker is there."""
    return sa.update(WORKER).where(_this(study, name)).values(seen=_now(storage))


def leave(storage: FencedStorage, study: StudyRef, name: str, end: WorkerEnd) -> None:
    """Note how a worker leaves, without waiting for a store that is away."""
    with storage.transaction() as session:
        session.execute(
            sa.update(WORKER).where(_this(study, name)).values(seen=_now(storage), ended=_now(storage), **asdict(end))
        )


def list_workers(storage: FencedStorage, study: StudyRef) -> list[WorkerRow]:
    """List the workers that have joined a study, the first first; none of a store of an earlier format."""
    columns = [column for column in WORKER.c if column.name != "study_key"]

    query = sa.select(*columns).where(WORKER.c.study_key == study.key).order_by(WORKER.c.joined, WORKER.c.name)

    def work(session: Session) -> list[WorkerRow]:
        return [WorkerRow(**row) for row in session.execute(query).mappings()]

    return [] if storage.format < 3 else storage.do(work)


def read_end(storage: FencedStorage, study: StudyRef, name: str, logs: Path) -> WorkerEnd | None:
    """Return how a worker left: from the file beside its log, else from the store; None for one that was killed."""
    found = read_document(end_file(logs, name))
    if found is not None:
        try:
            return WorkerEnd(**{key: found[key] for key in ("exit_code", "reason", "sentence")})
        except (KeyError, TypeError):
            return None
    return next((row.end for row in list_workers(storage, study) if row.name == name), None)


def write_end(logs: Path, name: str, end: WorkerEnd) -> None:
    """Write a worker's end beside its log, where the store takes no write."""
    replace_file(end_file(logs, name), json.dumps(asdict(end)))


def end_file(logs: Path, name: str) -> Path:
    """Return the file beside a worker's log that says how it left."""
    return logs / f"{name}.end.json"


def stacks_file(logs: Path, name: str) -> Path:
    """Return the file beside a worker's log for the stacks of its threads, should the C runtime have to end it."""
    return logs / f"{name}.stacks"


def _this(study: StudyRef, name: str) -> sa.ColumnElement[bool]:
    return sa.and_(WORKER.c.study_key == study.key, WORKER.c.name == name)


def _now(storage: FencedStorage) -> sa.ColumnElement[float]:
    # Not the clock of leases, which on SQLite counts from the boot: these times are for people.
    return sa.literal(time.time(), sa.Float(53)) if storage.engine.name == "sqlite" else storage.clock()
