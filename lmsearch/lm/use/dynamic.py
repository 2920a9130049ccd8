"""Dynamic evaluation: a model that goes on learning from the text it predicts (Krause et al. 2018, arXiv 1709.07432).

A text is read in segments. Each is predicted with the weights as they are, and then learnt from: every weight moves
against its gradient, divided by the root mean square of that weight's gradient over training text, and back towards
where it began, the faster the more such gradients it has. So no word is predicted with weights that have seen it.

Shapes: N predictions of a text, H features.
"""

import copy
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmsearch.lm.batches import as_indices, batchify
from lmsearch.lm.model import LanguageModel, States
from lmsearch.lm.use.cache import ReadText
from lmsearch.lm.use.trained import TrainedModel

_COLUMNS = 20  # of the training text, whose gradients are taken together
_MOST_BLOCKS = 500  # of it, at even distances
_EPSILON = 1e-3  # of the authors' code: what keeps a step small where training gave hardly any gradient


@dataclass(frozen=True, kw_only=True)
class DynamicConstants:
    """The three numbers of dynamic evaluation."""

    learning_rate: float
    decay: float  # lambda in the paper: how fast weights return to where they began
    segment: int  # tokens that are predicted before they are learnt from

    def as_dict(self) -> dict[str, float]:
        """Return the constants by name."""
        return asdict(self)


@dataclass(frozen=True)
class GradientScales:
    """For each parameter the root mean square of its gradients over training text, and how fast it returns."""

    root_mean_squares: list[Tensor]
    returns: list[Tensor]  # the root mean squares over their own mean


def gradient_scales(trained: TrainedModel, tokens: npt.NDArray[np.int32], segment: int) -> GradientScales:
    """Measure the gradients of a model's parameters over its training text, in blocks of `segment` rows."""
    model = trained.model.eval()
    columns = max(1, min(_COLUMNS, len(tokens) // (2 * segment)))
    host_TB = batchify(as_indices(tokens), columns)
    starts = range(0, max(1, len(host_TB) - segment), segment)
    squares = [torch.zeros_like(parameter) for parameter in model.parameters()]
    chosen = sorted({starts[number * len(starts) // _MOST_BLOCKS] for number in range(_MOST_BLOCKS)})
    for start in chosen:
        block_TB = host_TB[start : start + segment + 1]
        for square, gradient in zip(
            squares, _gradients(model, block_TB, model.initial_states(columns))[0], strict=True
        ):
            square.addcmul_(gradient, gradient)
    roots = [square.div_(len(chosen)).sqrt_() for square in squares]
    mean = sum(float(root.sum()) for root in roots) / sum(root.numel() for root in roots)
    return GradientScales(roots, [root / max(mean, 1e-30) for root in roots])


def read_text_dynamically(
    trained: TrainedModel, tokens: npt.NDArray[np.int32], constants: DynamicConstants, scales: GradientScales
) -> ReadText:
    """Read a text as `lmsearch.lm.use.cache.read_text` does, learning from each segment after it was predicted.

    The model that is given does not change. Beside the features and losses of the text, memory holds five times the
    model's weights.
    """
    model = copy.deepcopy(trained.model).eval()
    began = [parameter.detach().clone() for parameter in model.parameters()]
    pulls = [(constants.decay * back).clamp_(max=1.0) for back in scales.returns]
    host_N = as_indices(tokens)
    states = model.initial_states(1)
    features: list[Tensor] = []
    losses: list[Tensor] = []
    for start in range(0, len(host_N) - 1, constants.segment):
        block_T1 = host_N[start : start + constants.segment + 1][:, None]
        gradients, raw, states, found = _gradients(model, block_T1, states)
        features.append(raw)
        losses.append(found.double())
        with torch.no_grad():
            for parameter, gradient, root, pull, first in zip(
                model.parameters(), gradients, scales.root_mean_squares, pulls, began, strict=True
            ):
                step = gradient / (root + _EPSILON)  # not in place: two parameters may have one gradient
                parameter.add_((first - parameter).mul_(pull)).sub_(step, alpha=constants.learning_rate)
    return ReadText(torch.cat(features), host_N[1:].to(trained.device), torch.cat(losses))


def _gradients(model: LanguageModel, host_TB: Tensor, states: States) -> tuple[list[Tensor], Tensor, States, Tensor]:
    """Return a block's gradients by parameter, its first column's features, the states after, that column's losses."""
    tokens_TB = host_TB.to(model.embedding.weight.device)
    before = [(hidden.detach(), cell.detach()) for hidden, cell in states]
    found = model.features(tokens_TB[:-1], before)
    losses_TB = model.losses(found.raw_TBH.detach(), tokens_TB[1:], host_TB[1:])
    loss = model.loss(found.raw_TBH, tokens_TB[1:], host_TB[1:])
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    after = [(hidden.detach(), cell.detach()) for hidden, cell in found.states]
    return list(gradients), found.raw_TBH.detach()[:, 0], after, losses_TB[:, 0]
