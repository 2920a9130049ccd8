"""A trained model on disk: weights, config, vocabulary and what is known of them; loading runs no code."""

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lmsearch.config import RunConfig
from lmsearch.errors import ConfigError
from lmsearch.escapes import is_text
from lmsearch.folders import MODEL_CONFIG, MODEL_FILES, MODEL_METRICS, MODEL_VOCABULARY, MODEL_WEIGHTS
from lmsearch.formats import check_stamp
from lmsearch.lm.model import LanguageModel
from lmsearch.lm.use.trained import TrainedModel
from lmsearch.study.reading import load_config
from lmsearch.text.vocabulary import EOS, UNK, Vocabulary


def load(folder: str | Path, device: str = "cpu") -> TrainedModel:
    """Load a model folder onto a device, for use; raises `ConfigError` where it is not one. No code of it is run."""
    return load_model(Path(folder)).to(device)


def load_model(folder: Path) -> TrainedModel:
    """Load a model folder; raises `ConfigError` where it is not one, and `NewerFormatError`."""
    try:
        for name in MODEL_FILES:
            if (folder / name).exists() and not (folder / name).is_file():
                raise ConfigError(f"{folder} is not a whole model folder: {name} is no file")
        metrics = _read_json(folder / MODEL_METRICS, dict)
        check_stamp("model", f"the model {folder}", metrics)
        config = load_config(folder / MODEL_CONFIG)
        vocabulary = _read_vocabulary(folder / MODEL_VOCABULARY)
        weights = safetensors.torch.load((folder / MODEL_WEIGHTS).read_bytes())
        model = _build(config, vocabulary, weights)
    except (OSError, ValueError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{folder} is not a whole model folder: {error}") from error
    return TrainedModel(model, vocabulary, config, metrics)


def _build(config: RunConfig, vocabulary: Vocabulary, weights: dict[str, Tensor]) -> LanguageModel:
    """Make the model of a config with these weights, which are looked at before it takes any memory."""
    with torch.device("meta"):
        wanted = LanguageModel(config.model, len(vocabulary), torch.empty(len(vocabulary), dtype=torch.int64)).weights()
    for name, like in wanted.items():
        if name not in weights:
            raise ValueError(f"the weights lack {name}")
        if weights[name].shape != like.shape:
            raise ValueError(
                f"{name} is of shape {tuple(weights[name].shape)}, and its config wants {tuple(like.shape)}"
            )
        if not like.is_floating_point():
            if not torch.equal(weights[name].sort().values, torch.arange(len(vocabulary))):
                raise ValueError(f"{name} is not an order of the words")
        elif not weights[name].is_floating_point() or not bool(weights[name].isfinite().all()):
            raise ValueError(f"{name} has values that are no finite numbers")
    model = LanguageModel(config.model, len(vocabulary), weights.get("decoder.ranks"), vocabulary.index[EOS])
    model.set_weights(weights)
    model.eval()  # no dropout, unless somebody asks for it
    return model


def _read_json(path: Path, kind: type) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path.name} is nested too deeply") from error
    if not isinstance(found, kind):
        raise ValueError(f"{path.name} is no {'object' if kind is dict else 'list'}")
    return found


def _read_vocabulary(path: Path) -> Vocabulary:
    words = _read_json(path, list)
    if not all(isinstance(word, str) for word in words):
        raise ValueError(f"{path.name} has something in it that is no word")
    if any(not word or not is_text(word) for word in words):
        raise ValueError(f"{path.name} has a word that is empty, or no text")
    if len(set(words)) < len(words):
        raise ValueError(f"{path.name} has a word twice")
    for word in (UNK, EOS):
        if word not in words:
            raise ValueError(f"{path.name} has no {word}")
    return Vocabulary(tuple(words))
