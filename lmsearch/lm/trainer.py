"""What a search asks of whatever trains a model. Needs no PyTorch to be imported."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lmsearch.config import RunConfig
from lmsearch.lm.events import Epoch, Event
from lmsearch.text.corpus import Corpus


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a saved model generates, and what is kept beside its weights."""

    text: str
    metrics: dict[str, Any]


class Trainer(Protocol):
    """Trains models of one kind on one device."""

    name: str  # of the device, such as cpu or cuda:1

    def train(self, config: RunConfig, corpus: Corpus, state: bytes | None) -> Iterator[Event]:
        """Train one model, from the beginning or from a saved state; to stop is to stop iterating."""
        ...

    def save_model(
        self, folder: Path, event: Epoch, config: RunConfig, corpus: Corpus, metrics: dict[str, Any]
    ) -> None:
        """Write the folder of the model that an epoch evaluated. Raises `OSError`."""
        ...

    def sample(self, folder: Path, words: int) -> Sample:
        """Generate a text with a saved model. Raises `LmsearchError` where the folder is damaged."""
        ...

    def begin_measuring(self) -> None:
        """Release what an earlier training left, and let `peak_memory` count from now on."""
        ...

    def peak_memory(self) -> int:
        """Return the most memory used since `begin_measuring`, in bytes."""
        ...

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether an error means that memory could not be had."""
        ...
