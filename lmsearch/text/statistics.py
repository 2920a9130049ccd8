"""What a person wants to know of a corpus before a model is trained on it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmsearch.text.corpus import Corpus, Text
from lmsearch.text.vocabulary import EOS, UNK


@dataclass(frozen=True, kw_only=True)
class SplitFacts:
    """One split in figures."""

    split: str
    tokens: int  # `<eos>` included
    articles: int
    unknown: float  # the share of tokens that are `<unk>`
    distinct: int  # words that occur


def split_facts(corpus: Corpus) -> list[SplitFacts]:
    """Return the statistics of each split there is."""
    texts = {"train": corpus.train, "valid": corpus.valid, "test": corpus.test}
    return [_facts(corpus, split, text) for split, text in texts.items() if text is not None]


def _facts(corpus: Corpus, split: str, text: Text) -> SplitFacts:
    counts = word_counts(corpus, text)
    return SplitFacts(
        split=split,
        tokens=len(text.tokens),
        articles=len(text.article_starts),
        unknown=float(counts[corpus.vocabulary.index[UNK]] / len(text.tokens)),
        distinct=int((counts > 0).sum()),
    )


def word_counts(corpus: Corpus, text: Text) -> npt.NDArray[np.int64]:
    """Count each word of the vocabulary in a text."""
    return np.bincount(text.tokens, minlength=len(corpus.vocabulary)).astype(np.int64)


def most_frequent(corpus: Corpus, count: int) -> list[tuple[str, int]]:
    """Return the most frequent words of the train split, with how often each occurs."""
    counts = word_counts(corpus, corpus.train)
    order = np.argsort(-counts, kind="stable")[:count]
    return [(corpus.vocabulary.words[index], int(counts[index])) for index in order]


def first_lines(corpus: Corpus, text: Text, count: int, longest: int = 60) -> list[str]:
    """Return the first lines of a text that have words, as a model sees them, each cut after `longest` words."""
    lines: list[str] = []
    words: list[str] = []
    for token in text.tokens[: 1 << 16]:
        word = corpus.vocabulary.words[token]
        if word != EOS:
            words.append(word)
            continue
        if words:
            lines.append(" ".join(words[:longest]) + (" …" if len(words) > longest else ""))
        words = []
        if len(lines) == count:
            break
    return lines or [" ".join(words[:longest])]
