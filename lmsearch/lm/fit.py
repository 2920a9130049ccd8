"""One model trained to its end, its best epoch kept on disk, and its state, so that it can be resumed."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import safetensors
import safetensors.torch
import torch

from lmsearch.config import RunConfig, defaults_of
from lmsearch.errors import ConfigError
from lmsearch.files import replace_file
from lmsearch.formats import DamagedError, known_version, seal, unseal
from lmsearch.lm.events import Epoch, Step, TrainState
from lmsearch.lm.initial import Initial
from lmsearch.lm.optimizers import improves
from lmsearch.lm.saving import save_model
from lmsearch.lm.train import train
from lmsearch.text.corpus import Corpus
from lmsearch.version import __version__

MAY_CHANGE = ("train.learning_rate", "train.epochs", "train.patience")
"""What may change when a training is resumed."""


class TrainingStoppedError(Exception):
    """The training was asked to stop: it is saved at the step it was at."""


@dataclass(frozen=True, kw_only=True)
class TrainingFiles:
    """The files that a training makes."""

    folder: Path  # of the model of the best epoch so far

    @property
    def state(self) -> Path:
        """Return the file to resume the training from, beside the model, which is complete without it."""
        return self.folder.with_name(f"{self.folder.name}.training")


def fit(
    config: RunConfig,
    corpus: Corpus,
    device: torch.device,
    files: TrainingFiles,
    tables: dict[str, Any],
    state: TrainState | None = None,
    stopped: Callable[[], bool] = lambda: False,
    tell: Callable[[Step], None] = lambda step: None,
    initial: Initial | None = None,
) -> Iterator[Epoch]:
    """Train a model, giving each epoch; `files` then hold the model of the best so far, and the state.

    `tables` is the config as the folder shall have it, its corpus named from there. Where `stopped` says so, the
    state is saved at the next step and `TrainingStoppedError` raised; `tell` is called with each step. A new training
    starts from `initial`, which the model's metrics name.
    """
    losses = [] if state is None else [float(loss) for loss in state.progress["valid_losses"]]
    began = __version__ if state is None else writer_of(state)
    origin = {"config": comparable(config), "corpus": corpus.fingerprint, "defaults": began}
    changes = [] if state is None else state.progress.get("changes", [])
    changed: dict[str, Any] = {"changes": changes} if changes else {}  # of settings, when the training was resumed
    start = initial.description if initial is not None else None if state is None else state.progress.get("initial")
    changed |= {} if start is None else {"initial": start}
    for event in train(config, corpus, device, state, None if initial is None else initial.apply):
        if isinstance(event, Epoch):
            if improves(losses, event.valid_loss):
                metrics = {
                    "valid_loss": event.valid_loss,
                    "valid_known_loss": event.valid_known_loss,
                    "perplexity": event.valid_perplexity,
                    "epoch": event.number,
                    "corpus": corpus.fingerprint,
                    "digest": config.digest(corpus.fingerprint),
                }
                weights = safetensors.torch.save(event.weights())
                save_model(files.folder, weights, tables, corpus.vocabulary, metrics | changed)
            losses.append(event.valid_loss)
            _save(files, event.state(), origin | changed)
            yield event
        elif stopped():
            _save(files, event.state(), origin | changed)
            raise TrainingStoppedError
        else:
            tell(event)
        if stopped():
            raise TrainingStoppedError


@contextlib.contextmanager
def alone(files: TrainingFiles) -> Iterator[None]:
    """Let no other process train in this folder; raises `ConfigError` where one does."""
    lock = filelock.FileLock(files.folder.with_name(f".{files.folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise ConfigError(f"another process trains in {files.folder}; give this training another --name") from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _save(files: TrainingFiles, state: TrainState, provenance: dict[str, Any]) -> None:
    content = TrainState(state.progress | provenance, state.tensors).to_bytes()
    replace_file(files.state, seal("training state", content))


def read_state(
    files: TrainingFiles, config: RunConfig, corpus: Corpus, may_change: tuple[str, ...] = MAY_CHANGE
) -> TrainState:
    """Read how far a training is, to resume it with `config`; raises `ConfigError` where that is another training's."""
    try:
        state = _unsealed(files.state)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no training to resume in {files.folder}; leave --resume out") from error
    except (OSError, ValueError, KeyError, TypeError, DamagedError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{files.state} is damaged ({error}); start a new one under another --name") from error
    # What a training of an earlier lmsearch does not name was as that version had it.
    old, new = defaults_of(writer_of(state)) | state.progress["config"], comparable(config)
    old = json.loads(json.dumps(old))
    if state.progress["corpus"] != corpus.fingerprint:
        raise ConfigError(
            f"the training in {files.folder} was started on a text with the fingerprint {state.progress['corpus']}, "
            f"here is {corpus.description} with {corpus.fingerprint}"
        )
    for path in sorted(new):
        if path not in may_change and old.get(path) != new[path]:
            may = f"; only {', '.join(may_change)} may change when it is resumed" if may_change else ""
            remedy = "resume it with --resume, or " if path in MAY_CHANGE and not may_change else ""
            raise ConfigError(
                f"the training in {files.folder} was started with {path} = {old.get(path)}, now it is {new[path]}: "
                f"{remedy}give it another --name{may}"
            )
    changed = {path: [old[path], new[path]] for path in MAY_CHANGE if old[path] != new[path]}
    if not changed:
        return state
    progress = dict(state.progress)
    progress["changes"] = [*progress.get("changes", []), {"after_epoch": len(progress["valid_losses"])} | changed]
    if "train.learning_rate" in changed:
        progress |= {"learning_rate": config.train.learning_rate, "stale": 0}
    return replace(state, progress=progress)


def _unsealed(path: Path) -> TrainState:
    """Read a state; the first format was 32 bytes of checksum and the content, without a number."""
    stored = path.read_bytes()
    if stored.startswith(b"lmsearch-"):
        return TrainState.from_bytes(unseal("training state", f"the training in {path}", stored)[1])
    digest, content = stored[:32], stored[32:]
    if hashlib.sha256(content).digest() != digest:
        raise DamagedError("its checksum is another")
    return TrainState.from_bytes(content)


def writer_of(state: TrainState) -> str:
    """Return the lmsearch version that started a training."""
    return known_version(state.progress.get("defaults"))


def started_with(files: TrainingFiles) -> str:
    """Return the version whose defaults hold in a training that is there, today's where none can be read."""
    try:
        return writer_of(_unsealed(files.state))
    except (OSError, ValueError, KeyError, TypeError, DamagedError, safetensors.SafetensorError):
        return __version__  # whoever resumes it says what is wrong


def comparable(config: RunConfig) -> dict[str, Any]:
    """Return the settings by dotted path, but for where the text lies: it may have moved."""
    values: dict[str, Any] = json.loads(json.dumps(config.by_path()))
    del values["data.corpus"]
    return values
