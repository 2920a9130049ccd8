"""Where text comes from: the embedded corpus and folders of text files."""

import hashlib
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from lmsearch.config import BUILT_IN_CORPORA
from lmsearch.errors import CorpusError, nearest

SPLITS = ("train", "valid", "test")

_SUFFIXES = (".txt", ".tokens")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Line = tuple[bool, list[str]]
"""Whether an article begins here, and the words of one paragraph, without `<eos>`."""


class Reader(Protocol):
    """Something that gives the lines of each split, as often as it is asked."""

    def describe(self) -> str:
        """Name the text for a person."""
        ...

    def digest(self) -> str:
        """Give a hash of the text, so that a changed text is noticed."""
        ...

    def splits(self) -> tuple[str, ...]:
        """List the splits there are: train and valid, and test where there is one."""
        ...

    def lines(self, split: str) -> Iterator[Line]:
        """Give the lines of one split; raises `CorpusError` for text that cannot be read."""
        ...


def open_reader(corpus: str) -> Reader:
    """Find the reader for a built-in name or a path."""
    if corpus == "python-docs":
        return PythonDocs()
    path = Path(corpus)
    if not _may_look(path):
        raise CorpusError(f"the corpus {path} cannot be read: permission denied")
    if path.is_dir():
        return TextFolder(path)
    if path.exists():
        raise CorpusError(f"the corpus {path} is a file; a folder with train.txt and valid.txt is needed")
    raise CorpusError(
        f"there is no corpus {path.name!r}: no folder {path}, and built in are: {', '.join(BUILT_IN_CORPORA)}"
        + (nearest(path.name, BUILT_IN_CORPORA) if "did you mean" in nearest(path.name, BUILT_IN_CORPORA) else "")
    )


def _may_look(path: Path) -> bool:
    try:
        path.exists()
    except OSError:
        return False
    return True


class PythonDocs:
    """The topics of the standard library's `pydoc_data`: what `help()` shows, in every CPython.

    A fifth of that text stands in several topics, so a split by topic alone would leak: a paragraph that was
    seen before is dropped, in the order of the SHA-1 of the topics' names.
    """

    def __init__(self) -> None:
        self._splits: dict[str, list[Line]] | None = None

    def describe(self) -> str:
        """Name the text and the Python that it belongs to."""
        return f"python-docs of Python {platform.python_version()}"

    def digest(self) -> str:
        """Hash the topics' text."""
        return hashlib.sha256(repr(sorted(_topics().items())).encode()).hexdigest()

    def splits(self) -> tuple[str, ...]:
        """List all three."""
        return SPLITS

    def lines(self, split: str) -> Iterator[Line]:
        """Give the paragraphs of one split, topic by topic."""
        if self._splits is None:
            self._splits = _split_topics(_topics())
        return iter(self._splits[split])


def _topics() -> dict[str, str]:
    # Imported on use: 0.7 MB of text that most commands never need.
    from pydoc_data.topics import topics

    return topics


def _split_topics(topics: dict[str, str]) -> dict[str, list[Line]]:
    articles = _unique_articles(topics)
    total = sum(len(words) + 1 for article in articles for words in article)
    split_lines: dict[str, list[Line]] = {split: [] for split in SPLITS}
    before = 0
    for article in articles:
        share = before / total
        split = "valid" if share < 0.1 else "test" if share < 0.2 else "train"
        split_lines[split] += [(number == 0, words) for number, words in enumerate(article)]
        before += sum(len(words) + 1 for words in article)
    return split_lines


def _unique_articles(topics: dict[str, str]) -> list[list[list[str]]]:
    seen: set[str] = set()
    articles = []
    for name in sorted(topics, key=lambda name: hashlib.sha1(name.encode()).hexdigest()):
        article = []
        for block in re.split(r"\n\s*\n", topics[name]):
            paragraph = " ".join(block.split())
            if paragraph and paragraph not in seen:
                seen.add(paragraph)
                article.append(re.findall(r"\w+|[^\w\s]", paragraph))
        if article:
            articles.append(article)
    return articles


class TextFolder:
    """A folder with `train`, `valid` and perhaps `test`, as `.txt` or `.tokens`; a line is a paragraph."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = {split: file for split in SPLITS if (file := self._find(split))}
        for split in ("train", "valid"):
            if split not in self._files:
                raise CorpusError(f"the corpus {folder} has no {split}.txt or {split}.tokens")

    def _find(self, split: str) -> Path | None:
        found = [path for suffix in _SUFFIXES if (path := self.folder / f"{split}{suffix}").is_file()]
        if len(found) > 1:
            raise CorpusError(f"the corpus {self.folder} has both {found[0].name} and {found[1].name}")
        return found[0] if found else None

    def describe(self) -> str:
        """Name the folder."""
        return str(self.folder)

    def digest(self) -> str:
        """Hash the files' bytes."""
        total = hashlib.sha256()
        for split, path in self._files.items():
            with path.open("rb") as file:
                total.update(f"{split} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return total.hexdigest()

    def splits(self) -> tuple[str, ...]:
        """List the splits there is a file for."""
        return tuple(self._files)

    def lines(self, split: str) -> Iterator[Line]:
        """Give the lines of one file, blank ones too; words are what white space separates."""
        path = self._files[split]
        offset = 0
        with path.open("rb") as file:
            for number, raw in enumerate(file):
                content = raw.removeprefix(_BYTE_ORDER_MARK) if number == 0 else raw
                try:
                    words = content.decode("utf-8").split()
                except UnicodeDecodeError as error:
                    position = offset + len(raw) - len(content) + error.start
                    raise CorpusError(f"{path} is not UTF-8: byte {position} cannot be read") from error
                offset += len(raw)
                yield number == 0, words
