"""What speaks against a text before a model is trained on it; what cannot be trained on at all is refused elsewhere."""

import re

import numpy as np

from lmsearch.text.corpus import Corpus, Text
from lmsearch.text.statistics import word_counts
from lmsearch.text.vocabulary import EOS, UNK

_MUCH_UNKNOWN = 0.3  # of a split's tokens
_MUCH_LOST = 0.5  # of a text's characters
_NEARLY_ALL = 0.9  # of the lines
_MARK = re.compile(r"<[^<>]+>|\[[^\[\]]+\]")  # a word that is no word of a language: <s>, </s>, <pad>, [SEP]


def judge(corpus: Corpus) -> list[str]:
    """Return what is to be said of a text, a sentence each: where its perplexity would mislead."""
    return [*_unknown(corpus), *_marks(corpus), *_lost(corpus)]


def unknown_share(corpus: Corpus, text: Text) -> float:
    """Return the share of a text's tokens that are `<unk>`."""
    index = corpus.vocabulary.index.get(UNK)
    return 0.0 if index is None else float((np.asarray(text.tokens) == index).mean())


def _unknown(corpus: Corpus) -> list[str]:
    train, valid = unknown_share(corpus, corpus.train), unknown_share(corpus, corpus.valid)
    found = []
    if valid and not train:
        found.append(
            f"{valid:.1%} of the valid split is <unk> and the train split has none, so the model never learns to "
            "predict it: the validation perplexity, by which a search, its pruner and the best epoch go, then tells "
            "how badly it guesses that word; set data.min_count = 2 or more, or data.max_vocabulary"
        )
    if valid > _MUCH_UNKNOWN:
        found.append(
            f"{valid:.1%} of the valid split is <unk>: a low perplexity says little, since that one word is easily "
            "predicted; take more text, or, where its words are not separated by spaces, separate them first"
        )
    return found


def _marks(corpus: Corpus) -> list[str]:
    words, counts = corpus.vocabulary.words, word_counts(corpus, corpus.train)
    lines = int(counts[corpus.vocabulary.index[EOS]]) - corpus.facts.own_eos if EOS in words else 0
    certain = "is predicted with certainty, which lowers the perplexity"
    found = []
    if corpus.facts.own_eos:
        found.append(
            f"the text has {corpus.facts.own_eos:,} words <eos> of its own, and each line gets another at its end, "
            f"which {certain}; take them out"
        )
    if not lines:
        return found
    blank = _blank_lines(corpus)
    marks = [
        word
        for word, count in zip(words, counts, strict=True)
        if count >= _NEARLY_ALL * max(1, lines - blank) and word not in (UNK, EOS) and _MARK.fullmatch(word)
    ]
    if marks:
        found.append(f"nearly every line has {' and '.join(marks)}, which {certain}; lmsearch marks the ends of lines")
    return found


def _blank_lines(corpus: Corpus) -> int:
    ends = np.asarray(corpus.train.tokens) == corpus.vocabulary.index[EOS]
    return int((ends[1:] & ends[:-1]).sum()) - corpus.facts.own_eos


def _lost(corpus: Corpus) -> list[str]:
    lost, characters = corpus.facts.lost, corpus.facts.characters
    if not characters or lost <= _MUCH_LOST * characters:
        return []
    return [
        f"data.normalize drops {lost / characters:.0%} of the text's characters, which are letters of other scripts, "
        'digits or marks; take normalize = "basic", which keeps letters of every script'
    ]
