"""Small things that tests are made of: they hide what does not matter and show what does."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmsearch.config import RunConfig, Value
from lmsearch.study.reading import parse_study
from lmsearch.study.spec import StudySpec
from lmsearch.text.corpus import Corpus, Text
from lmsearch.text.vocabulary import Vocabulary

SMALL: dict[str, Value] = {
    "data.corpus": "python-docs",
    "data.shuffle_articles": False,
    "model.embedding_size": 6,
    "model.hidden_size": 8,
    "model.num_layers": 1,
    "model.tie_weights": True,
    "train.batch_size": 4,
    "train.eval_batch_size": 3,
    "train.bptt": 7,
    "train.epochs": 2,
    "train.learning_rate": 0.01,
}

TINY_STUDY = """
format = 1
[study]
trials = 3
sampler = "random"
pruner = "none"
[data]
corpus = "corpus"
[model]
embedding_size = 6
hidden_size = 6
num_layers = 1
output_dropout = { low = 0.0, high = 0.5, grid = [0.1, 0.2] }
tie_weights = { choices = [true, false] }
[train]
learning_rate = { low = 1e-3, high = 1e-1, log = true, grid = [0.01] }
batch_size = 4
eval_batch_size = 4
bptt = 8
epochs = 3
"""


def make_run(**changes: Any) -> RunConfig:
    """Make a small run; `model__tie_weights=False` changes `model.tie_weights`."""
    return RunConfig.from_paths(SMALL | {name.replace("__", "."): value for name, value in changes.items()})


def make_corpus(tokens: int = 200, words: int = 12, seed: int = 0, article_starts: Sequence[int] = (0,)) -> Corpus:
    """Make a corpus of random tokens."""
    rng = np.random.default_rng(seed)

    def text(size: int) -> Text:
        starts = np.array(article_starts, dtype=np.int64)
        return Text(rng.integers(0, words, size).astype(np.int32), starts[starts < size])

    names = ("<unk>", "<eos>", *(f"w{i}" for i in range(words - 2)))
    return Corpus("made up", "0123", Vocabulary(names), text(tokens), text(tokens // 2), None)


def write_corpus(folder: Path, lines: int = 60, seed: int = 0) -> Path:
    """Write a folder of text in which each word hints at the next, so that there is something to learn."""
    rng = random.Random(seed)
    words = [f"word{i}" for i in range(12)]
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", lines), ("valid", lines // 3), ("test", lines // 3)):
        text = []
        for _ in range(count):
            at = rng.randrange(12)
            line = []
            for _ in range(10):
                at = (at + 1) % 12 if rng.random() < 0.8 else rng.randrange(12)
                line.append(words[at])
            text.append(" ".join(line))
        (folder / f"{split}.txt").write_text("\n".join(text) + "\n")
    return folder


def save_articles(path: Path, articles: Sequence[Any]) -> None:
    """Save one array of indices an article in an array of objects, which only pickle can read."""
    stored = np.empty(len(articles), dtype=object)
    for number, article in enumerate(articles):
        stored[number] = np.asarray(article)
    np.save(path, stored)


def write_study(folder: Path, text: str = TINY_STUDY, name: str = "tiny.toml") -> Path:
    """Write a study file with its corpus beside it."""
    write_corpus(folder / "corpus")
    path = folder / name
    path.write_text(text)
    return path


def make_spec(folder: Path, text: str = TINY_STUDY) -> StudySpec:
    """Read a study's text as if it stood in `folder`."""
    return parse_study(text, folder)
