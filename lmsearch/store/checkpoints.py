"""Training states on disk, whole or not at all, each under a checksum, each for one configuration and text."""

import contextlib
import errno
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lmsearch.files import replace_file
from lmsearch.folders import (
    CHECKPOINT,
    CHECKPOINTS,
    DIGEST,
    MODELS,
    WEIGHTS,
    HostPath,
    is_ours,
    make_folder,
    named_in,
    read_name,
)
from lmsearch.formats import DamagedError, NewerFormatError, seal, unseal
from lmsearch.store.artifacts import ArtifactsError, Objects, StudyFiles, fetch_file
from lmsearch.store.tables import EpochRow, Ticket

SHORT = 12  # digits of a key or a digest in a name
_HEAD = 300  # bytes, in which the first line of a checkpoint ends


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A training state, the figures of all epochs before it, and the folder of the best epoch's weights by its name."""

    epochs: tuple[EpochRow, ...]
    best_model: str | None
    at_epoch_end: bool  # saved between two epochs, not inside one
    state: bytes
    digest: str = ""  # of the config and the text; "" where lmsearch 0.1.0 wrote it


@dataclass(frozen=True, kw_only=True, order=True)
class _File:
    epoch: int
    step: int
    lease: int
    path: Path
    digest: str


@dataclass(frozen=True)
class Found:
    """What a new holder of a ticket resumes from, and what a person should know about it."""

    checkpoint: Checkpoint | None
    remark: str  # "" where there is nothing to tell
    models: Path | None = None  # the folder of weights beside it


class Checkpoints:
    """The checkpoints of a study in one folder: of this host, or shared by several.

    A file's name says the study, the ticket and, by a digest, the values and the text that it is for, so that what a
    restored or copied store wrote under the same numbers is another file. With an object store behind it (`objects`),
    each is written to both, and what another host wrote is fetched from there.
    """

    def __init__(self, folder: Path, host: str, quota: float = math.inf, objects: Objects | None = None) -> None:
        self.folder = folder
        self.host = host
        self.quota = quota  # bytes of one study's files in this folder
        self._objects = objects

    @classmethod
    def of(cls, files: StudyFiles, host: str, quota: float = math.inf) -> "Checkpoints":
        """Return the checkpoints among a study's files."""
        return cls(files.checkpoints, host, quota, files.objects_of(CHECKPOINTS))

    def save(self, ticket: Ticket, epoch: int, step: int, checkpoint: Checkpoint) -> str:
        """Write a checkpoint, remove all but the last two of the trial; return the key that finds it again.

        Raises `OSError` where the disk is full, the quota is reached or the object store does not answer; the files
        before stay whole.
        """
        stem = f"{ticket.study_key[:SHORT]}-{ticket.number}-{checkpoint.digest[:SHORT]}"
        path = self.folder / f"{stem}-e{epoch}-s{step}-l{ticket.lease}.checkpoint"
        figures = [{k: v for k, v in asdict(row).items() if k != "ended"} for row in checkpoint.epochs]
        rows = [{k: repr(v) for k, v in row.items()} for row in figures]
        head = {
            "digest": checkpoint.digest,
            "epochs": rows,
            "best_model": checkpoint.best_model,
            "at_epoch_end": checkpoint.at_epoch_end,
        }
        content = seal("checkpoint", json.dumps(head).encode() + b"\n" + checkpoint.state)
        make_folder(self.folder)
        self._make_room(ticket, checkpoint.digest, len(content))
        replace_file(path, content)
        if self._objects is not None:
            self._objects.put(path.name, content)
        # By lease first: a file of an earlier lease may be of a later epoch, where the trial had to start again.
        files = sorted(
            self._known_files_of(ticket, checkpoint.digest), key=lambda file: (file.lease, file.epoch, file.step)
        )
        for file in files[:-2]:
            if file.lease <= ticket.lease and file.path != path:
                self.discard(file.path)
        return str(HostPath(self.host, path))

    def _make_room(self, ticket: Ticket, digest: str, size: int) -> None:
        """Keep to the quota: a trial's file before the last goes first, then nothing new is written."""
        if self.quota == math.inf:
            return
        used = {}
        for path in self.of_study(ticket.study_key):
            with contextlib.suppress(FileNotFoundError):  # another worker has just removed it
                used[path] = path.stat().st_size
        for file in self._files_of(ticket, self.folder, digest)[:-1]:
            if sum(used.values()) + size > self.quota:
                self.discard(file.path)
                used.pop(file.path, None)
        if sum(used.values()) + size > self.quota:
            raise OSError(errno.EDQUOT, f"the quota of {self.quota:,.0f} bytes for checkpoints is reached")

    def find(self, ticket: Ticket, digest: str, reported: Sequence[EpochRow]) -> Found:
        """Return what a new holder of the ticket resumes from; no checkpoint where it must start again.

        That is the file that the ticket names, a later one of the lease just before (left by an outage), or,
        where a checksum fails, the one before. It must be for the config and text of `digest`. One of lmsearch 0.1.0
        does not say what it is for: it is taken where it has an epoch that the store has too (`reported`), and all
        that both have are equal. Whatever is not taken stays where it is. Raises `NewerFormatError`, and
        `ArtifactsError` where the file that the ticket names may lie in an object store that does not answer.
        """
        away: ArtifactsError | None = None
        shared: list[_File] = []
        try:
            shared = self._shared_files_of(ticket, digest)
        except ArtifactsError as error:
            away = error
        named = self._named(ticket)
        damaged: list[str] = []
        others: list[str] = []
        # The file may lie in another folder of this host: that of a worker started elsewhere.
        folders = {self.folder} | ({named.path.parent} if named else set())
        files = {file for folder in folders for text in ("", digest) for file in self._files_of(ticket, folder, text)}
        for file in sorted(files.union(shared), reverse=True):
            if away is not None and named is not None and file.path.name != named.path.name:
                continue  # an earlier one would cost epochs, and the named one can be waited for
            just_before = file.lease == ticket.lease - 1
            if named is None and not just_before:
                continue
            if named is not None and (file.epoch, file.step) > (named.epoch, named.step) and not just_before:
                continue
            if (checkpoint := self._read(file)) is None:
                damaged.append(file.path.name)
            elif is_for(checkpoint, digest, reported, file.path.name == named_in(CHECKPOINT, ticket.checkpoint)):
                models = file.path.parent.parent / MODELS
                return Found(replace(checkpoint, digest=digest), _remark(damaged, others), models)
            else:
                others.append(file.path.name)
        if away is not None and named_in(CHECKPOINT, ticket.checkpoint):
            raise away
        where = HostPath.parse(ticket.checkpoint).host
        if not damaged and not others and where and where != self.host:
            return Found(None, f"its checkpoint lies on {where}; share it with --artifacts to resume from there")
        return Found(None, _remark(damaged, others))

    def _read(self, file: _File) -> Checkpoint | None:
        """Read a file, from the object store where it is not here, or is damaged here."""
        checkpoint = read_checkpoint(file.path)
        if checkpoint is None and self._objects is not None and file.path.parent == self.folder:
            make_folder(self.folder)
            if fetch_file(self._objects, file.path.name, file.path):
                checkpoint = read_checkpoint(file.path)
        return checkpoint

    def can_find(self, ticket: Ticket) -> bool:
        """Whether a worker here finds the checkpoint that a ticket names, by the place that it names."""
        return self._named(ticket) is not None

    def remove(self, ticket: Ticket, digest: str, reported: Sequence[EpochRow]) -> None:
        """Remove the checkpoints of a trial.

        What was written for other values stays, and what a lease that this store has not given wrote.
        """
        for file in self._known_files_of(ticket, digest) if digest else []:
            if file.lease <= ticket.lease:
                self.discard(file.path)
        for file in self._files_of(ticket, self.folder, ""):
            with contextlib.suppress(NewerFormatError):
                checkpoint = read_checkpoint(file.path)
                is_named = file.path.name == named_in(CHECKPOINT, ticket.checkpoint)
                if checkpoint is not None and is_for(checkpoint, digest, reported, is_named):
                    remove_checkpoint(file.path)

    def remove_unreported(self, ticket: Ticket, digest: str, named: str | None) -> None:
        """Remove what was written under the ticket's lease after the file that the ticket, as it is now, names."""
        found = _file_of(HostPath.parse(named).path)
        last = (found.epoch, found.step) if found else (0, 0)
        for file in self._known_files_of(ticket, digest):
            if file.lease == ticket.lease and (file.epoch, file.step) > last:
                self.discard(file.path)

    def of_study(self, study_key: str) -> list[Path]:
        """List a study's checkpoints in this folder, of a copy of the store too."""
        found = [path for path in self.folder.glob(f"{study_key[:SHORT]}-*.checkpoint") if not path.is_symlink()]
        return sorted(path for path in found if CHECKPOINT.fullmatch(path.name))

    def shared_of_study(self, study_key: str) -> list[Path]:
        """List what the object store has of a study's checkpoints, by the paths that they have or would have here.

        Raises `ArtifactsError`.
        """
        names = [] if self._objects is None else self._objects.names()
        return [
            self.folder / name for name in names if CHECKPOINT.fullmatch(name) and name.startswith(study_key[:SHORT])
        ]

    def discard(self, path: Path) -> None:
        """Remove a checkpoint of no more use, here and in the object store; one of a later lmsearch stays.

        Where the object store does not answer it stays there, for a sweep.
        """
        remove_checkpoint(path)
        if self._objects is None or path.parent != self.folder:
            return
        with contextlib.suppress(ArtifactsError):
            if not _is_of_newer(str(path), self._objects.head(path.name, _HEAD)):
                self._objects.remove(path.name)

    def _named(self, ticket: Ticket) -> _File | None:
        """Find the file that the ticket names, by its name: here, behind it, or in another of ours on this host."""
        kept = HostPath.parse(ticket.checkpoint)
        path = kept.path
        name = read_name(CHECKPOINT, path.name)
        if name is None or (name.key, name.number) != (ticket.study_key[:SHORT], ticket.number) or "\0" in str(path):
            return None
        if (self.folder / path.name).is_file():
            return _file_of(self.folder / path.name)
        in_another = kept.host == self.host and kept.can_be and is_ours(path.parent)
        if self._objects is not None and not (in_another and path.is_file()):
            return _file_of(self.folder / path.name)
        return _file_of(path) if in_another else None

    def _known_files_of(self, ticket: Ticket, digest: str) -> set[_File]:
        """List a ticket's checkpoints for one digest, here and in the object store; here where that does not answer."""
        found = set(self._files_of(ticket, self.folder, digest))
        with contextlib.suppress(ArtifactsError):
            found |= set(self._shared_files_of(ticket, digest))
        return found

    def _shared_files_of(self, ticket: Ticket, digest: str) -> list[_File]:
        stem = f"{ticket.study_key[:SHORT]}-{ticket.number}-{digest[:SHORT]}-"
        if self._objects is None or not digest:
            return []
        names = [name for name in self._objects.names() if name.startswith(stem)]
        return [file for name in names if (file := _file_of(self.folder / name)) and file.digest == digest[:SHORT]]

    def _files_of(self, ticket: Ticket, folder: Path, digest: str) -> list[_File]:
        """List the checkpoints of a ticket for one digest; for "" those that do not say what they are for."""
        stem = f"{ticket.study_key[:SHORT]}-{ticket.number}-" + (f"{digest[:SHORT]}-" if digest else "")
        found = [file for path in folder.glob(f"{stem}e*.checkpoint") if (file := _file_of(path))]
        return sorted(file for file in found if file.digest == digest[:SHORT])


def is_for(checkpoint: Checkpoint, digest: str, reported: Sequence[EpochRow], is_named: bool) -> bool:
    """Whether a checkpoint is for a config and text; `reported` are the trial's epochs that the store has.

    One of lmsearch 0.1.0 in the midst of a first epoch has no figures to compare: it must be the very file that the
    ticket names (`is_named`).
    """
    if checkpoint.digest:
        return checkpoint.digest == digest
    if not checkpoint.epochs and not reported:
        return is_named
    theirs = {row.epoch: repr(row) for row in checkpoint.epochs}
    both = [row for row in reported if row.epoch in theirs]
    return bool(both) and all(repr(row) == theirs[row.epoch] for row in both)


def is_newer(path: Path) -> bool:
    """Whether a checkpoint was written by a later lmsearch, by its first line."""
    try:
        with path.open("rb") as file:
            return _is_of_newer(str(path), file.readline(_HEAD))
    except OSError:
        return False


def _is_of_newer(what: str, head: bytes) -> bool:
    """Whether the first bytes of a checkpoint say that a later lmsearch wrote it."""
    try:
        unseal("checkpoint", what, head)
    except NewerFormatError:
        return True
    except DamagedError:
        pass
    return False


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint that is of no more use; one of a later lmsearch stays."""
    if not is_newer(path):
        path.unlink(missing_ok=True)


def _remark(damaged: Sequence[str], others: Sequence[str]) -> str:
    remarks = [f"the checksum of {' and of '.join(damaged)} fails, so it is not used"] if damaged else []
    if others:
        remarks.append(
            f"{' and '.join(others)} is of another training (the store was restored or copied), so it is not used and "
            "stays where it is"
        )
    return "; ".join(remarks)


def read_checkpoint(path: Path) -> Checkpoint | None:
    """Read a checkpoint; None where it is missing, cut short or changed. Raises `NewerFormatError`."""
    try:
        _, content = unseal("checkpoint", str(path), path.read_bytes())
        head, _, state = content.partition(b"\n")
        fields = json.loads(head)
        return Checkpoint(
            epochs=_rows(fields["epochs"]),
            best_model=_name_of_weights(fields["best_model"]),
            at_epoch_end=bool(fields["at_epoch_end"]),
            state=state,
            digest=_digest(fields.get("digest", "")),
        )
    except (OSError, DamagedError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _name_of_weights(text: str | None) -> str | None:
    """Return the name of a folder of weights: lmsearch 0.1.0 wrote a host and a path, of which no more is used."""
    name = Path(text.rpartition(":")[2]).name if text else ""
    return name if WEIGHTS.fullmatch(name) else None


def _digest(text: str) -> str:
    if text and not DIGEST.fullmatch(text):
        raise ValueError(text)
    return text


def _rows(rows: Sequence[dict[str, Any]]) -> tuple[EpochRow, ...]:
    def row(texts: dict[str, str]) -> EpochRow:
        whole = {name: int(texts[name]) for name in ("epoch", "tokens")}
        numbers = {name: float(text) for name, text in texts.items() if name not in whole}
        return EpochRow(**whole, **numbers)  # type: ignore[arg-type]

    return tuple(map(row, rows))


def _file_of(path: Path) -> _File | None:
    name = read_name(CHECKPOINT, path.name)
    if name is None or path.is_symlink() or (path.exists() and not path.is_file()):
        return None
    return _File(epoch=name.epoch, step=name.step, lease=name.lease, path=path, digest=name.digest)
