"""The optimizers, and the non-monotonic trigger and averages of NT-ASGD."""

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from lmsearch.config import TrainConfig
from lmsearch.lm.model import LanguageModel


class Optimizer:
    """Adam, AdamW or SGD, as the config names it; NT-ASGD is SGD whose averages are kept beside it.

    The arithmetic is that of PyTorch's own functions, and what Adam keeps has the names of `torch.optim.Adam`'s state,
    so that steps and checkpoints are the same bit for bit. Its classes are not used, because they load PyTorch's
    compiler when the first one is made: seconds and memory of every worker, for nothing that is needed here.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], config: TrainConfig, device: torch.device) -> None:
        self.learning_rate = config.learning_rate
        self.slots: dict[int, dict[str, Tensor]] = {}  # what Adam keeps of each parameter, by its number
        self._parameters = list(parameters)
        self._config = config
        self._fused = device.type in ("cpu", "cuda")  # one pass over the weights: a step is 5 to 10 % shorter

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Change each parameter that has a gradient."""
        given = [(n, p, p.grad) for n, p in enumerate(self._parameters) if p.grad is not None]
        parameters: list[Tensor] = [parameter for _, parameter, _ in given]
        gradients: list[Tensor] = [gradient for _, _, gradient in given]
        common: dict[str, Any] = {
            "lr": self.learning_rate,
            "weight_decay": self._config.weight_decay,
            "maximize": False,
            "fused": self._fused,
        }
        if self._config.optimizer not in ("adam", "adamw"):
            none: list[Tensor | None] = [None] * len(given)
            sgd(parameters, gradients, none, momentum=0.0, dampening=0.0, nesterov=False, **common)
            return
        slots = [self._slots(number, parameter) for number, parameter, _ in given]
        adam(
            parameters,
            gradients,
            [slot["exp_avg"] for slot in slots],
            [slot["exp_avg_sq"] for slot in slots],
            [],
            [slot["step"] for slot in slots],
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            decoupled_weight_decay=self._config.optimizer == "adamw",
            **common,
        )

    def restore(self, slots: dict[int, dict[str, Tensor]]) -> None:
        """Take what a saved optimizer kept. Raises `RuntimeError` where it does not fit the parameters."""
        self.slots = {}
        for number, saved in slots.items():
            if number >= len(self._parameters):
                raise RuntimeError(f"there is no parameter {number}")
            own = self._slots(number, self._parameters[number])
            for name, tensor in saved.items():
                own[name].copy_(tensor)

    def _slots(self, number: int, parameter: nn.Parameter) -> dict[str, Tensor]:
        if number not in self.slots:
            self.slots[number] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device if self._fused else "cpu"),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }
        return self.slots[number]


def should_average(valid_losses: Sequence[float], newest: float, nonmono: int) -> bool:
    """Whether NT-ASGD starts to average: the loss is worse than the best of all but the last `nonmono`.

    The rule of AWD-LSTM's released code, asked once an epoch before `newest` joins `valid_losses`.
    """
    return len(valid_losses) > nonmono and newest > min(valid_losses[:-nonmono])


class WeightAverage:
    """The mean of a model's weights over all steps since averaging began (Polyak and Juditsky, 1992).

    Unlike `torch.optim.ASGD`, which AWD-LSTM's code uses, the first step counts, and the learning rate of a
    step is the one set for it, not the one before. With a `decay` it is an exponential moving average, in which the
    newest weights count for 1 - decay; at first for more, as in a mean, so that it does not begin with random weights.
    """

    def __init__(self, model: LanguageModel, decay: float = 0.0) -> None:
        self.model = copy.deepcopy(model)
        self.steps = 0
        self._newest = 1 - decay if decay else 0.0  # the least share of the newest weights

    @torch.no_grad()
    def update(self, model: LanguageModel) -> None:
        """Take the weights after one more step into the mean."""
        self.steps += 1
        for mean, now in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(now, max(self._newest, 1 / self.steps))


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


def scheduled(config: TrainConfig, epochs: float) -> float:
    """Return what the learning rate is multiplied by after so many epochs of training, parts of one included."""
    share = min(1.0, epochs / config.warmup_epochs) if config.warmup_epochs else 1.0
    if config.schedule == "cosine":
        share *= (1 + math.cos(math.pi * min(1.0, epochs / config.epochs))) / 2
    return share


def improves(valid_losses: Sequence[float], newest: float) -> bool:
    """Whether `newest` is a new best; a loss that is not finite never is."""
    return math.isfinite(newest) and all(newest < loss for loss in valid_losses if math.isfinite(loss))
