"""Optimizers, and the non-monotonic trigger and averages of NT-ASGD."""

import copy
import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from lmsearch.config import TrainConfig
from lmsearch.lm.model import LanguageModel


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: TrainConfig, device: torch.device
) -> torch.optim.Optimizer:
    """Build the optimizer that the config names; NT-ASGD is SGD whose averages are kept beside it."""
    rate, decay = config.learning_rate, config.weight_decay
    fused = device.type in ("cpu", "cuda")  # one pass over the weights: a step is 5 to 10 % shorter
    match config.optimizer:
        case "adam":
            return torch.optim.Adam(parameters, lr=rate, weight_decay=decay, fused=fused)
        case "adamw":
            return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=fused)
        case _:
            return torch.optim.SGD(parameters, lr=rate, weight_decay=decay, fused=fused)


def should_average(valid_losses: Sequence[float], newest: float, nonmono: int) -> bool:
    """Whether NT-ASGD starts to average: the loss is worse than the best of all but the last `nonmono`.

    The rule of AWD-LSTM's released code, asked once an epoch before `newest` joins `valid_losses`.
    """
    return len(valid_losses) > nonmono and newest > min(valid_losses[:-nonmono])


class WeightAverage:
    """The mean of a model's weights over all steps since averaging began (Polyak and Juditsky, 1992).

    Unlike `torch.optim.ASGD`, which AWD-LSTM's code uses, the first step counts, and the learning rate of a
    step is the one set for it, not the one before.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = copy.deepcopy(model)
        self.steps = 0

    @torch.no_grad()
    def update(self, model: LanguageModel) -> None:
        """Take the weights after one more step into the mean."""
        self.steps += 1
        for mean, now in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(now, 1 / self.steps)


class PlateauRate:
    """A learning rate that is divided when validation has not improved for some epochs."""

    def __init__(self, config: TrainConfig) -> None:
        self.learning_rate = config.learning_rate
        self.stale = 0  # epochs since the last improvement or division
        self._factor = config.anneal_factor
        self._patience = config.anneal_patience

    def see(self, improved: bool) -> None:
        """Take note of one epoch's validation."""
        self.stale = 0 if improved else self.stale + 1
        if self.stale >= self._patience and self._factor > 1:
            self.learning_rate /= self._factor
            self.stale = 0


def improves(valid_losses: Sequence[float], newest: float) -> bool:
    """Whether `newest` is a new best; a loss that is not finite never is."""
    return math.isfinite(newest) and all(newest < loss for loss in valid_losses if math.isfinite(loss))
