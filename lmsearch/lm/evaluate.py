"""Perplexity over the full vocabulary, with no token left out."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lmsearch.lm.batches import EvaluationBlocks, evaluation_blocks
from lmsearch.lm.model import LanguageModel, States


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What a model makes of a text, in nats per predicted token."""

    loss: float
    known_loss: float  # of the predictions that are not `<unk>`; NaN where there are none
    predictions: int
    known: int  # predictions that are not `<unk>`


@dataclass
class EvaluationState:
    """How far an evaluation is: the next block, the LSTM's states, and sums so far (losses in nats)."""

    block: int
    states: States
    total: Tensor
    known_total: Tensor  # without the predictions that are `<unk>`
    known: Tensor  # how many these are

    def losses(self, predictions: int) -> Losses:
        """Read the means off the device, at the end."""
        known = int(self.known)
        return Losses(
            loss=float(self.total) / predictions,
            known_loss=float(self.known_total) / known if known else float("nan"),
            predictions=predictions,
            known=known,
        )


def begin_evaluation(model: LanguageModel, blocks: EvaluationBlocks) -> EvaluationState:
    """Start an evaluation with states of zero."""
    states = model.initial_states(blocks.inputs_TB.shape[1])
    device = blocks.inputs_TB.device
    total, known_total = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(2))
    return EvaluationState(0, states, total, known_total, torch.zeros((), dtype=torch.int64, device=device))


def evaluate_blocks(
    model: LanguageModel, blocks: EvaluationBlocks, state: EvaluationState, unknown: int
) -> Iterator[EvaluationState]:
    """Continue an evaluation block by block, changing `state` and yielding it after each.

    `unknown` is the index of `<unk>`, whose predictions are left out of the known words' sums.
    """
    model.eval()
    for number in range(state.block, len(blocks)):
        inputs, targets, weights = blocks.block(number)
        with torch.no_grad():
            features = model.features(inputs, state.states)
            if number >= blocks.context_blocks:
                host = blocks.host_targets_TB[blocks.rows(number)]
                losses = model.losses(features.raw_TBH, targets, host).to(torch.float64) * weights
                known = targets != unknown
                state.total += losses.sum()
                state.known_total += torch.where(known, losses, 0.0).sum()
                state.known += (known & (weights > 0)).sum()
            state.states = features.states
            if number == blocks.context_blocks - 1:
                state.states = _first_begins(state.states)
        state.block = number + 1
        yield state


def _first_begins(states: States) -> States:
    """Return the states with those of the first column, which has nothing before it, at zero."""
    started = [(hidden.clone(), cell.clone()) for hidden, cell in states]
    for hidden, cell in started:
        hidden[..., 0, :] = 0
        cell[..., 0, :] = 0
    return started


def evaluate(
    model: LanguageModel, tokens_N: Tensor, batch_size: int, bptt: int, context: int = 0, unknown: int = -1
) -> Losses:
    """Return the mean losses over the N - 1 predictions of a text on the host.

    `unknown` is the index of `<unk>`, -1 for none. Exact in one column. Several begin, but for the first, with the
    states that the `context` tokens before them leave. The official awd-lstm-lm divides by one row too many, which
    lowers its perplexity by up to 0.06 %; this is the sum over the predictions divided by their number.
    """
    device = model.embedding.weight.device
    blocks = evaluation_blocks(tokens_N, batch_size, bptt, context, device)
    state = begin_evaluation(model, blocks)
    for _ in evaluate_blocks(model, blocks, state, unknown):
        pass
    return state.losses(blocks.predictions)
