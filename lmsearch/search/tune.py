"""Constants of a model in use, found on a validation text by a small Optuna study: the cache, dynamic evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.samplers import TPESampler

from lmsearch.errors import ConfigError
from lmsearch.lm.use.cache import CacheConstants, ReadText, best_weight, cache_probabilities, mixed_loss
from lmsearch.lm.use.dynamic import DynamicConstants
from lmsearch.losses import perplexity

_THETAS = (1e-2, 10.0)
_SHORTEST = 20  # positions
_LONGEST = 4_000
_RATES = (1e-5, 3e-2)  # of dynamic evaluation
_DECAYS = (1e-4, 3e-1)

Tell = Callable[[int, float], None]
"""Hears of each trial: its number from 1, and its loss."""


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What was found: the constants, and the loss with and without the cache (nats)."""

    constants: CacheConstants
    loss: float
    loss_without: float
    trials: int

    def document(self) -> dict[str, Any]:
        """Return it as plain values."""
        valid = {"perplexity": perplexity(self.loss), "perplexity_without": perplexity(self.loss_without)}
        return {"constants": self.constants.as_dict(), "valid": valid}


def tune(text: ReadText, trials: int, seed: int, tell: Tell) -> Tuned:
    """Search window and theta by TPE; the weight is solved for each pair, since the loss is convex in it."""
    longest = max(_SHORTEST + 1, min(_LONGEST, len(text.targets_N) - 1))

    def objective(trial: optuna.Trial) -> float:
        window = trial.suggest_int("window", _SHORTEST, longest, log=True)
        cache = cache_probabilities(text, window, trial.suggest_float("theta", *_THETAS, log=True))
        weight = best_weight(text, cache)
        trial.set_user_attr("weight", weight)
        return mixed_loss(text, cache, weight)

    best = _search(objective, trials, seed, tell)
    constants = CacheConstants(
        window=best.params["window"], theta=best.params["theta"], weight=best.user_attrs["weight"]
    )
    assert best.value is not None
    without = float(text.losses_N.mean())
    return Tuned(constants=constants, loss=best.value, loss_without=without, trials=trials)


def tune_dynamic(
    loss_with: Callable[[DynamicConstants], float], segment: int, trials: int, seed: int, tell: Tell
) -> DynamicConstants:
    """Search learning rate and decay of dynamic evaluation by TPE; `loss_with` evaluates a text with the constants."""

    def constants(params: dict[str, Any]) -> DynamicConstants:
        return DynamicConstants(learning_rate=params["learning_rate"], decay=params["decay"], segment=segment)

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_float("learning_rate", *_RATES, log=True)
        trial.suggest_float("decay", *_DECAYS, log=True)
        return loss_with(constants(trial.params))

    return constants(_search(objective, trials, seed, tell).params)


def _search(objective: Callable[[optuna.Trial], float], trials: int, seed: int, tell: Tell) -> optuna.trial.FrozenTrial:
    """Minimise, and return the best trial. Raises `ConfigError` where none has a loss that is a number."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=TPESampler(seed=seed, n_startup_trials=max(4, trials // 3), multivariate=True))

    def told(trial: optuna.Trial) -> float:
        loss = objective(trial)
        tell(trial.number + 1, loss)
        return loss

    study.optimize(told, n_trials=trials)
    if not study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)):
        raise ConfigError("the model gives no probabilities for this text: its weights are too large to compute with")
    return study.best_trial
