"""The start design around a prior: where an expert would begin, and the points of an even spread beside it.

Half of a start design by the prior, half evenly: where the prior is wrong, as many trials say so (after PriorBand,
Mallik et al., NeurIPS 2023, which mixes the two by the budget).
"""

from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial

from lmsearch.config import Value
from lmsearch.search.sobol import SobolPoints, sobol_point
from lmsearch.space import Choice, OpenValue, Prior
from lmsearch.study.spec import StudySpec


class PriorPoints(SobolPoints):
    """The sampler of one ticket of the start design: the prior's own point for the first, one near it for others."""

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the ticket's point."""
        return dict(prior_point(self._spec, self._ticket))


def prior_point(spec: StudySpec, ticket: int) -> dict[str, Value]:
    """Return the point of a ticket; what the prior does not name is as in the ticket's point of the Sobol sequence."""
    rng = np.random.default_rng([spec.settings.seed, ticket])
    point = sobol_point(spec, ticket)
    for path, prior in spec.prior.items():
        point[path] = prior.at if ticket == 0 else _near(spec.open[path], prior, rng)
    return point


def _near(value: OpenValue, prior: Prior, rng: np.random.Generator) -> Value:
    if isinstance(value, Choice):
        others = [choice for choice in value.choices if choice != prior.at]
        return others[int(rng.integers(len(others)))] if others and rng.random() < prior.spread else prior.at
    middle = value.share_of(prior.at)
    while not 0 <= (share := rng.normal(middle, prior.spread)) <= 1:
        pass
    return value.from_share(float(share))
