"""What is done to the lines of a text before its words are counted: normalisation, and where articles begin."""

import re
import unicodedata
from collections.abc import Callable

from lmsearch.text.vocabulary import UNK

Words = Callable[[str], list[str]]
"""Returns the words of one line."""


class _SpacedMarks(dict[int, str]):
    """A table for `str.translate` that puts spaces around punctuation and symbols, learnt as characters come."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        marked = unicodedata.category(character)[0] in "PS"
        self[code] = f" {character} " if marked else character
        return self[code]


_spaced = _SpacedMarks()


def basic_words(line: str) -> list[str]:
    """Return the words of a line in lower case, each mark of punctuation a word; letters of every script stay whole."""
    parts = line.lower().translate(_spaced).split(f" < {UNK[1:-1]} > ")  # `<unk>` is a word, not three
    return f" {UNK} ".join(parts).split() if len(parts) > 1 else parts[0].split()


def tutorial_words(line: str) -> list[str]:
    """Return the words of a line as PyTorch's seq2seq tutorial does: a space before `.!?`, other non-letters one space.

    Its comment says that it lower-cases too; its code does not.
    """
    spaced = re.sub(r"([.!?])", r" \1", line)
    return re.sub(r"[^a-zA-Z.!?]+", r" ", spaced).split()


NORMALIZE: dict[str, Words] = {"none": str.split, "basic": basic_words, "tutorial": tutorial_words}
"""How, by what `data.normalize` names."""

LOSSY = ("tutorial",)
"""Those that drop characters: what they leave of a text is counted."""


class Headings:
    """Tells where articles begin in the way of WikiText: at ` = Title = ` after a blank line, and at the start."""

    def __init__(self) -> None:
        self._after_blank = True
        self._has_words = False  # the article so far; blank lines before a first heading are not one

    def begins(self, line: str) -> bool:
        """Whether an article begins with the next line of a text."""
        words = line.split()
        begins = self._after_blank and self._has_words and _is_title(words)
        self._has_words |= bool(words)
        self._after_blank = not words
        return begins


def _is_title(words: list[str]) -> bool:
    return len(words) > 2 and words[0] == words[-1] == "=" and words[1] != "=" and words[-2] != "="
