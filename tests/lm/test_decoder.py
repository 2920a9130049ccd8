"""The fused loss against PyTorch's own, its gradients, and what it holds in memory."""

import pytest
import torch
from torch import nn

from lmsearch.lm.decoder import LinearCrossEntropy, chunk_rows, row_losses


def make_problem(rows: int, words: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    x = torch.randn(rows, 5, dtype=dtype, requires_grad=True)
    weight = torch.randn(words, 5, dtype=dtype, requires_grad=True)
    bias = torch.randn(words, dtype=dtype, requires_grad=True)
    return x, weight, bias, torch.randint(0, words, (rows,))


@pytest.mark.parametrize("chunk", [1, 3, 4, 7, 100])
def test_loss_and_gradients_equal_those_of_the_unfused_computation(chunk: int) -> None:
    x, weight, bias, targets = make_problem(7, 9, torch.float64)
    loss = LinearCrossEntropy.apply(x, weight, bias, targets, chunk)  # type: ignore[no-untyped-call]
    (3 * loss).backward()
    gradients = [tensor.grad.clone() for tensor in (x, weight, bias) if tensor.grad is not None]
    for tensor in (x, weight, bias):
        tensor.grad = None
    expected = nn.functional.cross_entropy(nn.functional.linear(x, weight, bias), targets)
    (3 * expected).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, expected)
    for gradient, tensor in zip(gradients, (x, weight, bias), strict=True):
        torch.testing.assert_close(gradient, tensor.grad)


def test_gradcheck_passes() -> None:
    x, weight, bias, targets = make_problem(5, 6, torch.float64)
    function = LinearCrossEntropy.apply
    assert torch.autograd.gradcheck(lambda *inputs: function(*inputs, targets, 2), (x, weight, bias))  # type: ignore[no-untyped-call]


def test_it_is_exact_in_float32_at_the_size_of_a_vocabulary() -> None:
    x, weight, bias, targets = make_problem(300, 5_000, torch.float32)
    loss = LinearCrossEntropy.apply(x, weight, bias, targets, 128)  # type: ignore[no-untyped-call]
    expected = nn.functional.cross_entropy(nn.functional.linear(x, weight, bias).double(), targets)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)


def test_logits_far_from_zero_neither_overflow_nor_vanish() -> None:
    x = torch.tensor([[1000.0], [-1000.0]])
    weight, bias = torch.tensor([[1.0], [-1.0]]), torch.zeros(2)
    losses = row_losses(x, weight, bias, torch.tensor([0, 0]))
    assert losses.tolist() == [0.0, 2000.0]


def test_rows_are_taken_in_chunks_so_that_not_all_logits_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run where tensors have no storage, and look at every tensor that is made."""
    made: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            made.extend(t.numel() for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, torch.Tensor))
            return result

    x = torch.randn(1_000, 4, requires_grad=True)
    weight, bias = torch.randn(3_000, 4, requires_grad=True), torch.zeros(3_000, requires_grad=True)
    targets = torch.randint(0, 3_000, (1_000,))
    with Watch():
        rows = chunk_rows(x.device, 3_000)
        loss = LinearCrossEntropy.apply(x, weight, bias, targets, rows)  # type: ignore[no-untyped-call]
        loss.backward()
    assert max(made) <= rows * 3_000 < 1_000 * 3_000
