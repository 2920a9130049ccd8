"""The constants of the continuous cache, found on a validation text by a small Optuna study."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.samplers import TPESampler

from lmsearch.errors import ConfigError
from lmsearch.lm.use.cache import CacheConstants, ReadText, best_weight, cache_probabilities, mixed_loss
from lmsearch.losses import perplexity

_THETAS = (1e-2, 10.0)
_SHORTEST = 20  # positions
_LONGEST = 4_000


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


def tune(text: ReadText, trials: int, seed: int, tell: Callable[[int, float], None]) -> Tuned:
    """Search window and theta by TPE; the weight is solved for each pair, since the loss is convex in it."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=TPESampler(seed=seed, n_startup_trials=max(4, trials // 3), multivariate=True))
    longest = max(_SHORTEST + 1, min(_LONGEST, len(text.targets_N) - 1))

    def objective(trial: optuna.Trial) -> float:
        window = trial.suggest_int("window", _SHORTEST, longest, log=True)
        cache = cache_probabilities(text, window, trial.suggest_float("theta", *_THETAS, log=True))
        weight = best_weight(text, cache)
        trial.set_user_attr("weight", weight)
        loss = mixed_loss(text, cache, weight)
        tell(trial.number + 1, loss)
        return loss

    study.optimize(objective, n_trials=trials)
    if not study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)):
        raise ConfigError("the model gives no probabilities for this text: its weights are too large to compute with")
    best = study.best_trial
    constants = CacheConstants(
        window=best.params["window"], theta=best.params["theta"], weight=best.user_attrs["weight"]
    )
    without = float(text.losses_N.mean())
    return Tuned(constants=constants, loss=study.best_value, loss_without=without, trials=trials)
