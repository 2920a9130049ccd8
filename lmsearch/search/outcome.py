"""What the figures of an epoch mean for a trial: the one place that says so."""

import math
from collections.abc import Callable, Iterable

from lmsearch.losses import perplexity

DIVERGED = "diverged"
PRUNED = "pruned"


def diverged(valid_loss: float, vocabulary_size: int) -> bool:
    """Whether a loss (nats per token) is above that of a model that knows nothing, or is not a number."""
    return not valid_loss <= math.log(vocabulary_size)


def reported_value(valid_loss: float, vocabulary_size: int) -> float:
    """Return the perplexity that an epoch reports; the vocabulary's size where the training has diverged."""
    return float(vocabulary_size) if diverged(valid_loss, vocabulary_size) else perplexity(valid_loss)


def decide(valid_loss: float, vocabulary_size: int, epochs_left: int, should_prune: Callable[[], bool]) -> str | None:
    """Return the outcome of a trial that ends after this epoch; None where it continues, or is complete.

    After its last epoch there is nothing to save by pruning it, and its value would be lost.
    """
    if diverged(valid_loss, vocabulary_size):
        return DIVERGED
    return PRUNED if epochs_left > 0 and should_prune() else None


def final_value(valid_losses: Iterable[float]) -> float:
    """Return the value of a complete trial: its lowest perplexity."""
    return perplexity(min(valid_losses))
