"""A trainer that computes nothing: for tests of what stands around it, in real processes.

Run as a program it is `lmsearch worker` with this trainer in place of the real one. Its curve depends on the
config alone; the environment says how long a step takes and what goes wrong.
"""

import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from lmsearch.config import RunConfig
from lmsearch.lm.model import LanguageModel
from lmsearch.lm.train import Epoch, Event, Step, TrainState
from lmsearch.text.corpus import Corpus

STEPS = 5  # in an epoch


def stub_train(
    config: RunConfig, corpus: Corpus, device: torch.device, state: TrainState | None = None
) -> Iterator[Event]:
    """Give the events of a run whose loss falls with the epochs and rises with the dropout."""
    pause = float(os.environ.get("STUB_PAUSE", "0"))
    _go_wrong(config)
    done, epochs = (0, 0) if state is None else (state.progress["steps"], state.progress["epochs"])
    weights = LanguageModel(config.model, len(corpus.vocabulary)).weights()
    while epochs < config.train.epochs:
        while done < STEPS * (epochs + 1):
            time.sleep(pause)
            done += 1
            _note(config, done)
            here = TrainState({"steps": done, "epochs": epochs}, {"one": torch.ones(1)})
            yield Step(epoch=epochs + 1, step=done, tokens=10 * (done - STEPS * epochs), state=partial(_given, here))
        epochs += 1
        here = TrainState({"steps": done, "epochs": epochs}, {"one": torch.ones(1)})
        yield Epoch(
            number=epochs,
            train_loss=1.0,
            valid_loss=1.5 / epochs + config.model.output_dropout,
            seconds=max(pause * STEPS, 1e-3),
            tokens=10 * STEPS,
            learning_rate=config.train.learning_rate,
            step=done,
            state=partial(_given, here),
            weights=lambda: weights,
        )


def _given(state: TrainState) -> TrainState:
    return state


def _go_wrong(config: RunConfig) -> None:
    match os.environ.get("STUB_FAULT"):
        case "always":
            raise ValueError("a bug in every trial")
        case "sometimes" if config.model.output_dropout > 0.25:
            raise ValueError("a bug in some trials")
        case "death":
            os.kill(os.getpid(), 9)


def _note(config: RunConfig, step: int) -> None:
    """Write each step that is computed into a file, so that a test can count them."""
    if folder := os.environ.get("STUB_NOTES"):
        with (Path(folder) / f"{config.model.output_dropout:.12f}").open("a") as file:
            file.write(f"{step}\n")


if __name__ == "__main__":
    import lmsearch.search.worker
    from lmsearch.cli.main import main

    real = lmsearch.search.worker.run_worker

    def run_worker(options, say, trainer=stub_train):  # type: ignore[no-untyped-def]
        return real(options, say, trainer)

    lmsearch.search.worker.run_worker = run_worker
    main(["worker", *sys.argv[1:]])
