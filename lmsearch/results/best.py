"""The files of a search's results: best-config.json, best-model/, trials.csv and the study file as run."""

import contextlib
import csv
import importlib.metadata
import io
import itertools
import json
import math
import platform
import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import filelock

from lmsearch.errors import ResultsError, StudyError
from lmsearch.escapes import cell
from lmsearch.files import draft_folder, remove_tree, replace_file
from lmsearch.folders import (
    BEST_CONFIG,
    KEY,
    LOCK,
    MODEL,
    MODEL_CONFIG,
    MODEL_FILES,
    MODEL_METRICS,
    MODELS,
    OF_USE,
    RESULTS,
    RESULTS_OF,
    STUDY_FILE,
    TRIALS_HEAD,
    TRIALS_TABLE,
    WEIGHTS,
    HostPath,
    check_folder,
    check_replaceable,
    is_model,
    is_ours,
    make_folder,
    mark_of,
    read_document,
    remove_weights,
)
from lmsearch.formats import stamp
from lmsearch.losses import json_text, perplexity
from lmsearch.results.commands import Command
from lmsearch.results.confirmation import confirmation_document
from lmsearch.results.reading import Results
from lmsearch.store.artifacts import Artifacts, ArtifactsError, study_files
from lmsearch.store.belonging import config_digest
from lmsearch.store.checkpoints import SHORT
from lmsearch.store.records import StudyInfo, StudyRecord, TrialRecord
from lmsearch.store.tables import StudyRef
from lmsearch.store.weights import Weights
from lmsearch.study.closed import config_tables
from lmsearch.version import __version__

_PACKAGES = ("torch", "numpy", "optuna", "sqlalchemy")


@dataclass(frozen=True, kw_only=True)
class ResultFiles:
    """Where the results of a study lie; `best_model` is None where the weights are not on this host."""

    best_config: Path | None
    best_model: Path | None
    model_host: str  # another host that has the weights, "" where they are here or gone
    trials: Path
    remark: str = ""  # what a person should know about these files


def write_results(results: Results, folder: Path, command: str, artifacts: Artifacts | None = None) -> ResultFiles:
    """Regenerate all result files of a study in its folder; raises `OSError` where that cannot be.

    Weights that are not on this host are fetched from `artifacts`, where all but the model is then put too.

    The files of another store's study of this name are replaced, and `remark` says so: each can be made from its store
    again. Raises `ConfigError` where somebody else's files have these names.
    """
    make_folder(folder)
    with filelock.FileLock(folder / LOCK):  # two runs of one study may end at the same time
        remark = _take(folder, results)
        files, away = _write_results(results, folder, command, artifacts)
        make_folder(folder, **{RESULTS_OF: results.record.info.ref.key})
    if artifacts is not None and not away:
        away = _share_results(results.record.info.ref, folder, artifacts)
    return replace(files, remark="; ".join(text for text in (remark, away) if text))


def _share_results(study: StudyRef, folder: Path, artifacts: Artifacts) -> str:
    """Put the result files among the artifacts, but for the model, whose weights are there; return what kept it."""
    try:
        objects = artifacts.results(study.name, study.key)
        for name in RESULTS:
            if (folder / name).is_file():
                objects.put(name, folder / name)
    except ArtifactsError as error:
        return f"the results are not among the artifacts: {error}"
    return ""


def write_files(
    results: Results, folder: Path, made_with: str, command: Command, artifacts: Artifacts | None = None
) -> ResultFiles:
    """Write the result files of a study; raises `ResultsError`, with the command that writes them again."""
    try:
        return write_results(results, folder, made_with, artifacts)
    except OSError as error:
        raise ResultsError(
            f"the results cannot be written: {error}; nothing is lost, write them again with: "
            f"{command(['lmsearch', 'best', results.name])}"
        ) from error


def file_lines(files: ResultFiles) -> list[str]:
    """Return where the results are, and which command makes what is missing here."""
    lines = [f"  {path}" for path in (files.best_config, files.best_model, files.trials) if path is not None]
    if files.best_config is not None and files.best_model is None:
        where = f"the best model's weights are on {files.model_host}" if files.model_host else "no weights are kept"
        lines.append(f"  {where}; make them here with: lmsearch train {files.best_config}")
    return lines


def holds_results_of(folder: Path, info: StudyInfo) -> bool:
    """Whether the result files in a folder of ours are this very study's, and not another store's of its name.

    A folder of lmsearch 0.1.0 does not say whose they are, and is believed.
    """
    return is_ours(folder) and (mark_of(folder) or {}).get(RESULTS_OF, info.ref.key) == info.ref.key


def _take(folder: Path, results: Results) -> str:
    """Make the result files of a folder this study's; those of another study go first, so that none is left among them.

    A model that was evaluated on the test split is not replaced: it is set aside.
    """
    check_folder(folder)
    if not is_ours(folder):
        return ""
    key, owner = results.record.info.ref.key, (mark_of(folder) or {}).get(RESULTS_OF)
    there = [path for name in (*RESULTS, MODEL) if (path := folder / name).exists()]
    remark = ""
    if isinstance(owner, str) and KEY.fullmatch(owner) and owner != key and there:
        remark = f"{folder} had the results of another store's study {results.name}, which are replaced"
        if (kept := _set_aside(folder / MODEL)) is not None:
            remark += f"; its model, with what was found with it, is {kept}"
        for path in there:
            _remove(path)
    make_folder(folder, **{RESULTS_OF: key})  # before the first of its files is there
    return remark


def _set_aside(model: Path) -> Path | None:
    """Keep a model with what its use has left under another name; return that name, None for other models."""
    metrics = read_document(model / MODEL_METRICS) or {}
    if not is_model(model) or not any((model / name).exists() for name in OF_USE):
        return None
    key = str(metrics.get("study_key", ""))[:SHORT]
    stem = f"{model.name}.{key if key.isalnum() else 'earlier'}-trial-{int(metrics.get('trial') or 0)}"
    names = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
    kept = next(target for name in names if not (target := model.with_name(name)).exists())
    return model.rename(kept)


def _remove(path: Path) -> None:
    if is_model(path):
        remove_tree(path)
    elif path.is_file():
        path.unlink(missing_ok=True)


def _write_results(
    results: Results, folder: Path, command: str, artifacts: Artifacts | None
) -> tuple[ResultFiles, str]:
    """Return the files, and why the weights could not be looked for everywhere, "" where they could."""
    record, best = results.record, results.winner
    replace_file(folder / STUDY_FILE, record.info.spec.text_from(folder))
    replace_file(folder / TRIALS_TABLE, trials_csv(record))
    if best is None:
        return ResultFiles(best_config=None, best_model=None, model_host="", trials=folder / TRIALS_TABLE), ""
    config = best_config(results, folder, command)
    replace_file(folder / BEST_CONFIG, json_text(config, indent=2) + "\n")
    away = ""
    try:
        source = find_weights(record.info, best, folder, artifacts)
    except ArtifactsError as error:
        source, away = None, f"the best model's weights may be where nothing answers: {error}"
    model = _renew_model(record.info, best, folder, source)
    host = HostPath.parse(best.model).host
    files = ResultFiles(
        best_config=folder / BEST_CONFIG,
        best_model=model,
        model_host="" if model is not None or host == socket.gethostname() else host,
        trials=folder / TRIALS_TABLE,
    )
    return files, away


def best_config(results: Results, folder: Path, command: str) -> dict[str, Any]:
    """Return best-config.json: the winner's closed config, what it reached, and where it comes from.

    `folder` is where the file will lie: a corpus that is a path is named from there. A confirmed winner stands with
    the study's own seed and curve, so that it trains again to the same numbers; what the fresh seeds gave is beside.
    Raises `StudyError` where no trial is complete.
    """
    info, best = results.record.info, require_winner(results)
    config = info.spec.close(best.params, info.vocabulary_size)
    confirmed = results.confirmation is not None and results.confirmation.winner is not None
    return (
        stamp("config")
        | config_tables(config, folder)
        | {
            "result": {
                "source": "confirmed" if confirmed else "study",
                "study": info.ref.name,
                "study_key": info.ref.key,
                "trial": best.number,
                "perplexity": best.perplexity,
                "epoch": best.best_epoch,
                "curve": [best.curve[epoch] for epoch in sorted(best.curve)],
                "parameters": config.model.count_parameters(info.vocabulary_size),
            }
            | (confirmation_document(results.confirmation) if results.confirmation is not None and confirmed else {}),
            "provenance": {
                "corpus": {"description": info.corpus, "fingerprint": info.fingerprint},
                "versions": versions(),
                "commit": source_commit(),
                "commands": list(results.commands),
                "command": results.commands[-1] if results.commands else command,
                "written_by": command,
            },
        }
    )


def trials_csv(record: StudyRecord, trials: Sequence[TrialRecord] | None = None) -> str:
    """Return trials as a table, one row each: all of a study, or those given."""
    output = io.StringIO()
    paths = list(record.info.spec.open)
    head = TRIALS_HEAD.split(",")
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow([*head, *paths, "reason"])
    for trial in record.trials if trials is None else trials:
        cells: list[Any] = [
            trial.number,
            trial.outcome,
            trial.by,
            trial.perplexity if trial.curve else "",
            trial.best_epoch or "",
            len(trial.curve),
            trial.parameters or "",
            trial.started.isoformat() if trial.started else "",
            trial.ended.isoformat() if trial.ended else "",
        ]
        writer.writerow(map(cell, [*cells, *(trial.params.get(path, "") for path in paths), trial.reason]))
    return output.getvalue()


def require_winner(results: Results) -> TrialRecord:
    """Return the confirmed winner, else the best trial.

    Raises `StudyError` where none is complete, and for a confirmation.
    """
    results.record.info.require_search()
    if results.winner is None:
        raise StudyError(f"no trial of {results.name} is complete yet")
    return results.winner


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {"python": platform.python_version(), "lmsearch": __version__}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def source_commit() -> str | None:
    """Return the commit of lmsearch's own source tree, None where it is installed without one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    words = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        process = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError:  # git is not installed
        return None
    return process.stdout.strip() or None


def is_best_model(folder: Path, info: StudyInfo, best: TrialRecord) -> bool:
    """Whether a model's folder is that of this very study's very trial, by what stands in it."""
    metrics = read_document(folder / MODEL_METRICS)
    if metrics is None or not is_model(folder) or metrics.get("corpus") != info.fingerprint:
        return False
    if (metrics.get("trial"), metrics.get("perplexity")) != (best.number, best.perplexity):
        return False
    if "study_key" not in metrics:  # lmsearch 0.1.0 wrote the name alone
        return metrics.get("study") == info.ref.name
    return (metrics["study_key"], metrics.get("digest")) == (info.ref.key, config_digest(info, best.params))


def _renew_model(info: StudyInfo, best: TrialRecord, folder: Path, source: Path | None) -> Path | None:
    """Make best-model/ that of the best trial; where its weights are not here, no other trial's may stand there."""
    target = folder / MODEL
    check_replaceable(target)
    if source is not None:
        copy_model(info, best, source, target)
    elif not is_best_model(target, info, best) and _set_aside(target) is None:
        _remove(target)
    return target if target.is_dir() else None


def name_of_retraining(info: StudyInfo, trial: TrialRecord) -> str:
    """Return the name under which a trial whose weights are missing is trained again."""
    return f"{info.ref.key[:SHORT]}-trial-{trial.number}-{config_digest(info, trial.params)[:SHORT]}-again"


def find_weights(info: StudyInfo, best: TrialRecord, folder: Path, artifacts: Artifacts | None = None) -> Path | None:
    """Find the weights of a trial by their name: in the study's folder, in another of ours here, among the artifacts.

    They must be for the trial's values and text, and have its perplexity: a copy of the store gives its numbers again.
    Raises `ArtifactsError` where they may lie in a store that does not answer.
    """
    kept = HostPath.parse(best.model)
    name = kept.path.name
    if not WEIGHTS.fullmatch(name):
        return None
    weights = Weights.of(study_files(artifacts, info.ref.name, info.ref.key, folder))
    candidates = [folder / MODELS / name, weights.folder / name]
    if kept.host == socket.gethostname() and kept.can_be:
        candidates.append(kept.path)
    for path in candidates:
        if is_ours(path.parent) and _has_weights_of(path, info, best):
            return path
    fetched = weights.fetch(name)
    if fetched is None or _has_weights_of(fetched, info, best):
        return fetched
    remove_weights(fetched)
    return None


def _has_weights_of(folder: Path, info: StudyInfo, best: TrialRecord) -> bool:
    metrics = read_document(folder / MODEL_METRICS) if is_model(folder) else None
    if metrics is None or metrics.get("corpus") != info.fingerprint:
        return False
    if metrics.get("digest", wanted := config_digest(info, best.params)) != wanted:
        return False
    loss = metrics.get("valid_loss")
    return isinstance(loss, float) and math.isclose(perplexity(loss), best.perplexity, rel_tol=1e-9)


def copy_model(info: StudyInfo, best: TrialRecord, source: Path, target: Path) -> None:
    """Copy a trial's weights to `target`, with a config that names the corpus from there; a model there is replaced."""
    check_replaceable(target)
    kept = _found_with(target, info, best)
    with draft_folder(target) as draft:
        for name in MODEL_FILES:
            shutil.copyfile(source / name, draft / name)
        config = stamp("config") | config_tables(info.spec.close(best.params, info.vocabulary_size), target)
        replace_file(draft / MODEL_CONFIG, json_text(config, indent=2) + "\n")
        metrics = json.loads((draft / MODEL_METRICS).read_text(encoding="utf-8")) | stamp("model")
        metrics |= {"study": info.ref.name, "study_key": info.ref.key, "trial": best.number}
        metrics |= {"perplexity": best.perplexity, "digest": config_digest(info, best.params)}
        replace_file(draft / MODEL_METRICS, json_text(metrics, indent=2) + "\n")
        for name, content in kept.items():
            replace_file(draft / name, content)


def _found_with(folder: Path, info: StudyInfo, trial: TrialRecord) -> dict[str, str]:
    """Return the files that people's commands have put beside this very trial's weights, by name."""
    candidates = [folder, *sorted(folder.parent.glob(f"{folder.name}.*"))]  # beside it, what was set aside
    found = next((candidate for candidate in candidates if is_best_model(candidate, info, trial)), None)
    if found is None:
        return {}
    return {name: (found / name).read_text(encoding="utf-8") for name in OF_USE if (found / name).is_file()}
