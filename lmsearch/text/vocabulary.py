"""Words and their indices."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lmsearch.errors import CorpusError

UNK = "<unk>"
EOS = "<eos>"


@dataclass(frozen=True)
class Vocabulary:
    """The words a model knows, by index; every other word is `<unk>`."""

    words: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def index(self) -> dict[str, int]:
        """Return the index of each word."""
        return {word: number for number, word in enumerate(self.words)}

    def encode(self, words: Iterable[str]) -> list[int]:
        """Return the indices of words, unknown ones as that of `<unk>`."""
        index, unknown = self.index, self.index[UNK]
        return [index.get(word, unknown) for word in words]


def read_vocabulary(path: Path) -> Vocabulary:
    """Read a file with a word a line; `<unk>` and `<eos>` come in front where it lacks them. Raises `CorpusError`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"the vocabulary {path} cannot be read: {error}") from error
    words = text.removesuffix("\n").split("\n")
    for number, word in enumerate(words, 1):
        if not word or word.split() != [word]:
            raise CorpusError(f"line {number} of the vocabulary {path} is not one word: {word!r}")
    twice = [word for word, count in Counter(words).items() if count > 1]
    if twice:
        raise CorpusError(f"the vocabulary {path} has {twice[0]!r} twice")
    return Vocabulary((*(word for word in (UNK, EOS) if word not in words), *words))


def build_vocabulary(counts: Counter[str], min_count: int | None, max_vocabulary: int) -> Vocabulary:
    """Keep the words that occur often enough, in order of appearance.

    `counts` holds the train split's words in that order. `<unk>` and `<eos>` are always kept, `<unk>` in front
    unless the text has it itself. Where `min_count` is None it is 1 if the text has `<unk>`, so that a model learns
    what stands for unknown words, else 2. `max_vocabulary` (0: no limit) counts them and keeps the most frequent
    words, of equally frequent ones the earlier.
    """
    if min_count is None:
        min_count = 1 if counts[UNK] else 2
    kept = [word for word, count in counts.items() if count >= min_count or word in (UNK, EOS)]
    if UNK not in counts:
        kept.insert(0, UNK)
    if max_vocabulary and len(kept) > max_vocabulary:
        ranked = sorted(kept, key=lambda word: (word not in (UNK, EOS), -counts[word]))
        chosen = set(ranked[:max_vocabulary])
        kept = [word for word in kept if word in chosen]
    return Vocabulary(tuple(kept))
