"""The adaptive softmax: exact probabilities of all words at the price of a shortlist and of the tails that occur.

Grave et al. (2017, arXiv 1609.04309). Words are numbered by their rank in the train split. A prediction is a softmax
over the shortlist and one class for each tail; that of a rare word is its tail's probability times its own in the tail.
A tied decoder takes the rows of its words from the embedding, in the tails after a square projection of the features.

Shapes: N rows (time times batch), H features, V vocabulary, S shortlist, K tails, D features of a tail.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lmsearch.clusters import Clusters
from lmsearch.lm.decoder import accumulate, row_losses

Weights = Sequence[Tensor]


def ranks_of(tokens_N: NDArray[np.int32], words: int) -> Tensor:
    """Return each word's rank by its number in a text, the most frequent 0, the earlier of equals first: shape (V,)."""
    counts_V = np.bincount(tokens_N, minlength=words)
    order_V = np.argsort(-counts_V, kind="stable")
    ranks_V = np.empty(words, dtype=np.int64)
    ranks_V[order_V] = np.arange(words)
    return torch.from_numpy(ranks_V)


class AdaptiveDecoder(nn.Module):
    """An adaptive softmax over a vocabulary; `tied` is the embedding's matrix, whose rows are by rank."""

    ranks: Tensor

    def __init__(
        self, clusters: Clusters, features: int, ranks_V: Tensor, tied: Tensor | None, init_range: float
    ) -> None:
        super().__init__()
        self.clusters, self.is_tied = clusters, tied is not None
        self.register_buffer("ranks", ranks_V)
        # On the host, so that which rows of a window are in which tail is known there before the device has them.
        ends = torch.tensor(clusters.ends[:-1], device=ranks_V.device)
        self._host_tails_V = torch.bucketize(ranks_V, ends, right=True)
        self.weight = tied if tied is not None else nn.Parameter(torch.empty(clusters.shortlist, features))
        self.bias = nn.Parameter(torch.zeros(clusters.ends[-1]))
        self.tail_weight = nn.Parameter(torch.empty(clusters.tails, features))
        self.tail_bias = nn.Parameter(torch.zeros(clusters.tails))
        self.projections = nn.ParameterList(torch.empty(width, features) for width in clusters.widths)
        spans = [] if self.is_tied else [clusters.tail(number) for number in range(clusters.tails)]
        self.words = nn.ParameterList(
            torch.empty(end - first, width) for (first, end), width in zip(spans, clusters.widths, strict=False)
        )
        with torch.no_grad():
            own = [] if self.is_tied else [self.weight, *self.words]
            for weight in [self.tail_weight, *own]:
                weight.uniform_(-init_range, init_range)
            for projection in self.projections:
                if self.is_tied:
                    nn.init.eye_(projection)
                else:
                    projection.uniform_(-(features**-0.5), features**-0.5)

    def rows_of_tails(self, targets_N: Tensor) -> list[Tensor]:
        """Return the rows whose target is in each tail, on the decoder's device; the targets lie on the host."""
        device = self.tail_weight.device
        tails_N = self._host_tails_V[targets_N]
        found = [(tails_N == number + 1).nonzero()[:, 0] for number in range(self.clusters.tails)]
        if device.type == "cuda":
            found = [rows.pin_memory() for rows in found]
        return [rows.to(device, non_blocking=True) for rows in found]

    def loss(self, x_NH: Tensor, targets_N: Tensor, host_targets_N: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats."""
        loss: Tensor = AdaptiveCrossEntropy.apply(  # type: ignore[no-untyped-call]
            x_NH,
            self.ranks[targets_N],
            self.rows_of_tails(host_targets_N),
            self.clusters,
            self.weight,
            self.bias,
            self.tail_weight,
            self.tail_bias,
            *self.projections,
            *self.words,
        )
        return loss

    @torch.no_grad()
    def losses(self, x_NH: Tensor, targets_N: Tensor, host_targets_N: Tensor) -> Tensor:
        """Return the negative log-likelihood (nats) of each row's target."""
        ranks_N, rows_of_tails = self.ranks[targets_N], self.rows_of_tails(host_targets_N)
        losses_N = row_losses(x_NH, *self._head(), _head_targets(ranks_N, rows_of_tails, self.clusters))
        for number, rows in enumerate(rows_of_tails):
            if len(rows):
                projected = x_NH.index_select(0, rows) @ self.projections[number].t()
                targets = ranks_N.index_select(0, rows) - self.clusters.ends[number]
                losses_N.index_add_(0, rows, row_losses(projected, *self._tail(number), targets))
        return losses_N

    def forward(self, x: Tensor) -> Tensor:
        """Return the log-probabilities of all words, by their number in the vocabulary: (…, H) to (…, V)."""
        head = nn.functional.linear(x, *self._head()).log_softmax(-1)
        parts = [head[..., : self.clusters.shortlist]]
        for number, projection in enumerate(self.projections):
            own = nn.functional.linear(nn.functional.linear(x, projection), *self._tail(number)).log_softmax(-1)
            at = self.clusters.shortlist + number
            parts.append(head[..., at : at + 1] + own)
        return torch.cat(parts, -1)[..., self.ranks]

    def _head(self) -> tuple[Tensor, Tensor]:
        return _head(self.clusters, self.weight, self.bias, self.tail_weight, self.tail_bias)

    def _tail(self, number: int) -> tuple[Tensor, Tensor]:
        return _tail(self.clusters, number, self.weight, self.bias, list(self.words))


class AdaptiveCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of an adaptive softmax; gradients are formed in the forward pass, by chunks of rows.

    As `lmsearch.lm.decoder.LinearCrossEntropy`, for the head and for each tail with the rows whose target is in it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_NH: Tensor,
        ranks_N: Tensor,
        rows_of_tails: Sequence[Tensor],
        clusters: Clusters,
        *weights: Tensor,
    ) -> Tensor:
        """Compute the mean loss in nats, and keep the gradients for `backward`."""
        weight, bias_V, tail_weight, tail_bias, *others = weights
        projections, words = others[: clusters.tails], others[clusters.tails :]
        gradients = [torch.zeros_like(one) for one in weights]
        grad_weight, grad_bias, grad_tail_weight, grad_tail_bias, *grad_others = gradients
        grad_projections, grad_words = grad_others[: clusters.tails], grad_others[clusters.tails :]
        grad_x, scale = torch.empty_like(x_NH), 1 / len(x_NH)

        head = _head(clusters, weight, bias_V, tail_weight, tail_bias)
        grad_head = torch.zeros_like(head[0]), torch.zeros_like(head[1])
        targets_N = _head_targets(ranks_N, rows_of_tails, clusters)
        losses_N = accumulate(x_NH, *head, targets_N, scale, grad_x, *grad_head)
        shortlist = clusters.shortlist
        grad_weight[:shortlist], grad_bias[:shortlist] = (one[:shortlist] for one in grad_head)
        grad_tail_weight.copy_(grad_head[0][shortlist:])
        grad_tail_bias.copy_(grad_head[1][shortlist:])

        for number, rows in enumerate(rows_of_tails):
            if not len(rows):
                continue
            x = x_NH.index_select(0, rows)
            projected = x @ projections[number].t()
            grad_projected = torch.empty_like(projected)
            own = _tail(clusters, number, weight, bias_V, words)
            grad_own = _tail(clusters, number, grad_weight, grad_bias, grad_words)
            targets_N = ranks_N.index_select(0, rows) - clusters.ends[number]
            losses = accumulate(projected, *own, targets_N, scale, grad_projected, *grad_own)
            losses_N.index_add_(0, rows, losses)  # no row twice
            grad_x.index_add_(0, rows, grad_projected @ projections[number])
            torch.mm(grad_projected.t(), x, out=grad_projections[number])
        ctx.save_for_backward(grad_x, *gradients)
        return losses_N.mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients that `forward` formed."""
        grad_x, *gradients = ctx.saved_tensors
        (grad,) = grads
        return grad_x.mul(grad), None, None, None, *(one.mul(grad) for one in gradients)


def _head(
    clusters: Clusters, weight: Tensor, bias_V: Tensor, tail_weight: Tensor, tail_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the weights and biases of the shortlist's words and the tails' classes."""
    shortlist = clusters.shortlist
    return torch.cat([weight[:shortlist], tail_weight]), torch.cat([bias_V[:shortlist], tail_bias])


def _tail(clusters: Clusters, number: int, weight: Tensor, bias_V: Tensor, words: Weights) -> tuple[Tensor, Tensor]:
    """Return the weights and biases of a tail's words: rows of the one matrix where it is tied."""
    first, end = clusters.tail(number)
    return (words[number] if words else weight[first:end]), bias_V[first:end]


def _head_targets(ranks_N: Tensor, rows_of_tails: Sequence[Tensor], clusters: Clusters) -> Tensor:
    """Return the class of each row in the head: its word, or the tail that its word is in."""
    targets_N = ranks_N.clone()
    for number, rows in enumerate(rows_of_tails):
        targets_N.index_fill_(0, rows, clusters.shortlist + number)
    return targets_N
