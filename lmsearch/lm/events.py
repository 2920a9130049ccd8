"""What a training yields: a `Step` after each optimizer step, an `Epoch` after each evaluation. Needs no PyTorch."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmsearch.losses import perplexity

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TrainState:
    """All that a training run needs to resume, at any step: numbers, and tensors by name."""

    progress: dict[str, Any]
    tensors: "dict[str, Tensor]"

    def to_bytes(self) -> bytes:
        """Return the state as the content of a safetensors file, which no reader has to trust."""
        import safetensors.torch

        return safetensors.torch.save(self.tensors, {"progress": json.dumps(self.progress)})

    @classmethod
    def from_bytes(cls, content: bytes) -> "TrainState":
        """Read what `to_bytes` returned."""
        import safetensors.torch

        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return cls(json.loads(header["__metadata__"]["progress"]), safetensors.torch.load(content))


@dataclass(frozen=True)
class Step:
    """One optimizer step, or one block of an evaluation, is done."""

    epoch: int  # from 1
    step: int  # optimizer steps since the run began
    tokens: int  # trained in this epoch so far
    state: Callable[[], TrainState]


@dataclass(frozen=True)
class Epoch:
    """One epoch and its evaluation are done. Losses are in nats per token, without AR and TAR."""

    number: int  # from 1
    train_loss: float
    valid_loss: float
    seconds: float
    tokens: int
    learning_rate: float
    step: int
    state: Callable[[], TrainState]
    weights: Callable[[], "dict[str, Tensor]"]  # those that were evaluated, on the CPU
    train_seconds: float = 0.0  # of `seconds`, without the evaluation
    valid_known_loss: float = math.nan  # over the words that are not `<unk>`

    @property
    def valid_perplexity(self) -> float:
        """Return exp of the validation loss; infinite where the loss is not a number or too large."""
        return perplexity(self.valid_loss)


Event = Step | Epoch
"""What a training yields."""
