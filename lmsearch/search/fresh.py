"""No point of a small space twice, while others are left: the same values give the same perplexity, bit for bit."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lmsearch.config import Value
from lmsearch.space import Choice, OpenValue
from lmsearch.store.distributions import distribution
from lmsearch.study.spec import StudySpec

MOST_POINTS = 10_000  # of a space that is looked through; in a larger one a repetition is rare
_DRAWS = 20  # of the sampler, before one of the points that are left is taken


class FreshPoints(BaseSampler):
    """Another sampler, asked again where it proposes a point that a trial has already."""

    def __init__(self, sampler: BaseSampler, spec: StudySpec, seed: int) -> None:
        self._sampler = sampler
        self._space = {path: distribution(value) for path, value in spec.open.items()}
        self._values = {path: values_of(value) for path, value in spec.open.items()}
        self._rng = np.random.default_rng(seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the whole space: a point is drawn at once."""
        return self._space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw a point that no trial has; where none is left, one that some have."""
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING))
        seen = {self._key(one.params) for one in trials if one.number != trial.number}
        for _ in range(_DRAWS):
            point = self._draw(study, trial)
            if self._key(point) not in seen:
                return point
        left = [values for values in itertools.product(*self._values.values()) if values not in seen]
        if not left:
            return point
        return dict(zip(self._values, left[int(self._rng.integers(len(left)))], strict=True))

    def _draw(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        related = self._sampler.infer_relative_search_space(study, trial)
        point = self._sampler.sample_relative(study, trial, related)
        return {
            path: point[path] if path in point else self._sampler.sample_independent(study, trial, path, space)
            for path, space in self._space.items()
        }

    def _key(self, params: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(_exact(params.get(path), values) for path, values in self._values.items())

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        """Draw one value, as the other sampler does."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Tell the other sampler."""
        self._sampler.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Tell the other sampler."""
        self._sampler.after_trial(study, trial, state, values)


def values_of(value: OpenValue) -> tuple[Value, ...]:
    """List the values of a choice, of a range of whole numbers, or of a range with steps."""
    if isinstance(value, Choice):
        return value.choices
    count = value.count()
    assert count is not None and value.step is not None
    return tuple(value.low + number * value.step for number in range(count))


def _exact(value: Any, values: tuple[Value, ...]) -> Any:
    """Return the value of the list that this is, which steps of 0.1 may miss by a rounding."""
    if not isinstance(value, float):
        return value
    return min((one for one in values if isinstance(one, float)), key=lambda one: abs(one - value), default=value)


def draws_fresh_points(spec: StudySpec) -> bool:
    """Whether a space is small enough for repetitions to matter."""
    points = spec.count_points()
    return points is not None and 0 < points <= MOST_POINTS
