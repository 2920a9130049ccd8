"""Perplexity: exact, over the full vocabulary, with no token left out."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lmsearch.lm.batches import EvaluationBlocks, evaluation_blocks
from lmsearch.lm.model import LanguageModel, States


@dataclass
class EvaluationState:
    """How far an evaluation is: the next block, the LSTM's states, and the sum of losses so far (nats)."""

    block: int
    states: States
    total: Tensor


def begin_evaluation(model: LanguageModel, blocks: EvaluationBlocks) -> EvaluationState:
    """Begin an evaluation with states of zero."""
    states = model.initial_states(blocks.inputs_TB.shape[1])
    return EvaluationState(0, states, torch.zeros((), dtype=torch.float64, device=blocks.inputs_TB.device))


def evaluate_blocks(
    model: LanguageModel, blocks: EvaluationBlocks, state: EvaluationState
) -> Iterator[EvaluationState]:
    """Go on with an evaluation block by block, changing `state` and giving it after each."""
    model.eval()
    for number in range(state.block, len(blocks)):
        inputs, targets, weights = blocks.block(number)
        with torch.no_grad():
            features = model.features(inputs, state.states)
            losses = model.losses(features.raw_TBH, targets)
            state.total += (losses.to(torch.float64) * weights).sum()
        state.states = features.states
        state.block = number + 1
        yield state


def evaluate(model: LanguageModel, tokens_N: Tensor, batch_size: int, bptt: int) -> float:
    """Give the mean loss (nats per predicted token) over a text's N - 1 predictions.

    The official awd-lstm-lm divides by one row too many, which lowers its perplexity by up to 0.06 %; this is
    the sum over the predictions divided by their number.
    """
    blocks = evaluation_blocks(tokens_N, batch_size, bptt)
    state = begin_evaluation(model, blocks)
    for _ in evaluate_blocks(model, blocks, state):
        pass
    return float(state.total) / blocks.predictions
