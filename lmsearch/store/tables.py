"""Our tables beside Optuna's, and the rows as plain data."""

from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

OPEN, RUNNING, PAUSED, DONE = "open", "running", "paused", "done"
FROM = "from"  # a trial's user attribute: STUDY/NUMBER of the trial that it was taken over from, or that it tries again

METADATA = sa.MetaData()

TICKET = sa.Table(
    "lmsearch_ticket",
    METADATA,
    # Ids of Optuna's are used again by SQLite after a deletion; the study key is random and never is.
    sa.Column("study_key", sa.String(32), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("study_id", sa.Integer, nullable=False),
    sa.Column("batch", sa.String(32), nullable=False),
    sa.Column("origin", sa.String(16), nullable=False),
    sa.Column("sampler", sa.String(16), nullable=False),
    sa.Column("pruner", sa.String(16), nullable=False),
    sa.Column("fixed", sa.JSON, nullable=False),
    sa.Column("retry_of", sa.Integer),  # the number of the trial whose values it tries again
    sa.Column("state", sa.String(8), nullable=False, default=OPEN),
    sa.Column("trial_id", sa.Integer),
    sa.Column("trial_number", sa.Integer),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("checkpoint", sa.Text),
    # What went wrong with it so far; whoever claims it decides by these numbers.
    sa.Column("deaths", sa.Integer, nullable=False, default=0, server_default="0"),
    sa.Column("memory_failures", sa.Integer, nullable=False, default=0, server_default="0"),
    sa.Column("stalls", sa.Integer, nullable=False, default=0, server_default="0"),
    sa.Column("peak_memory", sa.BigInteger),  # bytes, where the memory did not suffice
    # The lease on the ticket: its number is the token that every write of its holder must show.
    sa.Column("lease", sa.Integer, nullable=False, default=0),
    sa.Column("worker", sa.String(128)),
    sa.Column("host", sa.String(128)),
    sa.Column("process", sa.Integer),
    sa.Column("device", sa.String(32)),
    sa.Column("boot", sa.String(64)),
    sa.Column("expires", sa.Float(53)),
    sa.Column("seen", sa.Float(53)),  # when its holder last sent a heartbeat, by the clock of leases
    sa.Column("epoch", sa.Integer, nullable=False, default=0),
    sa.Column("step", sa.Integer, nullable=False, default=0),
    sa.Column("tokens_per_second", sa.Float(53)),
)

EPOCH = sa.Table(
    "lmsearch_epoch",
    METADATA,
    sa.Column("study_key", sa.String(32), primary_key=True),
    sa.Column("trial_number", sa.Integer, primary_key=True),
    sa.Column("epoch", sa.Integer, primary_key=True),
    sa.Column("study_id", sa.Integer, nullable=False),
    sa.Column("trial_id", sa.Integer, nullable=False),
    sa.Column("train_loss", sa.Float(53)),  # NULL where it is not finite, as is valid_loss
    sa.Column("valid_loss", sa.Float(53)),
    sa.Column("seconds", sa.Float(53), nullable=False),
    sa.Column("tokens", sa.Integer, nullable=False),
    sa.Column("learning_rate", sa.Float(53), nullable=False),
    sa.Column("ended", sa.Float(53)),  # for people: seconds since 1970, by the clock of its worker's host
)


WORKER = sa.Table(
    "lmsearch_worker",
    METADATA,
    sa.Column("study_key", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("host", sa.String(128), nullable=False),
    sa.Column("process", sa.Integer, nullable=False),
    sa.Column("device", sa.String(32), nullable=False),
    sa.Column("launcher", sa.String(32), nullable=False),  # what started it; "": a person
    # For people: seconds since 1970, by the server's clock, on SQLite the host's.
    sa.Column("joined", sa.Float(53), nullable=False),
    sa.Column("seen", sa.Float(53), nullable=False),
    sa.Column("ended", sa.Float(53)),
    sa.Column("exit_code", sa.Integer),
    sa.Column("reason", sa.String(32)),
    sa.Column("sentence", sa.Text),
)

FORMAT = sa.Table(
    "lmsearch_format",
    METADATA,
    sa.Column("format", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("lmsearch", sa.String(40), nullable=False),  # the version that brought the store to it
)

TROUBLES = {"death": TICKET.c.deaths, "memory": TICKET.c.memory_failures, "stall": TICKET.c.stalls}
"""What may end a worker's hold on a ticket against its will, and where it is counted."""


def ticket_columns(missing: Container[str] = ()) -> list[sa.ColumnElement[Any]]:
    """Return the columns of a ticket as they are read; those that an older store lacks have their first value."""
    return [
        sa.literal(None if column.nullable else 0).label(column.name) if column.name in missing else column
        for column in TICKET.columns
    ]


@dataclass(frozen=True, kw_only=True)
class StudyRef:
    """A study in the store: Optuna's name and id, and our random key."""

    name: str
    id: int
    key: str


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """One trial of a study's budget, as the store has it."""

    study_key: str
    number: int
    study_id: int
    batch: str
    origin: str
    sampler: str
    pruner: str
    fixed: dict[str, Any]
    retry_of: int | None
    state: str
    trial_id: int | None
    trial_number: int | None
    attempts: int
    checkpoint: str | None
    deaths: int  # of its workers, in a row without a new checkpoint
    memory_failures: int  # after the first it is run alone on its device
    stalls: int
    peak_memory: int | None
    lease: int
    worker: str | None
    host: str | None
    process: int | None
    device: str | None
    boot: str | None
    expires: float | None
    seen: float | None
    epoch: int
    step: int
    tokens_per_second: float | None

    @property
    def by(self) -> str:
        """Return who made it: the sampler of the search, otherwise where it comes from."""
        return self.sampler if self.origin == "search" else self.origin

    @property
    def is_done(self) -> bool:
        """Whether its trial has ended."""
        return self.state == DONE

    @property
    def is_running(self) -> bool:
        """Whether a worker holds it, by its state alone."""
        return self.state == RUNNING

    @property
    def is_paused(self) -> bool:
        """Whether its trial is saved and waits until its forecast is the best there is to train."""
        return self.state == PAUSED

    @property
    def untouched(self) -> bool:
        """Whether nobody has started it and no values are fixed, so that it can be withdrawn."""
        return self.state == OPEN and self.lease == 0 and not self.fixed

    def is_leased(self, now: float, boot: str) -> bool:
        """Whether it is under a lease that has not run out, by the clock of leases and the boot it counts from."""
        return self.state == RUNNING and self.boot == boot and self.expires is not None and self.expires >= now


@dataclass(frozen=True, kw_only=True)
class HeldTicket(Ticket):
    """A ticket under the lease of a worker: what a claim gives."""

    worker: str
    host: str
    process: int
    device: str
    boot: str
    expires: float
    seen: float


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """What one epoch of a trial gave. Losses are in nats per token, NaN where they were not finite."""

    epoch: int
    train_loss: float
    valid_loss: float
    seconds: float
    tokens: int
    learning_rate: float
    # When it was over, in seconds since 1970; not a figure of the training, and not known of every epoch.
    ended: float | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the holder of a ticket is."""

    epoch: int
    step: int
    tokens_per_second: float | None
