"""The files of a search's results: best-config.json, best-model/, trials.csv and the study file as run."""

import contextlib
import csv
import importlib.metadata
import io
import json
import os
import platform
import shutil
import socket
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from lmsearch.config import BUILT_IN_CORPORA, RunConfig
from lmsearch.errors import StudyError
from lmsearch.files import LOOKS, POINTER, replace_file
from lmsearch.results.reading import Confirmation, Results
from lmsearch.results.statistics import Interval
from lmsearch.store.records import StudyInfo, StudyRecord, TrialRecord

_PACKAGES = ("lmsearch", "torch", "numpy", "optuna", "sqlalchemy")


@dataclass(frozen=True, kw_only=True)
class ResultFiles:
    """Where the results of a study lie; `best_model` is None where the weights are not on this host."""

    best_config: Path | None
    best_model: Path | None
    model_host: str  # another host that has the weights, "" where they are here or gone
    trials: Path


def write_results(results: Results, folder: Path, command: str) -> ResultFiles:
    """Write all result files of a study anew into its folder; raises `OSError` where that cannot be."""
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / ".results.lock"):  # two runs of one study may end at the same time
        return _write_results(results, folder, command)


def _write_results(results: Results, folder: Path, command: str) -> ResultFiles:
    record, best = results.record, results.winner
    replace_file(folder / "study.toml", record.info.spec.text_from(folder))
    replace_file(folder / "trials.csv", trials_csv(record))
    if best is None:
        return ResultFiles(best_config=None, best_model=None, model_host="", trials=folder / "trials.csv")
    config = best_config(results, folder, command)
    replace_file(folder / "best-config.json", json.dumps(config, indent=2) + "\n")
    host, _, _ = best.model.partition(":")
    return ResultFiles(
        best_config=folder / "best-config.json",
        best_model=_copy_model(record.info, best, folder / "best-model"),
        model_host="" if host == socket.gethostname() else host,
        trials=folder / "trials.csv",
    )


def best_config(results: Results, folder: Path, command: str) -> dict[str, Any]:
    """Give best-config.json: the winner's closed config, what it reached, and where it comes from.

    `folder` is where the file will lie: a corpus that is a path is named from there. A confirmed winner stands with
    the study's own seed and curve, so that it trains again to the same numbers; what the fresh seeds gave is beside.
    Raises `StudyError` where no trial is complete.
    """
    info, best = results.record.info, require_winner(results)
    config = info.spec.close(best.params, info.vocabulary_size)
    confirmed = results.confirmation is not None and results.confirmation.winner is not None
    return config_tables(config, folder) | {
        "result": {
            "source": "confirmed" if confirmed else "study",
            "study": info.ref.name,
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
            "command": command,
        },
    }


def confirmation_document(confirmation: Confirmation) -> dict[str, Any]:
    """Give what the fresh seeds told of the winner, and of all others; of all leaders where there is no winner."""
    winner, comparison = confirmation.winner, confirmation.comparison
    others = confirmation.leaders if winner is None else confirmation.leaders[1:]
    differences = [*(comparison.differences if comparison else ()), *[None] * len(others)]
    return {
        "verdict": confirmation.verdict,
        "mean": None if winner is None else winner.mean,
        "interval": None if winner is None else _ends(winner.interval),
        "seeds": {} if winner is None else {str(seed): value for seed, value in winner.perplexities.items()},
        "confirmation": confirmation.name,
        "others": [
            {
                "trial": other.trial.number,
                "seeds": {str(seed): value for seed, value in other.perplexities.items()},
                "lost": {str(seed): outcome for seed, outcome in other.lost.items()},
                "difference": None if difference is None else difference.mean,
                "interval": _ends(difference),
            }
            for other, difference in zip(others, differences, strict=False)
        ],
    }


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def config_tables(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Give a config's tables for a file in `folder`, from which a corpus that is a path is named."""
    tables = config.as_tables()
    if config.data.corpus not in BUILT_IN_CORPORA:
        tables["data"]["corpus"] = os.path.relpath(config.data.corpus, folder.resolve())
    return dict(tables)


def trials_csv(record: StudyRecord) -> str:
    """Give all trials as a table, one row each."""
    output = io.StringIO()
    paths = list(record.info.spec.open)
    head = ["trial", "outcome", "by", "perplexity", "best_epoch", "epochs", "parameters", "started", "ended"]
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow([*head, *paths, "reason"])
    for trial in record.trials:
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
        writer.writerow([*cells, *(trial.params.get(path, "") for path in paths), trial.reason])
    return output.getvalue()


def require_winner(results: Results) -> TrialRecord:
    """Give the confirmed winner, else the best trial.

    Raises `StudyError` where none is complete, and for a confirmation.
    """
    results.record.info.require_search()
    if results.winner is None:
        raise StudyError(f"no trial of {results.name} is complete yet")
    return results.winner


def versions() -> dict[str, str]:
    """Give the versions that a result depends on; lmsearch itself may run from a folder that nobody installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def source_commit() -> str | None:
    """Give the commit of lmsearch's own source tree, None where it is installed without one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    words = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        asked = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError:  # git is not installed
        return None
    return asked.stdout.strip() or None


def _copy_model(info: StudyInfo, best: TrialRecord, target: Path) -> Path | None:
    host, _, place = best.model.partition(":")
    if host != socket.gethostname() or not place or not Path(place).is_dir():
        if not _is_of(target, info.ref.name, best):
            shutil.rmtree(target, ignore_errors=True)  # another trial's weights would belie best-config.json
        return target if target.is_dir() else None
    copy_model(info, best, Path(place), target)
    return target


def copy_model(info: StudyInfo, best: TrialRecord, source: Path, target: Path) -> None:
    """Copy the folder of a trial's weights to `target`, with a config that names the corpus from there."""
    kept = _found_with(target, info.ref.name, best)
    shutil.rmtree(target, ignore_errors=True)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.draft")
    shutil.copytree(source, draft)
    config = info.spec.close(best.params, info.vocabulary_size)
    replace_file(draft / "config.json", json.dumps(config_tables(config, target), indent=2) + "\n")
    metrics = json.loads((draft / "metrics.json").read_text())
    metrics |= {"study": info.ref.name, "trial": best.number, "perplexity": best.perplexity}
    replace_file(draft / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    for name, content in kept.items():
        replace_file(draft / name, content)
    draft.rename(target)


def _is_of(folder: Path, study: str, trial: TrialRecord) -> bool:
    """Tell whether a model's folder is that of this very trial."""
    try:
        metrics = json.loads((folder / "metrics.json").read_text())
    except (OSError, ValueError):
        return False
    told = (metrics.get("study"), metrics.get("trial"), metrics.get("perplexity"))
    return told == (study, trial.number, trial.perplexity)


def _found_with(folder: Path, study: str, trial: TrialRecord) -> dict[str, str]:
    """Give the files that people's commands have put beside this very trial's weights, by name."""
    if not _is_of(folder, study, trial):
        return {}
    return {name: (folder / name).read_text() for name in (LOOKS, POINTER) if (folder / name).exists()}
