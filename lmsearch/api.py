"""What `import lmsearch` offers: reading, searching, confirming, training and using models from Python.

Everything returns plain data and raises `LmsearchError`. The store is the command line's: LMSEARCH_STORAGE, else
`sqlite:///runs/lmsearch.db` below the working folder.
"""

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.engine import URL

from lmsearch.config import Value
from lmsearch.errors import ConfigError, SearchFailedError
from lmsearch.folders import DEFAULT_STORE
from lmsearch.launch.search import supervisor
from lmsearch.launch.supervise import Signals
from lmsearch.results.best import write_files
from lmsearch.results.commands import failure_sentence
from lmsearch.results.models import find_model
from lmsearch.results.reading import Results, read_any
from lmsearch.search.start import ConfirmRequest, Prepared, SearchRequest, prepare, prepare_confirmation
from lmsearch.store.opening import open_storage
from lmsearch.store.records import only_study
from lmsearch.store.storage import FencedStorage
from lmsearch.store.url import parse_url

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from lmsearch.lm.training import TrainResult
    from lmsearch.lm.use.trained import TrainedModel


def read(study: str | None = None, storage: str | FencedStorage | None = None) -> Results:
    """Read all that is known of a study.

    Args:
        study: its name; may be left out where the store has one study.
        storage: the store's URL, or an opened store.

    Raises:
        LmsearchError: there is no such store or study.
    """
    opened = storage if isinstance(storage, FencedStorage) else open_storage(_url(storage))
    return read_any(only_study(opened) if study is None else study, opened)


def figure(results: Results, name: str) -> "go.Figure":
    """Return a figure of the report, such as `curves` or `slice-train.learning_rate`, for a notebook.

    Raises:
        LmsearchError: there is no figure of that name, or the study has too little for it.
    """
    from lmsearch.report.figures import make_figure

    return make_figure(results, name)


def search(
    study_file: str | Path = "default",
    *,
    name: str | None = None,
    workers: int | None = None,
    device: str = "auto",
    trials: int | None = None,
    more: int | None = None,
    sampler: str | None = None,
    pruner: str | None = None,
    time_limit: float | None = None,
    source: str | None = None,
    storage: str | None = None,
) -> Results:
    """Start or resume a study, run it until its trial budget is used up, write its result files and return it.

    The same as `lmsearch run`, whose options these are. An interruption (Ctrl-C, a notebook's stop button) saves all
    running trials; called again, it continues them. To watch it, iterate over `lmsearch.launch.search.search`.

    Args:
        study_file: a file, or the name of a study that lmsearch ships or that the store has.
        time_limit: seconds after which no trial starts and running ones are saved.
        source: another study whose trials that fit this space are taken over.

    Raises:
        LmsearchError: something of what is asked for cannot be; no trial completed (`SearchFailedError`).
    """
    request = SearchRequest(
        study_file=str(study_file),
        name=name,
        workers=workers,
        device=device,
        trials=trials,
        more=more,
        sampler=sampler,
        pruner=pruner,
        time_limit=time_limit,
        source=source,
    )
    prepared = prepare(request, _url(storage))
    _run(prepared)
    results = read(prepared.info.ref.name, prepared.storage)
    write_files(results, prepared.folder, shlex.join(request.words()), shlex.join)
    if results.record.done == results.record.total and results.record.best is None:
        raise SearchFailedError(failure_sentence(results, shlex.join))
    return results


def confirm(
    study: str | None = None,
    *,
    top: int = 3,
    seeds: int = 3,
    workers: int | None = None,
    device: str = "auto",
    storage: str | None = None,
) -> Results:
    """Train a study's best configurations again on fresh seeds; return the study, whose `confirmation` says the rest.

    Raises:
        LmsearchError: there is no such study, or it has no complete trial.
    """
    url = _url(storage)
    if study is None:
        study = only_study(open_storage(url))
    request = ConfirmRequest(study=study, top=top, seeds=seeds, workers=workers, device=device)
    prepared = prepare_confirmation(request, url)
    _run(prepared)
    return read(study, prepared.storage)


def train(
    config: str | Path,
    *,
    seeds: int = 1,
    epochs: int | None = None,
    changes: Mapping[str, Value] | None = None,
    name: str | None = None,
    device: str = "auto",
    resume: bool = False,
) -> "list[TrainResult]":
    """Train a closed config, such as a search's best-config.json, in this process; each model has its own folder.

    Args:
        seeds: how many models, each with a seed of its own.
        changes: values by dotted path that take the place of the config's.
        name: of the folder below `runs`; otherwise the config's study, or its file name.
        resume: continue an earlier training of the same name.

    Raises:
        LmsearchError: the config cannot be trained, or its training diverged.
    """
    from lmsearch.lm.training import TrainRequest, prepare_training

    request = TrainRequest(
        config=Path(config),
        name=name,
        seeds=seeds,
        epochs=epochs,
        changes=tuple(f"{path}={json.dumps(value)}" for path, value in (changes or {}).items()),
        resume=resume,
        device=device,
    )
    found = []
    for training in prepare_training(request).trainings:
        for _ in training.run(lambda: False, lambda step: None):
            pass
        found.append(training.result())
    return found


def load(model: str | Path, device: str = "cpu", storage: str | None = None) -> "TrainedModel":
    """Load a trained model for use, by its folder, or by the name of a study, whose best model is meant.

    No code of it is run.

    Raises:
        LmsearchError: there is no such model, or its weights are on another host.
    """
    from lmsearch.lm.use.model_folder import load as load_folder

    if not isinstance(model, str | Path):
        raise ConfigError(f"a model is named by its folder or its study, a str or a Path, not {type(model).__name__}")
    folder, _ = find_model(str(model), lambda: open_storage(_url(storage)), shlex.join)
    return load_folder(folder, device)


def _url(storage: str | None) -> URL:
    return parse_url(storage or os.environ.get("LMSEARCH_STORAGE") or DEFAULT_STORE)


def _run(prepared: Prepared) -> None:
    """Run a prepared search to its end."""
    for _ in supervisor(prepared, Signals()).run(prepared.devices):
        pass
