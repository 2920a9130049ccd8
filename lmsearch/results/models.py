"""The model that a person names: by its folder, or by the study whose best trial it is of."""

import socket
from collections.abc import Callable
from pathlib import Path

from lmsearch.errors import ConfigError, StoreError, StoreGoneError, StudyError
from lmsearch.folders import MODEL, MODEL_WEIGHTS, HostPath, is_model, study_folder
from lmsearch.results.best import find_weights, is_best_model, require_winner, write_files
from lmsearch.results.commands import Command
from lmsearch.results.reading import read_best
from lmsearch.store.artifacts import Artifacts
from lmsearch.store.storage import FencedStorage

OpenStore = Callable[[], FencedStorage]


def find_model(
    text: str, open_store: OpenStore, command: Command, artifacts: Artifacts | None = None
) -> tuple[Path, list[str]]:
    """Find a model's folder by its path, or that of the best trial that the store has of the study of that name.

    Where the study's best-model/ is another's, as after more trials elsewhere, it is made again. Returned beside the
    folder is what a person should know. Raises `ConfigError` where there is neither, and where the best trial's
    weights are not here.
    """
    path = Path(text)
    for folder in (path, *([path / MODEL] if len(path.parts) > 1 else [])):
        if (folder / MODEL_WEIGHTS).is_file():
            return folder, []
    try:
        return _best_of_study(text, open_store, command, artifacts)
    except StoreGoneError:
        raise
    except (StoreError, StudyError) as error:
        raise ConfigError(f"there is no model {text!r} ({error}){_models_hint(text)}") from error


def _models_hint(text: str) -> str:
    """Return which models lie in the folder of that name."""
    try:
        folder = Path(text) if len(Path(text).parts) > 1 else study_folder(text)
    except StudyError:
        return "; name a model's folder, or a study"
    there = [folder / MODEL, *sorted(folder.glob("seed-*"))]
    found = [str(candidate) for candidate in there if (candidate / MODEL_WEIGHTS).is_file()]
    unfinished = [folder.with_name(f"{folder.name}.training"), *sorted(folder.glob("seed-*.training"))]
    unfinished = [path for path in unfinished if path.is_file()]
    if unfinished and not found:
        return (
            f"; a training there has not finished its first epoch ({unfinished[0]}): "
            "resume it with lmsearch train --resume"
        )
    return f"; to use a model in that folder, name its own folder: {', '.join(found)}" if found else ""


def _best_of_study(
    name: str, open_store: OpenStore, command: Command, artifacts: Artifacts | None
) -> tuple[Path, list[str]]:
    opened = open_store()
    try:
        results = read_best(name, opened)
    finally:
        opened.engine.dispose()
    best, info = require_winner(results), results.record.info
    folder = study_folder(name)
    if is_best_model(folder / MODEL, info, best):
        return folder / MODEL, []
    best_command = command(["lmsearch", "best", name])
    if find_weights(info, best, folder, artifacts) is None:
        host = HostPath.parse(best.model).host
        where = f"on {host}" if host not in ("", socket.gethostname()) else "not kept"
        raise ConfigError(
            f"the best of {name} is trial {best.number}, and its weights are {where}; write its config with: "
            f"{best_command}, and train it again with: lmsearch train {folder / 'best-config.json'}"
        )
    stale = is_model(folder / MODEL)
    files = write_files(results, folder, best_command, command, artifacts)
    assert files.best_model is not None
    remarks = [files.remark] if files.remark else []
    if stale:
        remarks.append(f"{files.best_model} held another trial; now it holds trial {best.number}, the best")
    return files.best_model, remarks
