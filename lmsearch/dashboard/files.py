"""The files of studies, offered by the dashboard from where they lie; nothing is copied."""

import tempfile
import zipfile
from pathlib import Path
from typing import BinaryIO, NoReturn

import bottle
from optuna.artifacts.exceptions import ArtifactNotFound

from lmsearch.folders import MODEL_FILES, OF_USE
from lmsearch.report.publishing import find_artifact
from lmsearch.store.storage import FencedStorage


class StudyFiles:
    """What optuna-dashboard takes for a store of artifacts: reads the files in `runs`, and takes none."""

    def __init__(self, storage: FencedStorage, runs: Path) -> None:
        self._storage = storage
        self._runs = runs

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open a study's file; a model's folder as an archive."""
        found = find_artifact(self._storage, self._runs, artifact_id)
        if found is None:
            raise bottle.HTTPError(404, "This file is not on the machine that serves the dashboard.")
        name, target = found
        if not name.endswith(".zip"):
            return target.open("rb")
        archive = tempfile.TemporaryFile()  # noqa: SIM115  (the server closes it once it is sent)
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
            for path in sorted(target.iterdir()):
                if path.name in (*MODEL_FILES, *OF_USE) and path.is_file() and not path.is_symlink():
                    packed.write(path, path.relative_to(target.parent))
        archive.seek(0)
        return archive

    def write(self, artifact_id: str, content_body: BinaryIO) -> NoReturn:
        """Refuse a file: the results of a study are made by lmsearch alone."""
        raise bottle.HTTPError(403, "lmsearch takes no files through this page.")

    def remove(self, artifact_id: str) -> None:
        """Leave the file: `lmsearch delete` removes a study's files with it."""
        if find_artifact(self._storage, self._runs, artifact_id) is None:
            raise ArtifactNotFound("there is no such file")
