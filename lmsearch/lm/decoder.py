"""The loss over the vocabulary, without ever holding all logits.

Shapes: N rows (time times batch), H features, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

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
        grad_x = torch.empty_like(x_NH)
        grad_weight = torch.zeros_like(weight_VH)
        grad_bias = torch.zeros_like(bias_V)
        losses_N = x_NH.new_empty(len(x_NH))
        buffer = x_NH.new_empty(min(rows, len(x_NH)), len(weight_VH))
        scale = 1 / len(x_NH)
        for start in range(0, len(x_NH), rows):
            x, targets = x_NH[start : start + rows], targets_N[start : start + rows, None]
            logits, sums, losses = _exponentials(x, weight_VH, bias_V, targets, buffer[: len(x)])
            losses_N[start : start + rows] = losses
            # The gradient of the loss by the logits: softmax, less one at the target.
            gradient = logits.mul_(scale / sums)
            gradient.scatter_add_(1, targets, gradient.new_full((), -scale).expand_as(targets))
            torch.mm(gradient, weight_VH, out=grad_x[start : start + rows])
            grad_weight.addmm_(gradient.t(), x)
            grad_bias += gradient.sum(0)
        ctx.save_for_backward(grad_x, grad_weight, grad_bias)
        return losses_N.mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Scale the gradients that `forward` formed."""
        grad_x, grad_weight, grad_bias = ctx.saved_tensors
        (grad,) = grads
        return grad_x.mul(grad), grad_weight.mul(grad), grad_bias.mul(grad), None, None


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
