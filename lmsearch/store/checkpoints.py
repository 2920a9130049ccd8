"""Training states on disk, whole or not at all, each under a checksum."""

import contextlib
import errno
import hashlib
import json
import math
import re
from collections.abc import Container, Sequence
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


@dataclass(frozen=True)
class Found:
    """What a new holder of a ticket goes on from, and what a person should know about it."""

    checkpoint: Checkpoint | None
    remark: str  # "" where there is nothing to tell


class Checkpoints:
    """The checkpoints of a study in one folder: of this host, or shared by several.

    These few methods are all that a trial knows of them, so that another place can stand behind them.
    """

    def __init__(self, folder: Path, host: str, quota: float = math.inf) -> None:
        self.folder = folder
        self.host = host
        self.quota = quota  # bytes of one study's files in this folder

    def save(self, ticket: Ticket, epoch: int, step: int, checkpoint: Checkpoint) -> str:
        """Write a checkpoint, remove all but the last two of the ticket; give the key that finds it again.

        Raises `OSError` where the disk is full or the quota is reached; the files before stay whole.
        """
        name = f"{ticket.study_key[:12]}-{ticket.number}-e{epoch}-s{step}-l{ticket.lease}.checkpoint"
        path = self.folder / name
        rows = [{k: repr(v) for k, v in asdict(row).items()} for row in checkpoint.epochs]
        head = json.dumps(
            {"epochs": rows, "best_model": checkpoint.best_model, "at_epoch_end": checkpoint.at_epoch_end}
        ).encode()
        content = head + b"\n" + checkpoint.state
        checksum = hashlib.sha256(content).hexdigest().encode()
        content = b"%s %s\n%s" % (_MAGIC, checksum, content)
        self._make_room(ticket, len(content))
        replace_file(path, content)
        # By lease first: a file of an earlier lease may be of a later epoch, where the trial had to start again.
        places = sorted(self._places(ticket, self.folder), key=lambda place: (place.lease, place.epoch, place.step))
        for place in places[:-2]:
            if place.lease <= ticket.lease and place.path != path:
                place.path.unlink(missing_ok=True)
        return f"{self.host}:{path}"

    def _make_room(self, ticket: Ticket, size: int) -> None:
        """Keep to the quota: a trial's file before the last goes first, then nothing new is written."""
        if self.quota == math.inf:
            return
        used = {}
        for path in self.of_study(ticket.study_key):
            with contextlib.suppress(FileNotFoundError):  # another worker has just removed it
                used[path] = path.stat().st_size
        for place in self._places(ticket, self.folder)[:-1]:
            if sum(used.values()) + size > self.quota:
                place.path.unlink(missing_ok=True)
                used.pop(place.path, None)
        if sum(used.values()) + size > self.quota:
            raise OSError(errno.EDQUOT, f"the quota of {self.quota:,.0f} bytes for checkpoints is reached")

    def find(self, ticket: Ticket) -> Found:
        """Give what a new holder of the ticket goes on from; no checkpoint where it must start again.

        That is the file that the ticket names, a later one of the lease just before (left by an outage), or,
        where a checksum fails, the one before.
        """
        named = self._named(ticket)
        damaged: list[str] = []
        # The file may lie in another folder of this host: that of a worker started elsewhere.
        folders = {self.folder} | ({named.path.parent} if named else set())
        places = sorted({place for folder in folders for place in self._places(ticket, folder)})
        for place in reversed(places):
            just_before = place.lease == ticket.lease - 1
            if named is None and not just_before:
                continue
            if named is not None and (place.epoch, place.step) > (named.epoch, named.step) and not just_before:
                continue
            if (checkpoint := read_checkpoint(place.path)) is not None:
                return Found(checkpoint, _damage(damaged))
            damaged.append(place.path.name)
        where = (ticket.checkpoint or "").partition(":")[0]
        if not damaged and where and where != self.host:
            return Found(None, f"its checkpoint lies on {where}; share a folder with --checkpoints to go on from there")
        return Found(None, _damage(damaged))

    def remove(self, ticket: Ticket) -> None:
        """Remove a ticket's checkpoints."""
        for place in self._places(ticket, self.folder):
            place.path.unlink(missing_ok=True)

    def remove_unreported(self, ticket: Ticket, named: str | None) -> None:
        """Remove what was written under the ticket's lease after the file that the ticket, as it is now, names."""
        found = _place(Path((named or "").partition(":")[2]))
        last = (found.epoch, found.step) if found else (0, 0)
        for place in self._places(ticket, self.folder):
            if place.lease == ticket.lease and (place.epoch, place.step) > last:
                place.path.unlink(missing_ok=True)

    def sweep(self, study_key: str, done: Container[int]) -> int:
        """Remove checkpoints that a death left behind, of tickets that are `done`; give their number."""
        left = self.left_behind(study_key, done)
        for path in left:
            path.unlink(missing_ok=True)
        return len(left)

    def left_behind(self, study_key: str, done: Container[int]) -> list[Path]:
        """List checkpoints of tickets that are `done`."""
        return [
            path
            for path in self.of_study(study_key)
            if (match := _NAME.fullmatch(path.name)) and int(match["number"]) in done
        ]

    def of_study(self, study_key: str) -> list[Path]:
        """List a study's checkpoints."""
        return sorted(self.folder.glob(f"{study_key[:12]}-*.checkpoint"))

    def _named(self, ticket: Ticket) -> _Place | None:
        """Find the file that the ticket names: in this folder, which may be shared, or elsewhere on this host."""
        host, _, text = (ticket.checkpoint or "").partition(":")
        path = Path(text)
        if not text or (host != self.host and not (self.folder / path.name).exists()):
            return None
        return _place(path if host == self.host else self.folder / path.name)

    def _places(self, ticket: Ticket, folder: Path) -> list[_Place]:
        pattern = f"{ticket.study_key[:12]}-{ticket.number}-*.checkpoint"
        return sorted(place for path in folder.glob(pattern) if (place := _place(path)))


def _damage(names: Sequence[str]) -> str:
    return f"the checksum of {' and of '.join(names)} fails, so it is not used" if names else ""


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
