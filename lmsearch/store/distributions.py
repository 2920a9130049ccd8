"""Open values as Optuna knows them."""

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lmsearch.errors import ConfigError
from lmsearch.space import Choice, FloatRange, IntRange, OpenValue


def distribution(value: OpenValue) -> BaseDistribution:
    """Return an open value as Optuna knows it."""
    if isinstance(value, Choice):
        return CategoricalDistribution(value.choices)
    if isinstance(value.low, float):
        return FloatDistribution(value.low, value.high, log=value.log, step=value.step)
    return IntDistribution(int(value.low), int(value.high), log=value.log, step=int(value.step or 1))


def open_value(space: BaseDistribution) -> OpenValue | None:
    """Return another program's distribution as an open value; None where it leaves nothing open, or has no order."""
    try:
        match space:
            case CategoricalDistribution():
                return Choice(choices=tuple(one for one in space.choices if one is not None))
            case FloatDistribution():
                return FloatRange(low=space.low, high=space.high, log=space.log, step=space.step)
            case IntDistribution():
                return IntRange(low=space.low, high=space.high, log=space.log, step=space.step)
    except (ConfigError, TypeError):
        return None
    return None
