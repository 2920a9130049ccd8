"""The fused loss against `F.cross_entropy(F.linear(...))`: time of forward and backward, in one run.

    python benchmarks/fused_loss.py

Pairs of measurements alternate, so that a machine that drifts slows both; the ratio of medians is printed.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from lmsearch.lm.decoder import LinearCrossEntropy, chunk_rows

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def fused(x: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    loss: Tensor = LinearCrossEntropy.apply(x, weight, bias, targets, chunk_rows(x.device, len(weight)))  # type: ignore[no-untyped-call]
    return loss


def unfused(x: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(functional.linear(x, weight, bias), targets)


def seconds(loss: Loss, problem: tuple[Tensor, Tensor, Tensor, Tensor]) -> float:
    for tensor in problem[:3]:
        tensor.grad = None
    began = time.perf_counter()
    loss(*problem).backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print("rows  features  words   unfused ms  fused ms  ratio")
    for rows, features, words in ((700, 96, 1_622), (700, 200, 14_143), (700, 200, 33_278)):
        torch.manual_seed(0)
        x, weight = torch.randn(rows, features, requires_grad=True), torch.randn(words, features, requires_grad=True)
        problem = (x, weight, torch.zeros(words, requires_grad=True), torch.randint(0, words, (rows,)))
        pairs = [(seconds(unfused, problem), seconds(fused, problem)) for _ in range(repeats)][2:]
        plain, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
        print(f"{rows:4}  {features:8}  {words:6,}  {1e3 * plain:10.1f}  {1e3 * ours:8.1f}  {plain / ours:5.2f}")


if __name__ == "__main__":
    main()
