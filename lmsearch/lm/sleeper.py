"""A trainer that sleeps: what a search costs beside its training, on one host or on a cluster."""

import json
import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lmsearch.config import RunConfig
from lmsearch.folders import MODEL_METRICS
from lmsearch.lm.events import Epoch, Event, Step, TrainState
from lmsearch.lm.trainer import Sample
from lmsearch.text.corpus import Corpus

_STEPS = 4  # in an epoch


class _State(TrainState):
    """How many epochs are over."""

    def to_bytes(self) -> bytes:
        """Return them as JSON."""
        return json.dumps(self.progress).encode()


class SleepingTrainer:
    """Takes so many seconds an epoch, needs no PyTorch and learns nothing: its loss falls with the epochs.

    A step takes up to `spread` of its time more or less, so that trainings do not stay in step with one another.
    """

    def __init__(self, device: str, seconds: float = 1.0, spread: float = 0.0) -> None:
        self.name = "cpu" if device == "auto" else device
        self._seconds = seconds
        self._spread = spread

    def train(self, config: RunConfig, corpus: Corpus, state: bytes | None) -> Iterator[Event]:
        """Sleep through the epochs that a saved state has not."""
        done = 0 if state is None else int(json.loads(state)["epochs"])
        for number in range(done + 1, config.train.epochs + 1):
            for step in range(1, _STEPS + 1):
                time.sleep(self._seconds / _STEPS * random.uniform(1 - self._spread, 1 + self._spread))
                at = _STEPS * (number - 1) + step
                yield Step(epoch=number, step=at, tokens=step, state=partial(_State, {"epochs": number - 1}, {}))
            yield Epoch(
                number=number,
                train_loss=1.0,
                valid_loss=0.5 / number,
                seconds=self._seconds,
                tokens=_STEPS,
                learning_rate=config.train.learning_rate,
                step=_STEPS * number,
                state=partial(_State, {"epochs": number}, {}),
                weights=dict,
            )

    def save_model(
        self, folder: Path, event: Epoch, config: RunConfig, corpus: Corpus, metrics: dict[str, Any]
    ) -> None:
        """Write a folder with the figures alone."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MODEL_METRICS).write_text(json.dumps(metrics), encoding="utf-8")

    def sample(self, folder: Path, words: int) -> Sample:
        """Return no text."""
        return Sample(text="", metrics=json.loads((folder / MODEL_METRICS).read_text(encoding="utf-8")))

    def begin_measuring(self) -> None:
        """Do nothing: it uses no memory."""

    def peak_memory(self) -> int:
        """Return 0."""
        return 0

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Return false: it asks for no memory."""
        return False
