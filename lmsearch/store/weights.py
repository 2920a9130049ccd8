"""The weights of a study's trials: each a folder of a model's files, in a folder of this host and behind it."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from lmsearch.folders import MODEL_FILES, MODELS, WEIGHTS, is_model, make_folder, remove_weights
from lmsearch.store.artifacts import ArtifactsError, Objects, StudyFiles, fetch_folder, put_folder

_PACKED = ".zip"  # ends the name of the object that has a folder of weights


class Weights:
    """The weights of a study: in one folder, and the same in an object store where there is one."""

    def __init__(self, folder: Path, objects: Objects | None = None) -> None:
        self.folder = folder
        self._objects = objects
        self._unshared: dict[str, None] = {}  # in the order in which they were written

    @classmethod
    def of(cls, files: StudyFiles) -> "Weights":
        """Return the weights among a study's files."""
        return cls(files.models, files.objects_of(MODELS))

    def add(self, name: str) -> None:
        """Take note of a folder of weights that was written, which `share` copies to the object store."""
        if self._objects is not None:
            self._unshared[name] = None

    def share(self) -> str:
        """Copy to the object store what is not there yet, and return the name of the last; "" where all is there.

        Raises `ArtifactsError`, and `OSError` where this host has no room: it can be done again.
        """
        last = ""
        for name in list(self._unshared):
            if self._objects is not None and is_model(self.folder / name):
                put_folder(self._objects, name + _PACKED, self.folder / name, MODEL_FILES)
                last = name
            del self._unshared[name]
        return last

    def find(self, name: str, also: Sequence[Path] = ()) -> Path | None:
        """Find weights by their name, here, in another folder of this host, or in the object store.

        Raises `ArtifactsError` where they may lie in a store that does not answer.
        """
        if not WEIGHTS.fullmatch(name):
            return None
        for path in (self.folder / name, *(folder / name for folder in also)):
            if path.is_dir() and not path.is_symlink():
                return path
        return self.fetch(name)

    def fetch(self, name: str) -> Path | None:
        """Copy weights here from the object store; None where it has none of that name. Raises `ArtifactsError`."""
        if self._objects is None or (self.folder / name).is_symlink():
            return None
        make_folder(self.folder)
        fetched = fetch_folder(self._objects, name + _PACKED, self.folder / name, MODEL_FILES, MODEL_FILES)
        return self.folder / name if fetched else None

    def names(self, stem: str) -> set[str]:
        """List the names of weights that begin with a stem, of a copy of the store too.

        What an object store has is left out where it does not answer.
        """
        found = {path.name for path in self.folder.glob(f"{stem}-trial-*-epoch-*") if WEIGHTS.fullmatch(path.name)}
        with contextlib.suppress(ArtifactsError):
            found |= self.shared_names(stem)
        return found

    def shared_names(self, stem: str) -> set[str]:
        """List the names of weights in the object store that begin with a stem. Raises `ArtifactsError`."""
        names = [] if self._objects is None else self._objects.names()
        found = {name.removesuffix(_PACKED) for name in names if name.startswith(stem) and name.endswith(_PACKED)}
        return {name for name in found if WEIGHTS.fullmatch(name)}

    def remove(self, folder: Path) -> None:
        """Remove weights, here and in the object store; where that does not answer they stay there for a sweep."""
        remove_weights(folder)
        self._unshared.pop(folder.name, None)
        if self._objects is not None and WEIGHTS.fullmatch(folder.name):
            with contextlib.suppress(ArtifactsError):
                self._objects.remove(folder.name + _PACKED)
