"""The loss over the vocabulary, without ever holding all logits.

Shapes: N rows (time times batch), H features, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn

_CPU_ROWS = 128  # a chunk's logits then stay near the cache; measured best of 64, 128, 256 and all
_GPU_LOGITS = 1 << 26  # 256 MB of float32


def chunk_rows(device: torch.device, vocabulary_size: int) -> int:
    """Choose how many rows of logits to hold at a time."""
    return _CPU_ROWS if device.type == "cpu" else max(_CPU_ROWS, _GPU_LOGITS // vocabulary_size)


class LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of `softmax(x W' + b)` against targets, by chunks of rows.

    Equal to `F.cross_entropy(F.linear(x, W, b), targets)`; the gradients are formed in the forward pass, chunk
    by chunk, so that only one chunk of logits exists at a time. Gradients of gradients are not supported.
    """

    @staticmethod
    def forward(ctx: Any, x_NH: Tensor, weight_VH: Tensor, bias_V: Tensor, targets_N: Tensor, rows: int) -> Tensor:
        """Compute the mean loss in nats, and keep the gradients for `backward`."""
        grads = torch.empty_like(x_NH), torch.zeros_like(weight_VH), torch.zeros_like(bias_V)
        losses_N = accumulate(x_NH, weight_VH, bias_V, targets_N, 1 / len(x_NH), *grads, rows=rows)
        ctx.save_for_backward(*grads)
        return losses_N.mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Scale the gradients that `forward` formed."""
        grad_x, grad_weight, grad_bias = ctx.saved_tensors
        (grad,) = grads
        return grad_x.mul(grad), grad_weight.mul(grad), grad_bias.mul(grad), None, None


def accumulate(
    x_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor,
    targets_N: Tensor,
    scale: float,
    grad_x_NH: Tensor,
    grad_weight_VH: Tensor,
    grad_bias_V: Tensor,
    rows: int = 0,
) -> Tensor:
    """Return each row's loss (nats), and form the gradients of `scale` times their sum, so many rows at a time.

    The gradient of `x` is written, those of weights and biases are added to what stands there.
    """
    rows = rows or chunk_rows(x_NH.device, len(weight_VH))
    losses_N = x_NH.new_empty(len(x_NH))
    buffer = x_NH.new_empty(min(rows, len(x_NH)), len(weight_VH))
    for start in range(0, len(x_NH), rows):
        x, targets = x_NH[start : start + rows], targets_N[start : start + rows, None]
        logits, sums, losses = _exponentials(x, weight_VH, bias_V, targets, buffer[: len(x)])
        losses_N[start : start + rows] = losses
        # The gradient of the loss by the logits: softmax, less one at the target.
        gradient = logits.mul_(scale / sums)
        gradient.scatter_add_(1, targets, gradient.new_full((), -scale).expand_as(targets))
        torch.mm(gradient, weight_VH, out=grad_x_NH[start : start + rows])
        grad_weight_VH.addmm_(gradient.t(), x)
        grad_bias_V += gradient.sum(0)
    return losses_N


class FullDecoder(nn.Linear):
    """A softmax over all words."""

    def loss(self, x_NH: Tensor, targets_N: Tensor, host_targets_N: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats."""
        rows = chunk_rows(x_NH.device, len(self.weight))
        loss: Tensor = LinearCrossEntropy.apply(x_NH, self.weight, self.bias, targets_N, rows)  # type: ignore[no-untyped-call]
        return loss

    def losses(self, x_NH: Tensor, targets_N: Tensor, host_targets_N: Tensor) -> Tensor:
        """Return the negative log-likelihood (nats) of each row's target."""
        return row_losses(x_NH, self.weight, self.bias, targets_N)


@torch.no_grad()
def row_losses(x_NH: Tensor, weight_VH: Tensor, bias_V: Tensor, targets_N: Tensor) -> Tensor:
    """Return the negative log-likelihood (nats) of each row's target."""
    rows = chunk_rows(x_NH.device, len(weight_VH))
    buffer = x_NH.new_empty(min(rows, len(x_NH)), len(weight_VH))
    losses_N = x_NH.new_empty(len(x_NH))
    for start in range(0, len(x_NH), rows):
        x, targets = x_NH[start : start + rows], targets_N[start : start + rows, None]
        losses_N[start : start + rows] = _exponentials(x, weight_VH, bias_V, targets, buffer[: len(x)])[2]
    return losses_N


def _exponentials(
    x: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, buffer: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return exp(logits - their maximum), in `buffer`, its sums by row, and each row's loss."""
    logits = torch.addmm(bias, x, weight.t(), out=buffer)
    maxima = logits.amax(1, keepdim=True)
    at_target = logits.gather(1, targets)
    sums = logits.sub_(maxima).exp_().sum(1, keepdim=True)
    losses = (maxima - at_target + sums.log()).squeeze(1)
    return logits, sums, losses
