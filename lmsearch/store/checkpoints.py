"""Training states on disk, whole or not at all, each under a checksum."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmsearch.files import replace_file
from lmsearch.store.tables import EpochRow, Ticket

_MAGIC = b"lmsearch-checkpoint-1"
_NAME = re.compile(r"(?P<key>\w+)-(?P<number>\d+)-e(?P<epoch>\d+)-s(?P<step>\d+)-l(?P<lease>\d+)\.checkpoint")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A training state, the figures of all epochs before it, and where the best epoch's model lies."""

    epochs: tuple[EpochRow, ...]
    best_model: str | None
    at_epoch_end: bool  # saved between two epochs, not inside one
    state: bytes


@dataclass(frozen=True, kw_only=True, order=True)
class _Place:
    epoch: int
    step: int
    lease: int
    path: Path


class Checkpoints:
    """The checkpoints that one host keeps in one folder; another host's cannot be read."""

    def __init__(self, folder: Path, host: str) -> None:
        self.folder = folder
        self.host = host

    def save(self, ticket: Ticket, epoch: int, step: int, checkpoint: Checkpoint) -> str:
        """Write a checkpoint, remove all but the last two of the ticket; give the key that finds it again."""
        name = f"{ticket.study_key[:12]}-{ticket.number}-e{epoch}-s{step}-l{ticket.lease}.checkpoint"
        path = self.folder / name
        rows = [{k: repr(v) for k, v in asdict(row).items()} for row in checkpoint.epochs]
        head = json.dumps(
            {"epochs": rows, "best_model": checkpoint.best_model, "at_epoch_end": checkpoint.at_epoch_end}
        ).encode()
        content = head + b"\n" + checkpoint.state
        checksum = hashlib.sha256(content).hexdigest().encode()
        replace_file(path, b"%s %s\n%s" % (_MAGIC, checksum, content))
        # By lease first: a file of an earlier lease may be of a later epoch, where the trial had to start again.
        places = sorted(self._places(ticket, self.folder), key=lambda place: (place.lease, place.epoch, place.step))
        for place in places[:-2]:
            if place.lease <= ticket.lease and place.path != path:
                place.path.unlink(missing_ok=True)
        return f"{self.host}:{path}"

    def find(self, ticket: Ticket) -> Checkpoint | None:
        """Give what a new holder of the ticket goes on from, or None where it must start again.

        That is the file that the ticket names, a later one of the lease just before (left by an outage), or,
        where a checksum fails, the one before.
        """
        named = self._named(ticket)
        # The file may lie in another folder of this host: that of a worker started elsewhere.
        folders = {self.folder} | ({named.path.parent} if named else set())
        places = sorted(place for folder in folders for place in self._places(ticket, folder))
        for place in reversed(places):
            just_before = place.lease == ticket.lease - 1
            if named is None and not just_before:
                continue
            if named is not None and (place.epoch, place.step) > (named.epoch, named.step) and not just_before:
                continue
            if (checkpoint := read_checkpoint(place.path)) is not None:
                return checkpoint
        return None

    def remove(self, ticket: Ticket, lease: int | None = None) -> None:
        """Remove a ticket's checkpoints, or only those that were written under one lease."""
        for place in self._places(ticket, self.folder):
            if lease is None or place.lease == lease:
                place.path.unlink(missing_ok=True)

    def _named(self, ticket: Ticket) -> _Place | None:
        host, _, path = (ticket.checkpoint or "").partition(":")
        return _place(Path(path)) if host == self.host and path else None

    def _places(self, ticket: Ticket, folder: Path) -> list[_Place]:
        pattern = f"{ticket.study_key[:12]}-{ticket.number}-*.checkpoint"
        return sorted(place for path in folder.glob(pattern) if (place := _place(path)))


def read_checkpoint(path: Path) -> Checkpoint | None:
    """Read a checkpoint; None where it is missing, cut short or changed."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    first, _, rest = content.partition(b"\n")
    if first != b"%s %s" % (_MAGIC, hashlib.sha256(rest).hexdigest().encode()):
        return None
    head, _, state = rest.partition(b"\n")
    fields = json.loads(head)
    return Checkpoint(
        epochs=_rows(fields["epochs"]),
        best_model=fields["best_model"],
        at_epoch_end=fields["at_epoch_end"],
        state=state,
    )


def _rows(rows: Sequence[dict[str, Any]]) -> tuple[EpochRow, ...]:
    def row(texts: dict[str, str]) -> EpochRow:
        whole = {name: int(texts[name]) for name in ("epoch", "tokens")}
        numbers = {name: float(text) for name, text in texts.items() if name not in whole}
        return EpochRow(**whole, **numbers)  # type: ignore[arg-type]

    return tuple(map(row, rows))


def _place(path: Path) -> _Place | None:
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    return _Place(epoch=int(match["epoch"]), step=int(match["step"]), lease=int(match["lease"]), path=path)
