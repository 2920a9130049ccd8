"""Dropout in the three forms that AWD-LSTM uses, each with its own random generator.

Shapes: T time, B batch, H features, V vocabulary. The generator is None only on the `meta` device.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

Generator = torch.Generator | None
LstmState = tuple[Tensor, Tensor]


def dropout_mask(shape: tuple[int, ...], rate: float, like: Tensor, generator: Generator) -> Tensor:
    """Draw a mask of 0 and 1 / (1 - rate), so that what it multiplies keeps its mean."""
    mask = torch.empty(shape, device=like.device, dtype=like.dtype)
    return mask.bernoulli_(1 - rate, generator=generator).div_(1 - rate)


def dropout(x_TBH: Tensor, rate: float, locked: bool, generator: Generator) -> Tensor:
    """Drop features; locked (Gal and Ghahramani, arXiv 1512.05287) means one mask for all time steps."""
    if rate == 0:
        return x_TBH
    time, batch, features = x_TBH.shape
    return x_TBH * dropout_mask((1 if locked else time, batch, features), rate, x_TBH, generator)


def embed(tokens_TB: Tensor, weight_VH: Tensor, rate: float, generator: Generator) -> Tensor:
    """Look words up, with whole words of the vocabulary dropped at `rate` (one draw a word and call)."""
    x_TBH = nn.functional.embedding(tokens_TB, weight_VH)
    if rate == 0:
        return x_TBH
    # Masking the rows that were looked up is the same as masking the matrix, and V / (T * B) times cheaper.
    mask_V1 = dropout_mask((len(weight_VH), 1), rate, weight_VH, generator)
    return x_TBH * mask_V1[tokens_TB]


def weight_dropped_lstm(
    lstm: nn.LSTM, x_TBH: Tensor, state: LstmState, rate: float, generator: Generator
) -> tuple[Tensor, LstmState]:
    """Run one LSTM layer with DropConnect on its hidden-to-hidden matrix (Wan et al., 2013; AWD-LSTM).

    One mask serves all time steps; the gradient reaches the raw matrix through the mask.
    """
    if rate == 0:
        return cast(tuple[Tensor, LstmState], lstm(x_TBH, state))
    raw = lstm.get_parameter("weight_hh_l0")
    dropped = raw * dropout_mask(tuple(raw.shape), rate, raw, generator)
    return cast(tuple[Tensor, LstmState], functional_call(lstm, {"weight_hh_l0": dropped}, (x_TBH, state)))
