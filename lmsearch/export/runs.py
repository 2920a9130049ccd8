"""A study's ended trials as experiment trackers keep runs: with parameters, metrics by epoch, and tags."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmsearch.config import Value
from lmsearch.results.reading import Results
from lmsearch.store.records import TrialRecord

Exporter = Callable[["Exported", str], int]
"""Write a study to a target, and return how many of its trials were not there before."""


@dataclass(frozen=True, kw_only=True)
class RunEpoch:
    """What one epoch gave."""

    epoch: int
    time: float  # its end, in seconds since 1970, without pauses between epochs
    metrics: dict[str, float]  # finite numbers only


@dataclass(frozen=True, kw_only=True)
class Run:
    """One ended trial."""

    key: str  # the same whenever the trial is exported, and no other trial's
    name: str
    outcome: str
    params: dict[str, Value]  # the searched values
    metrics: dict[str, float]  # perplexity, best_epoch, known_perplexity, parameters
    tags: dict[str, str]
    started: float
    ended: float
    epochs: tuple[RunEpoch, ...]
    is_best: bool

    @property
    def summary(self) -> dict[str, float]:
        """Return its metrics under names that no metric by epoch has."""
        return {f"best_{name}" if name == "perplexity" else name: value for name, value in self.metrics.items()}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A study as it is exported."""

    name: str
    runs: tuple[Run, ...]
    fixed: dict[str, Value]  # the settings that the study file gives and does not search
    model: Path | None = None  # the best trial's model, where it is here
    results: Results = field(repr=False)


def exported(results: Results, model: Path | None) -> Exported:
    """Return a study's ended trials as runs."""
    info, winner = results.record.info, results.winner
    key = info.ref.key or info.ref.name
    runs = tuple(
        _run(trial, f"{key}-{trial.number}", is_best=winner is not None and trial.number == winner.number)
        for trial in results.record.trials
        if not trial.is_open
    )
    return Exported(name=results.name, runs=runs, fixed=dict(info.spec.fixed), model=model, results=results)


def _run(trial: TrialRecord, key: str, is_best: bool) -> Run:
    started = trial.started.timestamp() if trial.started else 0.0
    metrics = {
        "perplexity": trial.perplexity,
        "best_epoch": trial.best_epoch,
        "known_perplexity": trial.known_perplexity,
        "parameters": trial.parameters,
    }
    tags = {"outcome": trial.outcome, "sampler": trial.by, "reason": trial.reason, "from": trial.origin_trial}
    return Run(
        key=key,
        name=f"trial-{trial.number:04}",
        outcome=trial.outcome,
        params=dict(trial.params),
        metrics=_finite(metrics),
        tags={name: text for name, text in tags.items() if text},
        started=started,
        ended=trial.ended.timestamp() if trial.ended else started,
        epochs=tuple(_epochs(trial, started)),
        is_best=is_best,
    )


def _epochs(trial: TrialRecord, time: float) -> Iterator[RunEpoch]:
    rows = {row.epoch: row for row in trial.epochs}
    for epoch in sorted(rows.keys() | trial.curve.keys()):
        metrics: dict[str, Any] = {"perplexity": trial.curve.get(epoch)}
        if (row := rows.get(epoch)) is not None:
            time += row.seconds
            names = ("train_loss", "valid_loss", "learning_rate", "seconds", "tokens")
            metrics |= {name: getattr(row, name) for name in names}
        yield RunEpoch(epoch=epoch, time=time, metrics=_finite(metrics))


def _finite(values: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
