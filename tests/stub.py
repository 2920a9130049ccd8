"""A trainer that computes nothing: for tests of what stands around it, in real processes.

Run as a program it is `lmsearch worker` with this trainer in place of the real one. Its curve depends on the
config alone; the environment says how long a step takes and what goes wrong.
"""

import ctypes
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from optuna.storages import RDBStorage

from lmsearch.config import ModelConfig, RunConfig
from lmsearch.lm import memory
from lmsearch.lm.events import Epoch, Event, Step, TrainState
from lmsearch.lm.saving import save_model
from lmsearch.lm.trainer import Sample
from lmsearch.lm.trainers import TRAINERS
from lmsearch.store import checkpoints, tickets
from lmsearch.text.corpus import Corpus

STEPS = 5  # in an epoch


class StubState(TrainState):
    def to_bytes(self) -> bytes:
        return json.dumps(self.progress).encode()


def _state(steps: int, epochs: int) -> TrainState:
    return StubState({"steps": steps, "epochs": epochs}, {})


class StubTrainer:
    """A trainer for `lmsearch.lm.trainers.TRAINERS` that needs no PyTorch, so that its workers start fast."""

    def __init__(self, device: str) -> None:
        self.name = "cpu" if device == "auto" else device

    def train(self, config: RunConfig, corpus: Corpus, state: bytes | None) -> Iterator[Event]:
        """Give the events of a run whose loss falls with the epochs and rises with the dropout."""
        pause = float(os.environ.get("STUB_PAUSE", "0"))
        _go_wrong(config)
        done, epochs = (0, 0) if state is None else json.loads(state).values()
        while epochs < config.train.epochs:
            while done < STEPS * (epochs + 1):
                time.sleep(pause)
                done += 1
                _note(config, done)
                if done == 3:
                    _at("mid-epoch")
                here = partial(_state, done, epochs)
                yield Step(epoch=epochs + 1, step=done, tokens=10 * (done - STEPS * epochs), state=here)
            epochs += 1
            yield Epoch(
                number=epochs,
                train_loss=1.0,
                valid_loss=_loss(config, epochs),
                seconds=max(pause * STEPS, 1e-3),
                tokens=10 * STEPS,
                learning_rate=config.train.learning_rate,
                step=done,
                state=partial(_state, done, epochs),
                weights=dict,
            )

    def save_model(
        self, folder: Path, event: Epoch, config: RunConfig, corpus: Corpus, metrics: dict[str, Any]
    ) -> None:
        """Write a model that can be loaded and used, with weights that nothing has trained."""
        shapes = _shapes(config.model, len(corpus.vocabulary))
        rng = np.random.default_rng(0)
        weights = {name: rng.uniform(-0.1, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
        save_model(folder, safetensors.numpy.save(weights), config.as_tables(), corpus.vocabulary, metrics)

    def sample(self, folder: Path, words: int) -> Sample:
        return Sample(text="word1 word2", metrics=json.loads((folder / "metrics.json").read_text(encoding="utf-8")))

    def begin_measuring(self) -> None:
        memory.begin_measuring(None)

    def peak_memory(self) -> int:
        return memory.peak_memory(None)

    def is_out_of_memory(self, error: BaseException) -> bool:
        return memory.is_out_of_memory(error)


def _shapes(model: ModelConfig, words: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (words, model.embedding_size)}
    size = model.embedding_size
    for layer in range(model.num_layers):
        last = layer == model.num_layers - 1
        out = model.embedding_size if last and model.tie_weights else model.hidden_size
        shapes |= {f"layers.{layer}.weight_ih_l0": (4 * out, size), f"layers.{layer}.weight_hh_l0": (4 * out, out)}
        shapes |= {f"layers.{layer}.bias_{gate}_l0": (4 * out,) for gate in ("ih", "hh")}
        size = out
    if not model.tie_weights:
        shapes["decoder.weight"] = (words, size)
    return shapes | {"decoder.bias": (words,)}


def _loss(config: RunConfig, epochs: int) -> float:
    if os.environ.get("STUB_FAULT") == "diverge" and config.train.learning_rate > 0.01:
        return float("nan")
    return 1.5 / epochs + config.model.output_dropout


def _go_wrong(config: RunConfig) -> None:
    some = config.model.output_dropout > 0.25
    match os.environ.get("STUB_FAULT"):
        case "always":
            raise ValueError("a bug in every trial")
        case "sometimes" if some:
            raise ValueError("a bug in some trials")
        case "death":
            os.kill(os.getpid(), 9)
        case "poison" if some:
            os.kill(os.getpid(), 9)
        case "memory" if some:
            _raise_out_of_memory()
        case "memory-once" if _first_time():
            _raise_out_of_memory()
        case "allocate" if some:
            _allocate()
        case "hang" if some:
            time.sleep(1e6)
        case "hang-once" if _first_time():
            time.sleep(1e6)
        case "hold-interpreter" if _first_time():
            ctypes.PyDLL(None).sleep(10_000)  # a library that does not give the interpreter back


def _raise_out_of_memory() -> None:
    raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")  # as torch.OutOfMemoryError does


def _allocate() -> None:
    """Ask for more memory than this process may have."""
    import torch

    used = 4096 * int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28), resource.RLIM_INFINITY))
    try:
        torch.zeros(1 << 30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _first_time() -> bool:
    """Tell whether no process of this test has come here before."""
    try:
        Path(os.environ["STUB_MARK"]).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _at(line: str) -> None:
    """Die at the line that STUB_DIE_AT names, once in a test, as by `kill -9`."""
    if os.environ.get("STUB_DIE_AT") == line and _first_time():
        os.kill(os.getpid(), 9)


def _install_deaths() -> None:
    """Put `_at` into the lines around which a worker may be killed: within a transaction, before its commit."""
    store, claims, files = _open_up(RDBStorage), _open_up(tickets), _open_up(checkpoints)
    claim, ask, replace = claims.claim, store._get_prepared_new_trial, files.replace_file
    report, tell = store.set_trial_intermediate_value, store.set_trial_state_values

    def claimed(*args: Any) -> Any:
        ticket = claim(*args)
        if ticket is not None:
            _at("after-claim")
        return ticket

    def created(*args: Any) -> Any:
        trial = ask(*args)
        _at("mid-ask")
        return trial

    def saved(path: Path, content: bytes) -> None:
        if os.environ.get("STUB_DIE_AT") == "mid-checkpoint":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.draft").write_bytes(content[: len(content) // 2])
        _at("mid-checkpoint")
        replace(path, content)
        _at("after-checkpoint")

    def reported(*args: Any) -> Any:
        _at("mid-report")
        done = report(*args)
        _at("after-report")
        return done

    def ended(*args: Any) -> Any:
        _at("mid-tell")
        done = tell(*args)
        _at("after-tell")
        return done

    claims.claim = claimed
    store._get_prepared_new_trial = created
    files.replace_file = saved
    store.set_trial_intermediate_value = reported
    store.set_trial_state_values = ended


def _open_up(thing: Any) -> Any:
    """Give a module or a class as one whose parts may be replaced."""
    return thing


def _note(config: RunConfig, step: int) -> None:
    """Write each step that is computed into a file, so that a test can count them."""
    if folder := os.environ.get("STUB_NOTES"):
        with (Path(folder) / f"{config.model.output_dropout:.12f}").open("a") as file:
            file.write(f"{step}\n")


def work(words: list[str]) -> None:
    """Be `lmsearch worker` with this trainer."""
    from lmsearch.cli.main import main

    _install_deaths()
    TRAINERS["stub"] = StubTrainer
    main(["worker", *words, "--trainer", "stub"])


if __name__ == "__main__":
    work(sys.argv[1:])
