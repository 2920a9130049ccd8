"""Where a training starts other than at random: from another model's weights, or from embeddings of words.

Shapes: V vocabulary, E embedding.
"""

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lmsearch.errors import ConfigError
from lmsearch.lm.adaptive import AdaptiveDecoder
from lmsearch.lm.model import LanguageModel
from lmsearch.lm.use.trained import TrainedModel
from lmsearch.text.vocabulary import Vocabulary

_SAME = (
    "embedding_size", "hidden_size", "num_layers", "tie_weights", "decoder", "cutoffs", "cell", "mogrifier_rounds",
    "mogrifier_rank",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Initial:
    """What a training starts from: `apply` sets the weights of a new model."""

    apply: Callable[[LanguageModel], None]
    description: str
    words: int  # of the vocabulary that it knows


def initial_model(source: TrainedModel, config_of: LanguageModel, vocabulary: Vocabulary, name: str) -> Initial:
    """Start from another model: all weights, those of a word by the word; words that it does not know stay random.

    `config_of` is a model of the config that is to be trained. Raises `ConfigError` where the two have other sizes.
    """
    for field in _SAME:
        own, given = getattr(config_of.config, field), getattr(source.model.config, field)
        if own != given:
            raise ConfigError(
                f"{name} has model.{field} = {given}, this config {own}: start from a model of equal sizes"
            )
    if isinstance(config_of.decoder, AdaptiveDecoder) and not config_of.config.tie_weights:
        raise ConfigError(
            "an untied adaptive decoder keeps the weights of its words by their frequency: tie the weights"
        )
    index = source.vocabulary.index
    known = [(number, index[word]) for number, word in enumerate(vocabulary.words) if word in index]
    here, there = (torch.tensor(side) for side in zip(*known, strict=True))

    def apply(model: LanguageModel) -> None:
        weights = source.model.weights()
        by_word = {name for name, weight in weights.items() if len(weight) == len(source.vocabulary)}
        with torch.no_grad():
            for own_name, parameter in model.named_parameters():
                given = weights[own_name].to(parameter.device)
                if own_name in by_word:
                    parameter[_rows(model, here)] = given[_rows(source.model, there)]
                elif parameter.shape == given.shape:
                    parameter.copy_(given)

    return Initial(apply=apply, description=name, words=len(known))


def initial_embeddings(path: Path, size: int, vocabulary: Vocabulary) -> Initial:
    """Start from embeddings in a text file, a word and its numbers a line (GloVe; word2vec's with its first line).

    The file may be gzipped. Raises `ConfigError` where a line is not that, or has other than `size` numbers.
    """
    found: dict[int, list[float]] = {}
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                word, *numbers = line.rstrip("\n").rstrip(" ").split(" ")
                if number == 1 and len(numbers) == 1 and numbers[0].isdigit():
                    continue  # of word2vec: how many words, and the width
                if word not in vocabulary.index:
                    continue
                if len(numbers) != size:
                    raise ConfigError(
                        f"line {number} of {path} has {len(numbers)} numbers, and model.embedding_size is {size}"
                    )
                found[vocabulary.index[word]] = [float(one) for one in numbers]
    except (OSError, EOFError, ValueError) as error:
        raise ConfigError(f"{path} is no file of embeddings: {error}") from error
    if not found:
        raise ConfigError(f"{path} has none of the vocabulary's {len(vocabulary):,} words")
    words, rows_WE = torch.tensor(list(found)), torch.tensor(list(found.values()))
    if not bool(rows_WE.isfinite().all()):
        raise ConfigError(f"{path} has a value that is no finite number")

    def apply(model: LanguageModel) -> None:
        weight = model.embedding.weight
        with torch.no_grad():
            weight[_rows(model, words)] = rows_WE.to(weight)

    return Initial(apply=apply, description=str(path), words=len(found))


def _rows(model: LanguageModel, words: Tensor) -> Tensor:
    """Return where the weights of words are."""
    return model.decoder.ranks.cpu()[words] if isinstance(model.decoder, AdaptiveDecoder) else words
