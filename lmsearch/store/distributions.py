"""Open values as Optuna knows them."""

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lmsearch.space import Choice, OpenValue


def distribution(value: OpenValue) -> BaseDistribution:
    """Give an open value as Optuna knows it."""
    if isinstance(value, Choice):
        return CategoricalDistribution(value.choices)
    if isinstance(value.low, float):
        return FloatDistribution(value.low, value.high, log=value.log, step=value.step)
    return IntDistribution(int(value.low), int(value.high), log=value.log, step=int(value.step or 1))
