"""A trained model on disk: weights, config, vocabulary and what is known of them; loading runs no code."""

import json
import shutil
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from lmsearch.errors import ConfigError
from lmsearch.files import draft_of, replace_file, sync_folder
from lmsearch.folders import LOOKS, check_replaceable, read_document
from lmsearch.formats import check_stamp, stamp
from lmsearch.lm.model import LanguageModel
from lmsearch.lm.trained import TrainedModel
from lmsearch.losses import json_text
from lmsearch.spec import load_config
from lmsearch.text.vocabulary import Vocabulary


def save_model(
    folder: Path,
    weights: dict[str, Tensor],
    config: dict[str, Any],
    words: Vocabulary,
    metrics: dict[str, Any],
) -> None:
    """Write a model folder whole: `config` is a closed config's tables, its corpus named from this folder.

    A model that is there is replaced; a folder that is no model raises `ConfigError`.
    """
    check_replaceable(folder)
    draft = draft_of(folder)
    draft.mkdir(parents=True)
    try:
        replace_file(draft / "model.safetensors", safetensors.torch.save(weights))
        replace_file(draft / "config.json", json_text(stamp("config") | config, indent=2) + "\n")
        replace_file(draft / "vocabulary.json", json.dumps(words.words, ensure_ascii=False, indent=0) + "\n")
        replace_file(draft / "metrics.json", json_text(stamp("model") | metrics, indent=2) + "\n")
        if (folder / LOOKS).exists():  # these stay, whatever is trained
            shutil.copyfile(folder / LOOKS, draft / LOOKS)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def load(folder: str | Path, device: str = "cpu") -> TrainedModel:
    """Load a model folder onto a device, for use; raises `ConfigError` where it is not one. No code of it is run."""
    return load_model(Path(folder)).to(device)


def load_model(folder: Path) -> TrainedModel:
    """Load a model folder; raises `ConfigError` where it is not one, and `NewerFormatError`."""
    check_stamp("model", f"the model {folder}", read_document(folder / "metrics.json") or {})
    config = load_config(folder / "config.json")
    try:
        vocabulary = Vocabulary(tuple(json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))))
        weights = safetensors.torch.load((folder / "model.safetensors").read_bytes())
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        model = LanguageModel(config.model, len(vocabulary))
        model.set_weights(weights)
    except (OSError, ValueError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{folder} is not a whole model folder: {error}") from error
    model.eval()  # no dropout, unless somebody asks for it
    return TrainedModel(model, vocabulary, config, metrics)
