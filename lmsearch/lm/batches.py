"""Streams of tokens as (time, batch) blocks.

Shapes: T time, B batch, N tokens of a text.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmsearch.text.corpus import Text


def batchify(tokens_N: Tensor, batch_size: int) -> Tensor:
    """Lay a text in `batch_size` columns, each a contiguous part: x[t, b] = tokens[b * (N // B) + t].

    The last N % B tokens are dropped, as AWD-LSTM does.
    """
    rows = len(tokens_N) // batch_size
    return tokens_N[: rows * batch_size].view(batch_size, rows).t().contiguous()


@dataclass(frozen=True)
class Window:
    """One step of truncated back-propagation through time."""

    start: int  # its first row
    drawn: int  # the length that was drawn, which the learning rate is scaled by
    length: int  # its rows: less than drawn at the end of the text


def draw_windows(rows: int, bptt: int, variable: bool, rng: np.random.Generator) -> list[Window]:
    """Cut `rows` rows into windows of about `bptt` (AWD-LSTM, arXiv 1708.02182, section 5).

    Where the length is variable it is normal with deviation 5 around `bptt`, one time in twenty around half of
    it, and at least 5. A window has at least two rows, so that a difference in time exists.
    """
    windows = []
    start = 0
    while start < rows - 2:
        drawn = bptt
        if variable:
            mean = bptt if rng.random() < 0.95 else bptt / 2
            drawn = max(5, int(rng.normal(mean, 5)))
        windows.append(Window(start, drawn, min(drawn, rows - 1 - start)))
        start += drawn
    return windows


def shuffled_articles(text: Text, rng: np.random.Generator) -> npt.NDArray[np.int32]:
    """Return the text's tokens with its articles in a new order."""
    ends = np.append(text.article_starts[1:], len(text.tokens))
    order = rng.permutation(len(text.article_starts))
    parts = [text.tokens[text.article_starts[i] : ends[i]] for i in order]
    return np.concatenate(parts)


@dataclass(frozen=True)
class EvaluationBlocks:
    """A text of N tokens as columns that give each of its N - 1 predictions exactly once.

    Before its own part each column but the first reads the `context` tokens that stand before it, so that it begins
    with the states that these leave. Neighbouring columns overlap by one token more; what is read as context, and what
    stands beyond the end in the last columns, has weight 0.
    """

    inputs_TB: Tensor
    targets_TB: Tensor
    weights_TB: Tensor
    host_targets_TB: Tensor  # the targets on the host
    predictions: int
    bptt: int
    context: int  # rows that are read before the predictions begin

    def __len__(self) -> int:
        return self.context_blocks + _parts(len(self.inputs_TB) - self.context, self.bptt)

    @property
    def context_blocks(self) -> int:
        """Return the number of blocks in which nothing is predicted; the first column begins after them."""
        return _parts(self.context, self.bptt)

    def block(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return inputs, targets and weights of one block of at most `bptt` rows."""
        rows = self.rows(number)
        return self.inputs_TB[rows], self.targets_TB[rows], self.weights_TB[rows]

    def rows(self, number: int) -> slice:
        """Return the rows of one block."""
        if number < self.context_blocks:
            first, end = number * self.bptt, self.context
        else:
            first, end = self.context + (number - self.context_blocks) * self.bptt, len(self.inputs_TB)
        return slice(first, min(first + self.bptt, end))


def evaluation_blocks(
    tokens_N: Tensor, batch_size: int, bptt: int, context: int = 0, device: torch.device | None = None
) -> EvaluationBlocks:
    """Lay a text of at least two tokens, on the host, out for evaluation on a device; see `EvaluationBlocks`.

    With a `context` a column has at least twice as many predictions of its own: a short text gets fewer columns.
    """
    predictions = len(tokens_N) - 1
    columns = max(1, min(batch_size, predictions // (2 * context))) if context else batch_size
    context = context if columns > 1 else 0
    rows = _parts(predictions, columns)
    places_TB = (
        torch.arange(-context, rows, device=tokens_N.device)[:, None]
        + torch.arange(columns, device=tokens_N.device)[None, :] * rows
    )
    within_TB = places_TB.clamp(min=0, max=predictions - 1)
    weights_TB = (places_TB < predictions).to(torch.float64)
    weights_TB[:context] = 0
    targets_TB = tokens_N[within_TB + 1]
    return EvaluationBlocks(
        inputs_TB=tokens_N[within_TB].to(device=device),
        targets_TB=targets_TB.to(device=device),
        weights_TB=weights_TB.to(device=device),
        host_targets_TB=targets_TB,
        predictions=predictions,
        bptt=bptt,
        context=context,
    )


def _parts(rows: int, size: int) -> int:
    """Return the number of parts of at most `size` rows."""
    return -(-rows // size)


def as_indices(tokens: npt.NDArray[np.int32]) -> Tensor:
    """Copy tokens to the indices that embeddings take, on the host."""
    return torch.from_numpy(np.array(tokens, dtype=np.int64))
