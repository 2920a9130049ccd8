"""Files that the hosts of a search share: in a folder that all of them see, or in an object store through fsspec.

What is read from there is believed only as far as its own checksum or fingerprint goes, and its name is one of ours.
"""

import contextlib
import importlib
import logging
import re
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lmsearch.errors import ConfigError, LmsearchError
from lmsearch.files import draft_folder, draft_of, replace_file
from lmsearch.folders import CHECKPOINTS, MODELS, absolute, make_folder, study_folder

ARTIFACTS = "LMSEARCH_ARTIFACTS"
"""The variable that names the artifacts where no option does."""

_FOLDER_SCHEMES = ("file", "local")
_OF_ONE_PROCESS = ("memory", "dir", "cached", "blockcache", "filecache", "simplecache", "reference")
_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)*", re.ASCII)

# What botocore waits for by default sums up to minutes, in which nothing is trained.
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "config_kwargs": {
            "connect_timeout": 5,
            "read_timeout": 60,
            "retries": {"max_attempts": 2, "mode": "standard"},
        }
    }
}


class ArtifactsError(LmsearchError, OSError):
    """The artifacts cannot be reached now, or do not take what is written. To a training it is as a full disk."""

    exit_code = 75


class Objects(Protocol):
    """Objects under names of ours. Each is written whole or not at all. All methods raise `ArtifactsError`."""

    def under(self, name: str) -> "Objects":
        """Return the objects whose names begin with that name and a slash."""
        ...

    def put(self, name: str, content: bytes | Path) -> None:
        """Write an object, from bytes or from a file."""
        ...

    def fetch(self, name: str, target: Path) -> bool:
        """Copy an object into a file, a draft of the caller's; false where there is none of that name."""
        ...

    def head(self, name: str, size: int) -> bytes:
        """Return the first bytes of an object, none where there is none of that name."""
        ...

    def names(self) -> list[str]:
        """List the names directly here, without those in folders."""
        ...

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        ...


@dataclass(frozen=True)
class Artifacts:
    """Where the hosts of a search keep what they share: an absolute path, or a URL of a scheme that fsspec knows."""

    url: str

    @classmethod
    def parse(cls, text: str) -> "Artifacts":
        """Read a person's folder or URL. Raises `ConfigError`."""
        scheme, separator, rest = text.partition("://")
        if not separator or scheme in _FOLDER_SCHEMES:
            if not (rest if separator else text):
                raise ConfigError("--artifacts names no folder")
            return cls(str(absolute(rest if separator else text, "the folder of the artifacts")))
        where = rest.rstrip("/")
        if "@" in where.partition("/")[0]:
            raise ConfigError(
                f"the URL of the artifacts has a user or a password in it; leave them out ({scheme}://…) and give "
                "them by the environment, as the programs of that store take them"
            )
        if not where or any(mark in where for mark in ("?", "#", "::", "\0", "//")) or ".." in where.split("/"):
            raise ConfigError(f"{text!r} is no URL of artifacts; write a folder, or s3://BUCKET/FOLDER")
        if scheme in _OF_ONE_PROCESS or scheme not in _schemes():
            raise ConfigError(f"no store of artifacts is called {scheme!r}; write a folder, or s3://BUCKET/FOLDER")
        return cls(f"{scheme}://{where}")

    def __str__(self) -> str:
        return self.url

    @property
    def folder(self) -> Path | None:
        """Return the folder; None for an object store."""
        return None if "://" in self.url else Path(self.url)

    def results(self, study: str, key: str) -> Objects:
        """Return where the result files of a study are put: in a folder by its name, in an object store by its key."""
        if self.folder is not None:
            return FolderObjects(study_folder(study, self.folder) / "results")
        return self.objects().under(key).under("results")

    def objects(self) -> Objects:
        """Open the objects. Raises `ConfigError` where a package is missing that the scheme needs."""
        if self.folder is not None:
            return FolderObjects(self.folder)
        return BucketObjects(_filesystem(self.url.partition("://")[0]), self.url)


@dataclass(frozen=True)
class StudyFiles:
    """Where checkpoints and weights of a study lie: a folder of this host, and perhaps an object store behind it."""

    folder: Path
    objects: Objects | None = None

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the checkpoints."""
        return self.folder / CHECKPOINTS

    @property
    def models(self) -> Path:
        """Return the folder of the weights."""
        return self.folder / MODELS

    def objects_of(self, part: str) -> Objects | None:
        """Return the objects behind one of the two folders."""
        return None if self.objects is None else self.objects.under(part)


def study_files(artifacts: Artifacts | None, name: str, key: str, own: Path) -> StudyFiles:
    """Return where the files of a study lie: in a shared folder by its name, in an object store by its key.

    `own` is the study's folder on this host, which has the copies of what lies in an object store.
    """
    if artifacts is None:
        return StudyFiles(own.resolve())
    if artifacts.folder is not None:
        return StudyFiles(study_folder(name, artifacts.folder))
    return StudyFiles(own.resolve(), artifacts.objects().under(key))


class FolderObjects:
    """Objects as files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def under(self, name: str) -> "FolderObjects":
        """Return the objects in a folder of this one."""
        return FolderObjects(self._folder / _checked(name))

    def put(self, name: str, content: bytes | Path) -> None:
        """Write a file."""
        with self._reaching("written", name):
            make_folder(self._folder)
            path = self._folder / _checked(name)
            if isinstance(content, bytes):
                replace_file(path, content)
                return
            draft = draft_of(path)
            try:
                shutil.copyfile(content, draft)
                draft.replace(path)
            finally:
                draft.unlink(missing_ok=True)

    def fetch(self, name: str, target: Path) -> bool:
        """Copy a file."""
        source = self._folder / _checked(name)
        with self._reaching("read", name):
            if source.is_symlink() or not source.is_file():
                return False
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            return True

    def head(self, name: str, size: int) -> bytes:
        """Return the first bytes of a file."""
        path = self._folder / _checked(name)
        with self._reaching("read", name):
            if path.is_symlink() or not path.is_file():
                return b""
            with path.open("rb") as file:
                return file.read(size)

    def names(self) -> list[str]:
        """List the files."""
        with self._reaching("listed", ""):
            found = self._folder.iterdir() if self._folder.is_dir() else []
            return sorted(path.name for path in found if path.is_file() and _NAME.fullmatch(path.name))

    def remove(self, name: str) -> None:
        """Remove a file."""
        with self._reaching("removed", name):
            (self._folder / _checked(name)).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _reaching(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ArtifactsError(f"{self._folder / name} cannot be {verb}: {error.strerror or error}") from error


class BucketObjects:
    """Objects of a store that fsspec reaches."""

    def __init__(self, filesystem: Any, root: str) -> None:
        self._filesystem = filesystem
        self._root = root

    def under(self, name: str) -> "BucketObjects":
        """Return the objects below a prefix."""
        return BucketObjects(self._filesystem, f"{self._root}/{_checked(name)}")

    def put(self, name: str, content: bytes | Path) -> None:
        """Upload an object; a store shows it once all of it is there."""
        with self._reaching("written", name, is_there=False):
            if isinstance(content, bytes):
                self._filesystem.pipe_file(self._path(name), content)
            else:
                self._filesystem.put_file(str(content), self._path(name))

    def fetch(self, name: str, target: Path) -> bool:
        """Download an object."""
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._reaching("read", name):
                self._filesystem.get_file(self._path(name), str(target))
        except FileNotFoundError:
            return False
        return True

    def head(self, name: str, size: int) -> bytes:
        """Return the first bytes of an object."""
        try:
            with self._reaching("read", name):
                return bytes(self._filesystem.cat_file(self._path(name), start=0, end=size))
        except FileNotFoundError:
            return b""

    def names(self) -> list[str]:
        """List the objects directly below the prefix, as the store has them now."""
        try:
            with self._reaching("listed", ""):
                self._filesystem.invalidate_cache()
                found = self._filesystem.ls(self._root, detail=True)
        except FileNotFoundError:
            return []
        names = (one["name"].rstrip("/").rpartition("/")[2] for one in found if one["type"] == "file")
        return sorted(name for name in names if _NAME.fullmatch(name))

    def remove(self, name: str) -> None:
        """Remove an object."""
        with contextlib.suppress(FileNotFoundError), self._reaching("removed", name):
            self._filesystem.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{_checked(name)}"

    @contextlib.contextmanager
    def _reaching(self, verb: str, name: str, is_there: bool = True) -> Iterator[None]:
        """Turn whatever a store's library raises into one error, but for a missing object where one is looked for."""
        try:
            yield
        except Exception as error:
            if is_there and isinstance(error, FileNotFoundError):
                raise
            why = " ".join(str(error).split()) or type(error).__name__
            where = f"{self._root}/{name}".rstrip("/")
            raise ArtifactsError(f"{where} cannot be {verb}: {why[:300]}") from error


def fetch_file(objects: Objects, name: str, path: Path) -> bool:
    """Copy an object to a path, where it appears whole; false where there is none of that name."""
    draft = draft_of(path)
    try:
        if not objects.fetch(name, draft):
            return False
        draft.replace(path)
        return True
    finally:
        draft.unlink(missing_ok=True)


def put_folder(objects: Objects, name: str, folder: Path, names: Sequence[str]) -> None:
    """Write files of a folder as one object; raises `ArtifactsError`, and `OSError` where this host has no room."""
    draft = draft_of(folder)
    try:
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive:
            for inner in names:
                archive.write(folder / inner, inner)
        objects.put(name, draft)
    finally:
        draft.unlink(missing_ok=True)


def fetch_folder(objects: Objects, name: str, folder: Path, names: Sequence[str], needed: Sequence[str]) -> bool:
    """Copy an object that `put_folder` wrote to a folder, which appears whole; false where none is there or damaged.

    Of `names`, those are taken that are in it, and `needed` must be. Nothing else of it is looked at, and nothing
    grows: only what is stored as it is, is taken.
    """
    packed = draft_of(folder)
    try:
        return objects.fetch(name, packed) and _unpack(packed, folder, names, needed)
    finally:
        packed.unlink(missing_ok=True)


def _unpack(packed: Path, folder: Path, names: Sequence[str], needed: Sequence[str]) -> bool:
    try:
        with zipfile.ZipFile(packed) as opened, draft_folder(folder) as draft:
            names = [name for name in names if name in opened.namelist() or name in needed]
            for name in names:
                entry = opened.getinfo(name)
                if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                    raise KeyError(name)
                with opened.open(entry) as source, (draft / name).open("wb") as file:
                    shutil.copyfileobj(source, file)
    except (KeyError, ValueError, NotImplementedError, EOFError, zipfile.BadZipFile):
        return False
    return True


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ArtifactsError(f"{name!r} is no name of an object of lmsearch's")
    return name


def _schemes() -> list[str]:
    return list(importlib.import_module("fsspec").available_protocols())


def _filesystem(scheme: str) -> Any:
    fsspec = importlib.import_module("fsspec")
    # What a lost connection raises in a task of its own is raised to the caller too.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False, **_OPTIONS.get(scheme, {}))
    except ImportError as error:
        extra = "; install it with: pip install 'lmsearch[s3]'" if scheme == "s3" else ""
        raise ConfigError(f"artifacts in {scheme}://… need a package that is missing ({error}){extra}") from error
    except Exception as error:
        raise ArtifactsError(f"{scheme}://… cannot be opened: {error}") from error
