"""The continuous cache: what followed earlier in a text at positions like this (Grave et al. 2017, arXiv 1612.04426).

The probability of a word is `weight` times the share of attention on earlier positions that it followed, and for the
rest the model's own. Attention on the last `window` positions is softmax(theta * h_t . h_i), of raw outputs
of the last layer.

Shapes: N predictions of a text, H features, V vocabulary.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmsearch.lm.use.trained import TrainedModel

_BLOCK = 256  # predictions whose attention is held at once
_READ = 512  # words that are run through the LSTM at once


@dataclass(frozen=True, kw_only=True)
class CacheConstants:
    """The three numbers of a cache."""

    window: int  # positions that it looks back
    theta: float  # how sharply it looks at the most similar ones
    weight: float  # lambda in the paper: its share of the mixture

    def as_dict(self) -> dict[str, float]:
        """Return the constants by name."""
        return asdict(self)


@dataclass(frozen=True)
class ReadText:
    """A text of N + 1 tokens, read once by a model."""

    features_NH: Tensor
    targets_N: Tensor  # the word that follows each position
    losses_N: Tensor  # the model's own loss at it, in nats, in double precision


@torch.no_grad()
def read_text(trained: TrainedModel, tokens: npt.NDArray[np.int32]) -> ReadText:
    """Run a model over a text and keep what the cache needs, on the model's device."""
    model = trained.model.eval()
    tokens_N = torch.from_numpy(tokens.astype(np.int64)).to(trained.device)
    states = model.initial_states(1)
    features, losses = [], []
    for start in range(0, len(tokens_N) - 1, _READ):
        block = tokens_N[start : start + _READ + 1][:, None]
        found = model.features(block[:-1], states)
        states = found.states
        features.append(found.raw_TBH[:, 0])
        losses.append(model.losses(found.raw_TBH, block[1:])[:, 0].double())
    return ReadText(torch.cat(features), tokens_N[1:], torch.cat(losses))


@torch.no_grad()
def cache_probabilities(text: ReadText, window: int, theta: float) -> Tensor:
    """Return the cache's probability of each next word, of shape (N,); the first position has nothing behind it: 0."""
    found = []
    for start in range(0, len(text.targets_N), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(text.targets_N)))
        attention, first = _attention(text, rows, window, theta)
        same = text.targets_N[first : rows.stop][None, :] == text.targets_N[rows][:, None]
        found.append((attention * same).sum(1))
    return torch.cat(found)


def _attention(text: ReadText, rows: slice, window: int, theta: float) -> tuple[Tensor, int]:
    """Return the attention of positions on those behind them, and the first of these; zeros where there are none."""
    first = max(0, rows.start - window)
    scores = theta * text.features_NH[rows] @ text.features_NH[first : rows.stop].t()
    positions = torch.arange(rows.start, rows.stop, device=scores.device)[:, None]
    behind = torch.arange(first, rows.stop, device=scores.device)[None, :]
    scores = scores.masked_fill((behind >= positions) | (behind < positions - window), -torch.inf)
    return scores.softmax(1).nan_to_num(0.0), first


def mixed_loss(text: ReadText, cache_N: Tensor, weight: float) -> float:
    """Return the mean loss (nats) of the mixture; where nothing lies behind, the model is alone."""
    # In logarithms, since the model's own probability may be smaller than any number.
    cache = (weight * cache_N.double()).log()
    mixed = torch.logaddexp(cache, math.log1p(-weight) - text.losses_N)
    return float(torch.where(_has_past(text), -mixed, text.losses_N).mean())


def best_weight(text: ReadText, cache_N: Tensor) -> float:
    """Return the weight with the lowest loss: the loss is convex in it, so its slope is halved down to its zero."""
    past = _has_past(text)
    cache, own = cache_N[past].double(), text.losses_N[past].neg().exp().clamp_min(1e-300)
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        slope = -((cache - own) / (middle * cache + (1 - middle) * own)).mean()
        low, high = (middle, high) if slope < 0 else (low, middle)
    return low


def _has_past(text: ReadText) -> Tensor:
    return torch.arange(len(text.targets_N), device=text.targets_N.device) > 0


@torch.no_grad()
def next_word_with_cache(trained: TrainedModel, text: ReadText, position: int, constants: CacheConstants) -> Tensor:
    """Return the mixture's probability of every word at one position of a text, of shape (V,)."""
    own: Tensor = trained.model.decoder(text.features_NH[position]).softmax(0)
    if position == 0:
        return own
    attention, first = _attention(text, slice(position, position + 1), constants.window, constants.theta)
    cache = torch.zeros_like(own).index_add_(0, text.targets_N[first : position + 1], attention[0])
    return constants.weight * cache + (1 - constants.weight) * own


def losses_with(constants: CacheConstants, text: ReadText) -> tuple[float, float]:
    """Return the mean loss of a text in nats per token with a cache, and without."""
    cache = cache_probabilities(text, constants.window, constants.theta)
    return mixed_loss(text, cache, constants.weight), float(text.losses_N.mean())
