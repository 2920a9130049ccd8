"""Layers and their dropout: the three forms that AWD-LSTM uses and that of the state, each drawn from a generator.

Shapes: T time, B batch, I inputs, H features, V vocabulary. The generator is None only on the `meta` device.
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


class MogrifierLSTM(nn.LSTM):
    """An LSTM layer whose input and hidden state gate each other in rounds before each step.

    Melis, Kočiský and Blunsom, Mogrifier LSTM (ICLR 2020, arXiv 1909.01792), equations 1 and 2: in round i the input
    (i odd) is multiplied by 2 sigmoid(Q_i h), the state (i even) by 2 sigmoid(R_i x). Of a rank k > 0 each matrix is
    the product of two.
    """

    def __init__(self, inputs: int, size: int, rounds: int, rank: int) -> None:
        super().__init__(inputs, size)
        ends = [(size, inputs) if number % 2 == 0 else (inputs, size) for number in range(rounds)]
        self.rounds = nn.ModuleList(_matrix(read, written, rank, size**-0.5) for read, written in ends)

    def mogrify(self, x_BI: Tensor, hidden_BH: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input and the hidden state after all rounds."""
        for number, matrix in enumerate(self.rounds):
            if number % 2 == 0:
                x_BI = 2 * matrix(hidden_BH).sigmoid() * x_BI
            else:
                hidden_BH = 2 * matrix(x_BI).sigmoid() * hidden_BH
        return x_BI, hidden_BH


def _matrix(read: int, written: int, rank: int, bound: float) -> nn.Sequential:
    sizes = [(read, written)] if rank == 0 else [(read, rank), (rank, written)]
    layers = [nn.Linear(*size, bias=False) for size in sizes]
    for layer in layers:
        nn.init.uniform_(layer.weight, -bound, bound)
    return nn.Sequential(*layers)


def run_lstm(
    lstm: nn.LSTM,
    x_TBI: Tensor,
    state: LstmState,
    weight_rate: float,
    state_mask: Tensor | None,
    generator: Generator,
    keep_TB1: Tensor | None = None,
) -> tuple[Tensor, LstmState]:
    """Run one LSTM layer with DropConnect on its hidden-to-hidden matrix (Wan et al., 2013; AWD-LSTM).

    One mask serves all time steps; the gradient reaches the raw matrix through the mask. `state_mask` multiplies the
    hidden state before each step: (1, B, H) for one mask, or (T, B, H). Before a step at which `keep_TB1` is 0, hidden
    state and cell are forgotten.
    """
    raw = lstm.get_parameter("weight_hh_l0")
    dropped: Tensor = raw
    if weight_rate:
        dropped = raw * dropout_mask(tuple(raw.shape), weight_rate, raw, generator)
    if isinstance(lstm, MogrifierLSTM) or state_mask is not None or keep_TB1 is not None:
        return _step_by_step(lstm, dropped, x_TBI, state, state_mask, keep_TB1)
    if not weight_rate:
        return cast(tuple[Tensor, LstmState], lstm(x_TBI, state))
    return cast(tuple[Tensor, LstmState], functional_call(lstm, {"weight_hh_l0": dropped}, (x_TBI, state)))


def _step_by_step(
    lstm: nn.LSTM,
    weight_hh: Tensor,
    x_TBI: Tensor,
    state: LstmState,
    state_mask: Tensor | None,
    keep_TB1: Tensor | None,
) -> tuple[Tensor, LstmState]:
    """Run a layer one time step after another, which PyTorch's own kernels cannot where steps are not theirs."""
    weight_ih = lstm.get_parameter("weight_ih_l0")
    bias = lstm.get_parameter("bias_ih_l0") + lstm.get_parameter("bias_hh_l0")
    hidden, cell = state[0][0], state[1][0]
    given = isinstance(lstm, MogrifierLSTM)
    from_inputs = None if given else nn.functional.linear(x_TBI, weight_ih, bias)  # of all steps at once
    outputs = []
    for time in range(len(x_TBI)):
        if keep_TB1 is not None:
            hidden, cell = hidden * keep_TB1[time], cell * keep_TB1[time]
        if state_mask is not None:
            hidden = hidden * state_mask[time % len(state_mask)]
        if from_inputs is not None:
            gates = from_inputs[time]
        else:
            x, hidden = cast(MogrifierLSTM, lstm).mogrify(x_TBI[time], hidden)
            gates = nn.functional.linear(x, weight_ih, bias)
        into, keep, new, out = (gates + nn.functional.linear(hidden, weight_hh)).chunk(4, -1)
        cell = keep.sigmoid() * cell + into.sigmoid() * new.tanh()
        hidden = out.sigmoid() * cell.tanh()
        outputs.append(hidden)
    return torch.stack(outputs), (hidden[None], cell[None])
