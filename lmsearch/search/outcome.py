"""What the figures of an epoch mean for a trial: the one place that says so."""

import math
from collections.abc import Callable, Iterable

from lmsearch.losses import perplexity

DIVERGED = "diverged"
PRUNED = "pruned"
COMPLETE = "complete"
PAUSED = "paused"  # not an end: the trial is saved, and continues when its forecast is the best to train


def diverged(valid_loss: float, vocabulary_size: int) -> bool:
    """Whether a loss (nats per token) is above that of a model that knows nothing, or is not a number."""
    return not valid_loss <= math.log(vocabulary_size)


def reported_value(valid_loss: float, vocabulary_size: int) -> float:
    """Return the perplexity that an epoch reports; the vocabulary's size where the training has diverged."""
    return float(vocabulary_size) if diverged(valid_loss, vocabulary_size) else perplexity(valid_loss)


def decide(valid_loss: float, vocabulary_size: int, epochs_left: int, judge: Callable[[], str | None]) -> str | None:
    """Return what becomes of a trial after an epoch: an outcome, `PAUSED`, or None where it continues.

    After its last epoch there is nothing to save by ending it, and its value would be lost: before that `judge`, the
    pruner's, says what it is.
    """
    if diverged(valid_loss, vocabulary_size):
        return DIVERGED
    return judge() if epochs_left > 0 else None


def final_value(valid_losses: Iterable[float]) -> float:
    """Return the value of a complete trial: its lowest perplexity."""
    return perplexity(min(valid_losses))
