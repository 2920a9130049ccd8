"""The samplers and pruners a study may name."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from lmsearch.config import Value
from lmsearch.search.forecasting import ForecastSampler
from lmsearch.search.fresh import FreshPoints, draws_fresh_points
from lmsearch.search.prior import PriorPoints
from lmsearch.search.sobol import SobolPoints
from lmsearch.space import Choice, OpenValue
from lmsearch.study.options import MEDIAN_STARTUP, asha_factor, asha_rung, median_warmup, startup_trials
from lmsearch.study.spec import StudySpec

Options = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a sampler is built from: the study, the file's options, the ticket and a seed of its own."""

    spec: StudySpec
    options: Options
    ticket: int
    seed: int


def _random(asked: Asked) -> BaseSampler:
    return RandomSampler(seed=asked.seed)


def _qmc(asked: Asked) -> BaseSampler:
    return SobolPoints(asked.spec, asked.ticket, asked.seed)


def _tpe(asked: Asked) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        startup = {"n_startup_trials": startup_trials("tpe", asked.options)}
        return TPESampler(**(dict(asked.options) | startup), seed=asked.seed)


def _gp(asked: Asked) -> BaseSampler:
    return ForecastSampler(asked.spec, asked.ticket, asked.seed, startup_trials("gp", asked.options))


SAMPLERS: dict[str, Callable[[Asked], BaseSampler]] = {
    # What a person or the grid leaves open is drawn at random.
    "manual": _random,
    "grid": _random,
    "qmc": _qmc,
    "random": _random,
    "tpe": _tpe,
    "gp": _gp,
}


def _median(options: Options, epochs: int) -> BasePruner:
    # Optuna's warm-up is the first step that may prune; our steps are epochs, from 1.
    defaults = {"n_startup_trials": MEDIAN_STARTUP, "n_warmup_steps": median_warmup(epochs)}
    return MedianPruner(**(defaults | dict(options)))


def _asha(options: Options, epochs: int) -> BasePruner:
    defaults = {"min_resource": asha_rung(epochs), "reduction_factor": asha_factor(options)}
    given = {name: value for name, value in options.items() if name != "promote"}  # search/allocation.py has that
    return SuccessiveHalvingPruner(**(defaults | given))


def _hyperband(options: Options, epochs: int) -> BasePruner:
    defaults = {"min_resource": 1, "max_resource": epochs, "reduction_factor": 3}
    return HyperbandPruner(**(defaults | dict(options)))


def _none(options: Options, epochs: int) -> BasePruner:
    return NopPruner()


PRUNERS: dict[str, Callable[[Options, int], BasePruner]] = {
    "median": _median,
    "asha": _asha,
    "hyperband": _hyperband,
    "none": _none,
    "thaw": _none,  # trials pause instead: search/allocation.py
}


def make_sampler(spec: StudySpec, name: str, ticket: int, fixed: Mapping[str, Value] | None = None) -> BaseSampler:
    """Build the sampler for one ticket, seeded by study and ticket: equal trials with one worker.

    Where the space is small and nothing is `fixed` for the ticket, no point is proposed twice while others are left.
    """
    seed = int(np.random.SeedSequence([spec.settings.seed, ticket]).generate_state(1)[0])
    if spec.starts_from_prior(name, ticket):
        return PriorPoints(spec, ticket, seed)
    sampler = SAMPLERS[name](Asked(spec=spec, options=spec.options_of(name), ticket=ticket, seed=seed))
    return FreshPoints(sampler, spec, seed) if not fixed and draws_fresh_points(spec) else sampler


def make_pruner(spec: StudySpec, name: str) -> BasePruner:
    """Build a pruner, with the file's options where it is the one that the file names."""
    options = spec.pruner_options if name == spec.settings.pruner else {}
    return PRUNERS[name](options, spec.epochs)


def suggest(trial: optuna.Trial, spec: StudySpec) -> dict[str, Value]:
    """Draw every open value of the study, in the order of the settings."""
    return {path: _suggest(trial, path, value) for path, value in spec.open.items()}


def _suggest(trial: optuna.Trial, path: str, value: OpenValue) -> Value:
    if isinstance(value, Choice):
        return cast(Value, trial.suggest_categorical(path, value.choices))
    if isinstance(value.low, float):
        return trial.suggest_float(path, value.low, value.high, log=value.log, step=value.step)
    return trial.suggest_int(path, int(value.low), int(value.high), log=value.log, step=int(value.step or 1))
