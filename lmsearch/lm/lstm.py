"""The trainer of this project: AWD-LSTM language models, in PyTorch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch

from lmsearch.config import RunConfig
from lmsearch.lm import memory
from lmsearch.lm.device import open_device
from lmsearch.lm.events import Epoch, Event, TrainState
from lmsearch.lm.saving import save_model
from lmsearch.lm.train import train
from lmsearch.lm.trainer import Sample
from lmsearch.lm.use.generate import sample_text
from lmsearch.lm.use.model_folder import load_model
from lmsearch.text.corpus import Corpus


class LstmTrainer:
    """Trains AWD-LSTM language models on one device; see `lmsearch.lm.trainers.Trainer`."""

    def __init__(self, device: str) -> None:
        self.device = open_device(device)
        self.name = str(self.device)

    def train(self, config: RunConfig, corpus: Corpus, state: bytes | None) -> Iterator[Event]:
        """Train one model; see `lmsearch.lm.train.train`."""
        return train(config, corpus, self.device, None if state is None else TrainState.from_bytes(state))

    def save_model(
        self, folder: Path, event: Epoch, config: RunConfig, corpus: Corpus, metrics: dict[str, Any]
    ) -> None:
        """Write the folder of the model that an epoch evaluated. Raises `OSError`."""
        weights = safetensors.torch.save(event.weights())
        save_model(folder, weights, config.as_tables(), corpus.vocabulary, metrics)

    def sample(self, folder: Path, words: int) -> Sample:
        """Generate a text with a saved model. Raises `LmsearchError` where the folder is damaged."""
        trained = load_model(folder)
        return Sample(text=sample_text(trained.model, trained.vocabulary, words), metrics=trained.metrics)

    def begin_measuring(self) -> None:
        """Release what an earlier training left, and let `peak_memory` count from now on."""
        memory.begin_measuring(self.device)

    def peak_memory(self) -> int:
        """Return the most memory used since `begin_measuring`, in bytes."""
        return memory.peak_memory(self.device)

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether an error means that memory could not be had, on the device or on the host."""
        return memory.is_out_of_memory(error)
