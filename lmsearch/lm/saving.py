"""A model's folder, written whole. Needs no PyTorch."""

import json
import shutil
from pathlib import Path
from typing import Any

from lmsearch.files import draft_folder, replace_file
from lmsearch.folders import (
    EVALUATIONS,
    MODEL_CONFIG,
    MODEL_METRICS,
    MODEL_VOCABULARY,
    MODEL_WEIGHTS,
    check_replaceable,
)
from lmsearch.formats import stamp
from lmsearch.losses import json_text
from lmsearch.text.vocabulary import Vocabulary


def save_model(
    folder: Path,
    weights: bytes,
    config: dict[str, Any],
    words: Vocabulary,
    metrics: dict[str, Any],
) -> None:
    """Write a model folder whole: `weights` is a safetensors file's content, `config` a closed config's tables, its
    corpus named from this folder.

    A model that is there is replaced; a folder that is no model raises `ConfigError`.
    """
    check_replaceable(folder)
    with draft_folder(folder) as draft:
        replace_file(draft / MODEL_WEIGHTS, weights)
        replace_file(draft / MODEL_CONFIG, json_text(stamp("config") | config, indent=2) + "\n")
        replace_file(draft / MODEL_VOCABULARY, json.dumps(words.words, ensure_ascii=False, indent=0) + "\n")
        replace_file(draft / MODEL_METRICS, json_text(stamp("model") | metrics, indent=2) + "\n")
        if (folder / EVALUATIONS).exists():  # these stay, whatever is trained
            shutil.copyfile(folder / EVALUATIONS, draft / EVALUATIONS)
