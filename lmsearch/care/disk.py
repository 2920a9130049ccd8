"""What lies on this host: room for checkpoints, what deaths left behind, and the studies' texts."""

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock

from lmsearch.care.findings import NOTE, OK, PROBLEM, UNCHECKED, Finding, mend
from lmsearch.config import DataConfig
from lmsearch.errors import CorpusError
from lmsearch.folders import CHECKPOINT, CHECKPOINTS, ENCODED, MODELS, WEIGHTS, HostPath, drafts, is_ours, read_name
from lmsearch.formats import NewerFormatError
from lmsearch.search.corpora import shared_corpora
from lmsearch.spelling import count, listed, spell_bytes
from lmsearch.store.artifacts import Artifacts
from lmsearch.store.belonging import LEFT, NEEDED, NEWER, OTHER, Belonging, others_sentence
from lmsearch.store.checkpoints import SHORT, Checkpoints, read_checkpoint, remove_checkpoint
from lmsearch.store.records import StudyInfo
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import Ticket
from lmsearch.text.corpus import Corpus, load_cached, open_corpus

_DRAFT_SECONDS = 3600.0  # after which nobody is still writing a draft
_LEAST_ROOM = 1e8  # bytes, where no checkpoint says how large one is
_ROOM = 3  # checkpoints of one trial: the last two, and the one being written


@dataclass(frozen=True, kw_only=True)
class StudyTickets:
    """A study and its tickets at one moment."""

    info: StudyInfo
    tickets: tuple[Ticket, ...]

    @property
    def done(self) -> set[int]:
        """Return the numbers of the tickets that are answered."""
        return {ticket.number for ticket in self.tickets if ticket.is_done}

    @property
    def has_unfinished(self) -> bool:
        """Whether there is work left."""
        return len(self.done) < len(self.tickets)


def check_room(folders: Sequence[Path], largest: int) -> Iterator[Finding]:
    """Look whether the folders can be written to, and have room for checkpoints as large as the largest, in bytes."""
    for folder in dict.fromkeys(folders):
        yield _room(folder, largest)


def check_drafts(folders: Sequence[Path], repair: bool) -> Iterator[Finding]:
    """Look for files and folders of ours whose writer died before they were whole."""
    left = [path for folder in dict.fromkeys(folders) for path in forgotten_drafts(folder)]
    if left:
        wrong = f"{count(len(left), 'draft')} never finished"
        yield from mend("disk", repair, wrong, "removed", lambda: _remove(left), left)


def folders_of_ours(runs: Path, cache: Path) -> list[Path]:
    """List the folders that lmsearch makes in `runs` and in the cache, in which drafts may lie."""
    names = [folder for folder in sorted(runs.glob("*")) if folder.is_dir()]
    inner = [folder / part for folder in names for part in (CHECKPOINTS, MODELS)]
    return [*names, *inner, cache / "corpora", *sorted((cache / "downloads").glob("*"))]


def largest_checkpoint(folders: Sequence[Path]) -> int:
    """Return the bytes of the largest checkpoint in the folders, 0 without any."""
    return max((_size(path) or 0 for folder in folders for path in folder.glob("*.checkpoint")), default=0)


def _room(folder: Path, largest: int) -> Finding:
    # Lexically present, also as a link that leads nowhere.
    there = next(parent for parent in (folder, *folder.absolute().parents) if os.path.lexists(parent))
    if not there.is_dir():
        text = f"{there} is a file where a folder is needed; move it away, or start elsewhere"
        return Finding(check="disk", state=PROBLEM, text=text)
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
            else "let this user write there, or start elsewhere"
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
    """List the drafts of ours in a folder, files and folders, that nobody has touched for an hour."""
    now = time.time()
    return [path for path in drafts(folder) if now - _touched(path) > _DRAFT_SECONDS and not _is_encoded_now(path)]


def _touched(path: Path) -> float:
    """Return when a file, or anything in a folder, was last written; infinite for what is gone by now."""
    with contextlib.suppress(OSError):
        return max(inner.stat().st_mtime for inner in (path, *path.glob("**/*")))
    return float("inf")


def _is_encoded_now(draft: Path) -> bool:
    # Of a large text more than an hour may pass between two writes, but its encoder holds a lock.
    lock = draft.with_name(f"{draft.name.lstrip('.').partition('.')[0]}.lock")
    if not lock.exists():
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


def checkpoint_folders(runs: Path, host: str, studies: Sequence[StudyTickets]) -> list[Path]:
    """List the folders in which checkpoints lie on this host: those in `runs`, and any of ours that a ticket names."""
    folders = {path for path in runs.glob("*/checkpoints") if path.is_dir() and not path.is_symlink()}
    for study in studies:
        for ticket in study.tickets:
            kept = HostPath.parse(ticket.checkpoint)
            name = read_name(CHECKPOINT, kept.path.name)
            ours = name is not None and name.key == study.info.ref.key[:SHORT] and kept.can_be
            if ours and kept.host == host and is_ours(kept.path.parent):
                folders.add(kept.path.parent)
    return sorted({folder.resolve() for folder in folders})


def check_checkpoints(
    storage: FencedStorage, folders: Sequence[Path], host: str, studies: Sequence[StudyTickets], repair: bool
) -> Iterator[Finding]:
    """Look for checkpoints that nobody needs any more, damaged ones, and such as the store does not know."""
    for study in studies:
        key, name = study.info.ref.key, study.info.ref.name
        paths = [path for folder in folders for path in Checkpoints(folder, host).of_study(key)]
        weights = [path for folder in folders for path in (folder.parent / MODELS).glob(f"{key[:SHORT]}-trial-*")]
        if not paths and not weights:
            continue
        trials = storage.get_all_trials(study.info.ref.id, deepcopy=False)
        belonging = Belonging(storage, study.info, study.tickets, trials)
        kinds: dict[str, list[Path]] = {NEEDED: [], LEFT: [], OTHER: [], NEWER: []}
        for path in paths:
            kinds[belonging.of_checkpoint(path)].append(path)
        kinds[OTHER] += belonging.others([path for path in weights if WEIGHTS.fullmatch(path.name)])
        yield from _of_kinds(name, kinds, repair)


def _of_kinds(name: str, kinds: Mapping[str, Sequence[Path]], repair: bool) -> Iterator[Finding]:
    if left := kinds[LEFT]:
        wrong = f"{name}: {count(len(left), 'checkpoint')} of ended trials take {spell_bytes(_sum(left))}"

        def sweep() -> None:
            for path in left:
                remove_checkpoint(path)

        yield from mend("disk", repair, wrong, "removed", sweep, left)
    if newer := kinds[NEWER]:
        text = f"{name}: {count(len(newer), 'checkpoint')} of a later lmsearch, which resumes them: {listed(newer)}"
        yield Finding(check="disk", state=NOTE, text=text)
    if others := kinds[OTHER]:
        text = f"{name}: {others_sentence(others)}; remove them if no copy of the store needs them"
        yield Finding(check="disk", state=NOTE, text=text)
    needed = kinds[NEEDED]
    damaged = [path for path in needed if read_checkpoint(path) is None and path.exists()]
    for path in damaged:
        text = (
            f"{name}: the checksum of {path} fails; it is never used: its trial resumes from the one before, "
            f"or starts again; remove it"
        )
        yield Finding(check="disk", state=PROBLEM, text=text)
    if needed and not damaged:
        text = f"{name}: {count(len(needed), 'checkpoint')} of resumable trials, {spell_bytes(_sum(needed))}"
        yield Finding(check="disk", state=OK, text=f"{text}, whole")


def check_foreign_files(folders: Sequence[Path], keys: set[str]) -> Iterator[Finding]:
    """Report checkpoints of studies that this store does not have: another store may."""
    stems = {key[:SHORT] for key in keys}
    foreign = [path for folder in folders for path in folder.glob("*.checkpoint")]
    foreign = [p for p in foreign if (name := read_name(CHECKPOINT, p.name)) and name.key not in stems]
    if foreign:
        where = listed(sorted({str(path.parent) for path in foreign}), 3)
        text = (
            f"{count(len(foreign), 'checkpoint')} in {where} ({spell_bytes(_sum(foreign))}) of no study in this store; "
            f"remove them if no other store has it"
        )
        yield Finding(check="disk", state=NOTE, text=text)


def _sum(paths: Sequence[Path]) -> int:
    return sum(_size(path) or 0 for path in paths)


def check_corpora(
    cache: Path, studies: Sequence[StudyTickets], repair: bool, artifacts: Artifacts | None = None
) -> Iterator[Finding]:
    """Look whether encoded corpora are whole, and whether each study's text lies here, or among the artifacts."""
    damaged = damaged_corpora(cache)
    if damaged:
        yield from mend(
            "corpora",
            repair,
            f"the checksum fails of {listed(damaged)}",
            "removed, and encoded again from the text if it is here",
            lambda: _remove_damaged(damaged),
            damaged,
        )
    opened: dict[DataConfig, Corpus | CorpusError] = {}
    shared = shared_corpora(artifacts)
    for study in studies:
        data, name = study.info.spec.data, study.info.ref.name
        if damaged and not repair:  # opening it would encode it again
            text = f"{name}: whether its text lies here is not known before the damaged files are removed"
            yield Finding(check="corpora", state=UNCHECKED, text=text)
            continue
        if data not in opened:
            opened[data] = _opened(data, cache)
        finding = _corpus(study, opened[data])
        if finding.state == PROBLEM and study.info.shuffles is not None and study.info.fingerprint in shared:
            text = f"{name}: its text is not here; workers fetch it from {artifacts}"
            finding = Finding(check="corpora", state=OK, text=text)
        yield finding


def _opened(data: DataConfig, cache: Path) -> Corpus | CorpusError:
    try:
        return open_corpus(data, cache)
    except CorpusError as error:
        return error


def _corpus(study: StudyTickets, corpus: Corpus | CorpusError) -> Finding:
    info = study.info
    if isinstance(corpus, Corpus) and corpus.fingerprint == info.fingerprint:
        text = f"{info.ref.name}: {corpus.description} is here, fingerprint {corpus.fingerprint}"
        return Finding(check="corpora", state=OK, text=text)
    if isinstance(corpus, Corpus):
        wrong = (
            f"{corpus.description} here has the fingerprint {corpus.fingerprint}; it was started on {info.corpus}, "
            f"fingerprint {info.fingerprint}"
        )
    else:
        wrong = str(corpus)
    if not study.has_unfinished:
        text = f"{info.ref.name}: {wrong}; no trial is left, so no worker needs it"
        return Finding(check="corpora", state=NOTE, text=text)
    text = f"{info.ref.name}: {wrong}; give the path of that text with: lmsearch worker {info.ref.name} --corpus PATH"
    return Finding(check="corpora", state=PROBLEM, text=text)


def damaged_corpora(cache: Path) -> list[Path]:
    """List the encoded corpora whose checksum fails, or that cannot be read; those of a later lmsearch can be."""
    corpora = cache / "corpora"
    if not is_ours(corpora):
        return []
    folders = [path for path in corpora.iterdir() if ENCODED.fullmatch(path.name) and not path.is_symlink()]
    return sorted(folder for folder in folders if folder.is_dir() and _is_damaged(folder))


def _is_damaged(folder: Path) -> bool:
    try:
        return load_cached(folder, "") is None and folder.exists()
    except NewerFormatError:
        return False


def _remove_damaged(folders: Sequence[Path]) -> None:
    """Remove encoded corpora unless a worker has made them again meanwhile; who reads one keeps what is open."""
    for folder in folders:
        with filelock.FileLock(f"{folder}.lock"):
            if _is_damaged(folder):
                shutil.rmtree(folder, ignore_errors=True)
