"""The sizes that meet a budget of parameters."""

import math

from lmsearch.config import RunConfig, Value
from lmsearch.errors import ConfigError


def solve_sizes(values: dict[str, Value], budget: int, vocabulary_size: int) -> RunConfig:
    """Find the hidden size (and the embedding size, where that is not given) that meets the budget best."""

    def sized(size: int) -> RunConfig:
        sizes: dict[str, Value] = {"model.hidden_size": size}
        if "model.embedding_size" not in values:
            sizes["model.embedding_size"] = size
        return RunConfig.from_paths(values | sizes)

    def parameters(size: int) -> int:
        return sized(size).model.count_parameters(vocabulary_size)

    low, high = 1, 2
    while parameters(high) < budget and high < 1 << 20:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if parameters(middle) <= budget else (low, middle)
    best = min((low, high), key=lambda size: abs(parameters(size) - budget))
    if not math.isclose(parameters(best), budget, rel_tol=0.01):
        raise ConfigError(
            f"no hidden size gives model.parameters = {budget} within 1 %: the nearest has {parameters(best)}"
            + ("" if parameters(1) != parameters(2) else "; leave model.embedding_size out, so that it is solved")
        )
    return sized(best)
