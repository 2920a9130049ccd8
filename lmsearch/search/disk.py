"""What lies on this host: room for checkpoints, what deaths left behind, and the studies' texts."""

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock

from lmsearch.config import DataConfig
from lmsearch.errors import CorpusError
from lmsearch.search.findings import NOTE, OK, PROBLEM, UNCHECKED, Finding, count, listed, mend, spell_bytes
from lmsearch.store.checkpoints import Checkpoints, read_checkpoint
from lmsearch.store.records import StudyInfo
from lmsearch.store.tables import DONE, Ticket
from lmsearch.text.corpus import Corpus, load_cached, open_corpus

_DRAFT_SECONDS = 3600.0  # after which nobody is still writing a draft
_LEAST_ROOM = 1e8  # bytes, where no checkpoint says how large one is
_ROOM = 3  # checkpoints of one trial: the last two, and the one being written


@dataclass(frozen=True, kw_only=True)
class Owing:
    """A study and its tickets at one moment."""

    info: StudyInfo
    tickets: tuple[Ticket, ...]

    @property
    def done(self) -> set[int]:
        """Give the numbers of the tickets that are answered."""
        return {ticket.number for ticket in self.tickets if ticket.state == DONE}

    @property
    def owes(self) -> bool:
        """Tell whether there is work left."""
        return len(self.done) < len(self.tickets)


def check_room(folders: Sequence[Path], largest: int) -> Iterator[Finding]:
    """Look whether the folders can be written to, and have room for checkpoints as large as the largest, in bytes."""
    for folder in dict.fromkeys(folders):
        yield _room(folder, largest)


def check_drafts(folders: Sequence[Path], repair: bool) -> Iterator[Finding]:
    """Look for files and folders whose writer died before they were whole."""
    drafts = [path for folder in dict.fromkeys(folders) for path in forgotten_drafts(folder)]
    if drafts:
        wrong = f"{count(len(drafts), 'draft')} never finished: {listed(drafts, 3)}"
        yield mend("disk", repair, wrong, "removed", lambda: _remove(drafts))


def largest_checkpoint(folders: Sequence[Path]) -> int:
    """Give the bytes of the largest checkpoint in the folders, 0 without any."""
    return max((_size(path) or 0 for folder in folders for path in folder.glob("*.checkpoint")), default=0)


def _room(folder: Path, largest: int) -> Finding:
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    name = str(folder) if there == folder else f"{folder} (not there yet)"
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        remedy = (
            "free space there"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "let this user write there, or begin elsewhere"
        )
        return Finding(check="disk", state=PROBLEM, text=f"{name} cannot be written to ({error.strerror}); {remedy}")
    free = shutil.disk_usage(there).free
    text = f"{name} can be written to, {spell_bytes(free)} free"
    text += f"; the largest checkpoint takes {spell_bytes(largest)}" if largest else "; no checkpoint to compare with"
    if free < max(_LEAST_ROOM, _ROOM * largest):
        text += f", and a trial needs room for {_ROOM}: free space there"
        return Finding(check="disk", state=PROBLEM, text=text)
    return Finding(check="disk", state=OK, text=text)


def forgotten_drafts(folder: Path) -> list[Path]:
    """List the drafts, files and folders, that nobody has touched for an hour."""
    drafts = sorted(folder.glob("**/*.draft")) if folder.is_dir() else []
    outermost = [path for path in drafts if not any(parent in drafts for parent in path.parents)]
    return [path for path in outermost if time.time() - _touched(path) > _DRAFT_SECONDS and not _is_encoded_now(path)]


def _touched(path: Path) -> float:
    """Give when a file, or anything in a folder, was last written; infinite for what is gone by now."""
    with contextlib.suppress(OSError):
        return max(place.stat().st_mtime for place in (path, *path.glob("**/*")))
    return float("inf")


def _is_encoded_now(draft: Path) -> bool:
    # Of a large text more than an hour may pass between two writes, but its encoder holds a lock.
    lock = draft.with_name(f"{draft.name.partition('.')[0]}.lock")
    if draft.name.startswith(".") or not lock.exists():
        return False
    try:
        with filelock.FileLock(lock, timeout=0):
            return False
    except filelock.Timeout:
        return True


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # its trial has moved on
        return None


def checkpoint_folders(runs: Path, host: str, studies: Sequence[Owing]) -> list[Path]:
    """List the folders in which checkpoints lie on this host: those in `runs`, and any that a ticket names."""
    folders = {path for path in runs.glob("*/checkpoints") if path.is_dir()}
    for study in studies:
        for ticket in study.tickets:
            where, _, path = (ticket.checkpoint or "").partition(":")
            if where == host and Path(path).parent.is_dir():
                folders.add(Path(path).parent)
    return sorted({folder.resolve() for folder in folders})


def check_checkpoints(folders: Sequence[Path], host: str, studies: Sequence[Owing], repair: bool) -> Iterator[Finding]:
    """Look for checkpoints that nobody needs any more, and for damaged ones."""
    places = [Checkpoints(folder, host) for folder in folders]
    for study in studies:
        key, name = study.info.ref.key, study.info.ref.name
        left = [path for place in places for path in place.left_behind(key, study.done)]
        if left:
            wrong = f"{name}: {count(len(left), 'checkpoint')} of ended trials take {spell_bytes(_sum(left))}"
            yield mend("disk", repair, wrong, "removed", _sweeping(places, study))
        needed = [path for place in places for path in place.of_study(key) if path not in left]
        damaged = [path for path in needed if read_checkpoint(path) is None and path.exists()]
        for path in damaged:
            text = (
                f"{name}: the checksum of {path} fails; it is never used: its trial goes on from the one before, or "
                f"starts again; remove it"
            )
            yield Finding(check="disk", state=PROBLEM, text=text)
        if needed and not damaged:
            text = f"{name}: {count(len(needed), 'checkpoint')} of trials to go on with, {spell_bytes(_sum(needed))}"
            yield Finding(check="disk", state=OK, text=f"{text}, whole")


def check_foreign_files(folders: Sequence[Path], keys: set[str]) -> Iterator[Finding]:
    """Tell of checkpoints of studies that this store does not have: another store may."""
    stems = {key[:12] for key in keys}
    foreign = [path for folder in folders for path in folder.glob("*.checkpoint")]
    foreign = [path for path in foreign if path.name.partition("-")[0] not in stems]
    if foreign:
        where = listed(sorted({str(path.parent) for path in foreign}), 3)
        text = (
            f"{count(len(foreign), 'checkpoint')} in {where} ({spell_bytes(_sum(foreign))}) of no study in this store; "
            f"remove them if no other store has it"
        )
        yield Finding(check="disk", state=NOTE, text=text)


def _sweeping(places: Sequence[Checkpoints], study: Owing) -> Callable[[], None]:
    def sweep() -> None:
        for place in places:
            place.sweep(study.info.ref.key, study.done)

    return sweep


def _sum(paths: Sequence[Path]) -> int:
    return sum(_size(path) or 0 for path in paths)


def check_corpora(cache: Path, studies: Sequence[Owing], repair: bool) -> Iterator[Finding]:
    """Look whether encoded corpora are whole, and whether each study's text lies here."""
    damaged = damaged_corpora(cache)
    if damaged:
        yield mend(
            "corpora",
            repair,
            f"the checksum fails of {listed(damaged)}",
            "removed, and encoded anew from the text where it is here",
            lambda: _remove_damaged(damaged),
        )
    opened: dict[DataConfig, Corpus | CorpusError] = {}
    for study in studies:
        data, name = study.info.spec.data, study.info.ref.name
        if damaged and not repair:  # opening it would encode it anew
            text = f"{name}: whether its text lies here is not known before the damaged files are removed"
            yield Finding(check="corpora", state=UNCHECKED, text=text)
            continue
        if data not in opened:
            opened[data] = _opened(data, cache)
        yield _corpus(study, opened[data])


def _opened(data: DataConfig, cache: Path) -> Corpus | CorpusError:
    try:
        return open_corpus(data, cache)
    except CorpusError as error:
        return error


def _corpus(study: Owing, corpus: Corpus | CorpusError) -> Finding:
    info = study.info
    if isinstance(corpus, Corpus) and corpus.fingerprint == info.fingerprint:
        text = f"{info.ref.name}: {corpus.description} is here, fingerprint {corpus.fingerprint}"
        return Finding(check="corpora", state=OK, text=text)
    if isinstance(corpus, Corpus):
        wrong = (
            f"{corpus.description} here has the fingerprint {corpus.fingerprint}; it was begun on {info.corpus}, "
            f"fingerprint {info.fingerprint}"
        )
    else:
        wrong = str(corpus)
    if not study.owes:
        text = f"{info.ref.name}: {wrong}; nothing is owed, so no worker asks for it"
        return Finding(check="corpora", state=NOTE, text=text)
    text = f"{info.ref.name}: {wrong}; say where that text lies with: lmsearch worker {info.ref.name} --corpus PATH"
    return Finding(check="corpora", state=PROBLEM, text=text)


def damaged_corpora(cache: Path) -> list[Path]:
    """List the encoded corpora whose checksum fails, or that cannot be read."""
    folders = [path for path in (cache / "corpora").glob("*") if path.is_dir() and path.suffix != ".draft"]
    return sorted(folder for folder in folders if load_cached(folder, "") is None and folder.exists())


def _remove_damaged(folders: Sequence[Path]) -> None:
    """Remove encoded corpora unless a worker has made them anew meanwhile; who reads one keeps what is open."""
    for folder in folders:
        with filelock.FileLock(f"{folder}.lock"):
            if load_cached(folder, "") is None:
                shutil.rmtree(folder, ignore_errors=True)
