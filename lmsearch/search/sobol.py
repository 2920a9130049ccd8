"""Points that fill a space evenly: the scrambled Sobol sequence (Sobol 1967; scrambling by Owen 1998)."""

import warnings
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from lmsearch.config import Value
from lmsearch.store.distributions import distribution
from lmsearch.study.spec import StudySpec


class SobolPoints(BaseSampler):
    """The sampler of one ticket: the point of the study's sequence that has the ticket's number.

    Optuna's QMCSampler counts its points in the store, so that two workers may draw the same one; here the ticket's
    number is the index, and nothing is shared.
    """

    def __init__(self, spec: StudySpec, ticket: int, seed: int) -> None:
        self._spec = spec
        self._ticket = ticket
        self._random = RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the whole space: a point is drawn at once."""
        return {path: distribution(value) for path, value in self._spec.open.items()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the ticket's point."""
        return dict(sobol_point(self._spec, self._ticket))

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        """Draw one value at random; the sequence has all of them, so nothing asks for it."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)


def sobol_point(spec: StudySpec, index: int) -> dict[str, Value]:
    """Return the point of a study's scrambled Sobol sequence at an index from 0, by dotted path."""
    import scipy.stats.qmc  # half a second, which only this sampler needs

    if not spec.open:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the number of points is no power of two
        engine = scipy.stats.qmc.Sobol(len(spec.open), scramble=True, seed=spec.settings.seed)
        if index:
            engine.fast_forward(index)
        shares = engine.random(1)[0]
    return {path: spec.open[path].from_share(float(share)) for path, share in zip(spec.open, shares, strict=True)}
