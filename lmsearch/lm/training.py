"""A closed config trained with one or several seeds, each model in a folder of its own: `lmsearch train` in Python."""

import json
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lmsearch.config import FIELD_TYPES, RunConfig
from lmsearch.errors import ConfigError, SearchFailedError
from lmsearch.folders import MODEL_CONFIG, MODEL_METRICS, check_new_name, make_folder, read_document, study_folder
from lmsearch.lm.device import open_device
from lmsearch.lm.events import Epoch, Step, TrainState
from lmsearch.lm.fit import TrainingFiles, alone, comparable, fit, read_state, started_with
from lmsearch.lm.initial import Initial, initial_embeddings, initial_model
from lmsearch.lm.model import LanguageModel
from lmsearch.lm.use.trained import TrainedModel
from lmsearch.losses import perplexity
from lmsearch.spelling import nearest
from lmsearch.study.closed import config_tables
from lmsearch.study.reading import load_config, parse_assignment
from lmsearch.text.corpus import Corpus, Progress, cache_folder, check_lengths, open_corpus
from lmsearch.text.judgement import judge, unknown_share


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What is to be trained, and where its models go."""

    config: Path
    name: str | None = None  # of the folder under runs/; None: the config's study, otherwise its file name
    seeds: int = 1
    epochs: int | None = None  # instead of the config's
    changes: tuple[str, ...] = ()  # NAME=VALUE
    resume: bool = False
    device: str = "auto"
    allow_pickle: bool = False  # for a corpus of object arrays
    folder: Path | None = None  # of the one model, where it is not to be one of runs/NAME
    embeddings: Path | None = None  # a text file of embeddings to start from

    def resume_words(self) -> list[str]:
        """Return the command that resumes the training."""
        words = ["lmsearch", "train", str(self.config)]
        words += [] if self.name is None else ["--name", self.name]
        words += [] if self.seeds == 1 else ["--seeds", str(self.seeds)]
        words += [] if self.epochs is None else ["--epochs", str(self.epochs)]
        words += [word for change in self.changes for word in ("--set", change)]
        words += [] if self.device == "auto" else ["--device", self.device]
        words += ["--allow-pickle"] if self.allow_pickle else []
        return [*words, "--resume"]  # what it started from is in its state


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What one training reached."""

    seed: int
    perplexity: float
    epoch: int  # the best, whose model is kept
    model: Path
    known_perplexity: float | None  # of the known words alone; None where no word is unknown

    def document(self) -> dict[str, Any]:
        """Return it as plain values."""
        fields = {"seed": self.seed, "perplexity": self.perplexity, "epoch": self.epoch, "model": str(self.model)}
        return fields | ({} if self.known_perplexity is None else {"known_perplexity": self.known_perplexity})


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training, checked and ready to run."""

    config: RunConfig
    corpus: Corpus
    device: torch.device
    files: TrainingFiles
    state: TrainState | None  # what it resumes from; None: it starts
    losses: list[float] = field(default_factory=list)  # validation losses, nats per token, by epoch
    initial: Initial | None = None

    def run(self, stopped: Callable[[], bool], tell: Callable[[Step], None]) -> Iterator[Epoch]:
        """Train, giving each epoch; raises `TrainingStoppedError` where `stopped` said so, once it is saved."""
        make_folder(self.files.folder.parent)
        tables = config_tables(self.config, self.files.folder)
        with alone(self.files):
            for epoch in fit(
                self.config, self.corpus, self.device, self.files, tables, self.state, stopped, tell, self.initial
            ):
                self.losses.append(epoch.valid_loss)
                yield epoch

    def result(self) -> TrainResult:
        """Return what an ended training reached; raises `SearchFailedError` where it diverged."""
        losses, size = self.losses, len(self.corpus.vocabulary)
        number = min(range(len(losses)), key=lambda index: (math.isnan(losses[index]), losses[index])) + 1
        if not (best := perplexity(losses[number - 1])) < size:
            raise SearchFailedError(
                f"the training in {self.files.folder} diverged: no epoch is better than a guess among {size:,} words "
                f"(perplexity {size:,}); lower train.learning_rate"
            )
        known = (read_document(self.files.folder / MODEL_METRICS) or {}).get("valid_known_loss")
        has_known = isinstance(known, float) and unknown_share(self.corpus, self.corpus.valid)
        return TrainResult(
            seed=self.config.train.seed,
            perplexity=best,
            epoch=number,
            model=self.files.folder,
            known_perplexity=perplexity(known) if has_known and isinstance(known, float) else None,
        )


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The trainings of a request, all checked before the first begins."""

    corpus: Corpus
    device: torch.device
    trainings: tuple[Training, ...]
    remarks: tuple[str, ...]  # what a person should know of the text
    recorded_perplexity: float | None  # what a best-config.json says that it reached
    initial: Initial | None = None


def prepare_training(
    request: TrainRequest, progress: Progress | None = None, source: tuple[str, TrainedModel] | None = None
) -> Prepared:
    """Check a request and open its corpus; raises `LmsearchError`, also before an earlier model is overwritten.

    `source` is a model to start from, with what it is called.
    """
    first, recorded = load_config(request.config), _recorded_result(request.config)
    name = request.name or recorded.get("study") or request.config.stem
    check_new_name(name)
    closed = _changed(first, request)
    if request.resume:  # what its file does not give is as it was when the training began
        began = started_with(_files(name, request, closed.train.seed))
        closed = _changed(load_config(request.config, began), request)
    device = open_device(request.device)
    corpus = open_corpus(closed.data, cache_folder(), allow_pickle=request.allow_pickle, progress=progress)
    check_lengths(corpus, closed.train)
    closed.model.check_vocabulary(len(corpus.vocabulary))
    initial = _initial(closed, request, corpus, source)
    trainings = []
    for number in range(request.seeds):
        config = replace(closed, train=replace(closed.train, seed=closed.train.seed + number))
        files = _files(name, request, config.train.seed)
        state = _state(files, config, corpus, request.resume)
        losses = [] if state is None else [float(loss) for loss in state.progress["valid_losses"]]
        start = initial if state is None else None
        training = Training(
            config=config, corpus=corpus, device=device, files=files, state=state, losses=losses, initial=start
        )
        trainings.append(training)
    return Prepared(
        corpus=corpus,
        device=device,
        trainings=tuple(trainings),
        remarks=(*_another_text(recorded, corpus), *judge(corpus)),
        recorded_perplexity=None if initial is not None else recorded.get("perplexity"),
        initial=initial,
    )


def _initial(
    config: RunConfig, request: TrainRequest, corpus: Corpus, source: tuple[str, TrainedModel] | None
) -> Initial | None:
    """Return what a training is to start from. Raises `ConfigError` where it does not fit the config."""
    if source is not None and request.embeddings is not None:
        raise ConfigError("--from gives all weights, the embeddings too: leave --embeddings out")
    if request.embeddings is not None:
        return initial_embeddings(request.embeddings, config.model.embedding_size, corpus.vocabulary)
    if source is None:
        return None
    with torch.device("meta"):
        model = LanguageModel(config.model, len(corpus.vocabulary))
    return initial_model(source[1], model, corpus.vocabulary, source[0])


def summary(results: list[TrainResult]) -> dict[str, Any]:
    """Return mean and standard deviation (of a sample) over seeds; of one seed also where its model is."""
    values = [result.perplexity for result in results]
    found = {
        "perplexity": statistics.mean(values),
        "deviation": None if len(values) < 2 else statistics.stdev(values),
    }
    documents = [result.document() for result in results]
    return (documents[0] if len(results) == 1 else {}) | found | {"seeds": documents}


def _files(name: str, request: TrainRequest, seed: int) -> TrainingFiles:
    return TrainingFiles(folder=request.folder or study_folder(name) / f"seed-{seed}")


def _changed(config: RunConfig, request: TrainRequest) -> RunConfig:
    values: dict[str, Any] = dict(config.by_path())
    for text in request.changes:
        path, value = parse_assignment(text, "--set ", "train.learning_rate=0.002")
        if path not in FIELD_TYPES:
            raise ConfigError(f"unknown name {path}{nearest(path, FIELD_TYPES)}")
        values[path] = value
    if request.epochs is not None:
        values["train.epochs"] = request.epochs
    return RunConfig.from_paths(values)


def _state(files: TrainingFiles, config: RunConfig, corpus: Corpus, resume: bool) -> TrainState | None:
    """Return the state that a training resumes from, None where it starts; refuse to overwrite another one."""
    if files.folder.parent.is_dir():
        with alone(files):  # one that is at work is not one that has stopped
            pass
    if resume:
        return read_state(files, config, corpus) if files.state.exists() else None
    if files.state.exists():
        done = len(read_state(files, config, corpus, may_change=()).progress["valid_losses"])
        if done < config.train.epochs:
            raise ConfigError(
                f"the training in {files.folder} stopped in epoch {done + 1} of {config.train.epochs}; resume it "
                "with --resume, or start a new one under another --name"
            )
    elif files.folder.exists() and comparable(load_config(files.folder / MODEL_CONFIG)) != comparable(config):
        raise ConfigError(f"{files.folder} has a model of another config; use another --name")
    return None


def _recorded_result(config: Path) -> dict[str, Any]:
    """Return what a best-config.json says about itself; nothing for other files."""
    if config.suffix != ".json":
        return {}
    tables = json.loads(config.read_text(encoding="utf-8-sig"))
    result, provenance = tables.get("result"), tables.get("provenance")
    recorded: dict[str, Any] = {"corpus": provenance.get("corpus") if isinstance(provenance, dict) else None}
    if isinstance(result, dict):
        if isinstance(result.get("study"), str):
            recorded["study"] = result["study"]
        if isinstance(result.get("perplexity"), int | float):
            recorded["perplexity"] = result["perplexity"]
    return recorded


def _another_text(recorded: dict[str, Any], corpus: Corpus) -> Iterator[str]:
    found = recorded.get("corpus")
    if isinstance(found, dict) and found and found.get("fingerprint") != corpus.fingerprint:
        yield (
            f"this config was found on {found.get('description')} (fingerprint {found.get('fingerprint')}), here is "
            f"{corpus.description} (fingerprint {corpus.fingerprint}): perplexities cannot be compared"
        )
