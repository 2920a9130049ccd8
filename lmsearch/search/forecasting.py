"""A sampler that learns from what every trial will reach: complete, pruned, paused or running."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from lmsearch.config import Value
from lmsearch.curves.forecast import Floats, forecast
from lmsearch.search.allocation import curve_of
from lmsearch.search.gaussian import propose
from lmsearch.search.outcome import DIVERGED
from lmsearch.search.sobol import SobolPoints
from lmsearch.study.spec import StudySpec

_EVENLY = 16  # one proposal of so many is of the Sobol sequence all the same


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of the trials: values to be reached (log perplexity) with their uncertainty, and open ones."""

    points: Sequence[Mapping[str, Any]]
    values_N: Floats
    deviations_N: Floats
    running: Sequence[Mapping[str, Any]]  # without an epoch


class ForecastSampler(SobolPoints):
    """The sampler of one ticket. Its first points, and some later ones, are of the Sobol sequence."""

    def __init__(self, spec: StudySpec, ticket: int, seed: int, startup: int, own: bool = True) -> None:
        super().__init__(spec, ticket, seed)
        self._seed, self._startup, self._own = seed, max(startup, 2), own

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the point that promises most."""
        if not self._spec.open or self._ticket % _EVENLY == _EVENLY - 1:
            return super().sample_relative(study, trial, search_space)
        known = known_of(study.get_trials(deepcopy=False), self._spec, trial.number)
        if len(known.points) < self._startup:
            return super().sample_relative(study, trial, search_space)
        if self._own:
            rng = np.random.default_rng(self._seed)
            return dict(propose(self._spec, known.points, known.values_N, known.deviations_N, known.running, rng))
        return dict(_ask_optunas(known, search_space, self._seed))


def known_of(trials: Sequence[FrozenTrial], spec: StudySpec, without: int) -> Known:
    """Return what the trials of a study tell, but for one of them."""
    begun = [one for one in trials if one.number != without and all(path in one.params for path in spec.open)]
    curves = [curve_of(one) for one in begun]
    known = [place for place, curve in enumerate(curves) if curve]
    running = [
        one.params for one, curve in zip(begun, curves, strict=True) if not curve and not one.state.is_finished()
    ]
    if not known:
        return Known(points=[], values_N=np.zeros(0), deviations_N=np.zeros(0), running=running)
    complete = [begun[place].state == TrialState.COMPLETE for place in known]
    found = forecast([curves[place] for place in known], spec.epochs, complete)
    values_N, deviations_N = found.mean_N.copy(), found.deviation_N.copy()
    lost = np.array([begun[place].user_attrs.get("reason") == DIVERGED for place in known])
    if lost.any() and not lost.all():  # as bad as the worst of the others
        values_N[lost], deviations_N[lost] = values_N[~lost].max(), 0.0
    return Known(
        points=[begun[place].params for place in known], values_N=values_N, deviations_N=deviations_N, running=running
    )


def _ask_optunas(known: Known, space: dict[str, BaseDistribution], seed: int) -> dict[str, Value]:
    """Ask Optuna's GPSampler in a study in which every forecast is a finished trial."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=1)
    shadow = optuna.create_study(sampler=sampler)
    highest = float(np.median(known.values_N) + 3 * np.std(known.values_N))
    for point, value in zip(known.points, known.values_N, strict=True):
        shadow.add_trial(create_trial(params=dict(point), distributions=space, value=min(float(value), highest)))
    for point in known.running:
        shadow.add_trial(create_trial(state=TrialState.RUNNING, params=dict(point), distributions=space))
    return shadow.ask(space).params
