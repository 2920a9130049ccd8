"""Where text comes from: the embedded corpus, folders and single files of text, and arrays of indices."""

import contextlib
import gzip
import hashlib
import itertools
import platform
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol, cast

from lmsearch.config import BUILT_IN_CORPORA, DataConfig
from lmsearch.errors import ConfigError, CorpusError, nearest
from lmsearch.text.arrays import ArrayFolder
from lmsearch.text.fetch import DATASETS, fetched
from lmsearch.text.lines import NORMALIZE, Headings
from lmsearch.text.vocabulary import EOS

SPLITS = ("train", "valid", "test")

_SUFFIXES = (".txt", ".tokens", ".txt.gz", ".tokens.gz")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LONGEST_PIECE = 1 << 20  # bytes of a line that are held at once

Line = tuple[bool, list[str]]
"""Whether an article begins here, and the words of one paragraph with `<eos>` at its end, or part of a long one."""


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


def open_reader(data: DataConfig, corpus: str, cache: Path, allow_pickle: bool = False) -> Reader | ArrayFolder:
    """Find the reader for a built-in name or a path; a built-in text that is not there yet is fetched."""
    if corpus == "python-docs":
        _refuse(data, "python-docs", "split", "articles", "normalize")
        return PythonDocs()
    if corpus in DATASETS:
        _refuse(data, corpus, "split")
        return TextFolder(fetched(corpus, cache), data, name=corpus)
    path = Path(corpus)
    try:
        found = path.is_dir() or path.exists()
    except OSError as error:
        raise CorpusError(f"the corpus {path} cannot be read: permission denied") from error
    if not found:
        raise CorpusError(
            f"there is no corpus {path.name!r}: no file or folder {path}, and built in are: "
            f"{', '.join(BUILT_IN_CORPORA)}" + _meant(path.name)
        )
    if not path.is_dir():
        return TextFile(path, data)
    _refuse(data, f"the folder {path}", "split")
    if (path / "vocab.npy").exists():
        _refuse(data, f"the arrays in {path}, whose words vocab.npy lists,", "min_count", "max_vocabulary")
        _refuse(data, f"the arrays in {path}", "articles", "normalize")
        return ArrayFolder(path, allow_pickle)
    return TextFolder(path, data)


def _meant(name: str) -> str:
    hint = nearest(name, BUILT_IN_CORPORA)
    return hint if "did you mean" in hint else ""


def _refuse(data: DataConfig, what: str, *names: str) -> None:
    """Refuse settings that would do nothing to this text."""
    usual = DataConfig(corpus=data.corpus)
    for name in names:
        if getattr(data, name) != getattr(usual, name):
            raise ConfigError(f"data.{name} does nothing to {what}; leave it out")


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
        split_lines[split] += [(number == 0, [*words, EOS]) for number, words in enumerate(article)]
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
    """A folder with `train`, `valid` and perhaps `test`, as `.txt` or `.tokens`, also `.gz`; a line is a paragraph.

    A word may stand before the split's name, as in WikiText's own `wiki.train.tokens`.
    """

    def __init__(self, folder: Path, data: DataConfig, name: str | None = None) -> None:
        self.folder = folder
        self._data = data
        self._name = name or str(folder)
        self._files = {split: file for split in SPLITS if (file := self._find(split))}
        for split in ("train", "valid"):
            if split not in self._files:
                raise CorpusError(f"the corpus {folder} has no {split}.txt or {split}.tokens")

    def _find(self, split: str) -> Path | None:
        try:
            names = [path for path in self.folder.iterdir() if path.is_file()]
        except OSError as error:
            raise CorpusError(f"the corpus {self.folder} cannot be read: {error.strerror}") from error
        wanted = re.compile(rf"([^.]+\.)?{split}({'|'.join(map(re.escape, _SUFFIXES))})")
        found = sorted(path for path in names if wanted.fullmatch(path.name))
        if len(found) > 1:
            raise CorpusError(f"the corpus {self.folder} has both {found[0].name} and {found[1].name}")
        return found[0] if found else None

    def describe(self) -> str:
        """Name the folder."""
        return self._name

    def digest(self) -> str:
        """Hash the files' text."""
        total = hashlib.sha256()
        for split, path in self._files.items():
            total.update(f"{split} {_hash(path)[0]}\n".encode())
        return total.hexdigest()

    def splits(self) -> tuple[str, ...]:
        """List the splits there is a file for."""
        return tuple(self._files)

    def lines(self, split: str) -> Iterator[Line]:
        """Give the lines of one file, blank ones too."""
        for _, begins, words in _read(self._files[split], self._data):
            yield begins, words


class TextFile:
    """One file of text, cut into contiguous splits at the ends of lines, or of articles where it has headings."""

    def __init__(self, path: Path, data: DataConfig) -> None:
        self.path = path
        self._data = data
        self._hash: tuple[str, int] | None = None
        self._starts: list[int] | None = None  # the byte at which each split begins

    def describe(self) -> str:
        """Name the file."""
        return str(self.path)

    def digest(self) -> str:
        """Hash the file's text."""
        if self._hash is None:
            self._hash = _hash(self.path)
        return self._hash[0]

    def splits(self) -> tuple[str, ...]:
        """List those that have a share of the text."""
        return tuple(split for split, share in zip(SPLITS, self._data.split, strict=False) if share)

    def lines(self, split: str) -> Iterator[Line]:
        """Give the lines of one split, whose first begins an article."""
        number = self.splits().index(split)
        starts: list[int | None] = [*self._find_starts(), None]
        first, end = starts[number] or 0, starts[number + 1]
        for offset, begins, words in _read(self.path, self._data, first, end):
            yield begins or offset == first, words

    def _find_starts(self) -> list[int]:
        """Find where the splits begin: where their shares of the bytes do, at the next line or article."""
        if self._starts is None:
            self.digest()
            assert self._hash is not None
            size = self._hash[1]
            targets = [share * size for share in itertools.accumulate(self._data.split)][: len(self.splits()) - 1]
            starts = [0]
            by_articles = self._data.articles == "headings"
            for offset, begins, _ in _read(self.path, self._data, words=False):
                if targets and offset >= targets[0] and (begins or not by_articles):
                    starts.append(offset)
                    del targets[0]
            if targets:
                unit = "articles" if by_articles else "lines"
                raise CorpusError(f"{self.path} has too few {unit} to be cut into {', '.join(self.splits())}")
            self._starts = starts
        return self._starts


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _hash(path: Path) -> tuple[str, int]:
    """Give the hash and the number of the bytes of a text, without what packs them."""
    total, size = hashlib.sha256(), 0
    with _readable(path), _open(path) as file:
        while chunk := file.read(1 << 20):
            total.update(chunk)
            size += len(chunk)
    return total.hexdigest(), size


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn errors of reading a file into one sentence."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CorpusError(f"{path} is not a whole gzip file: {error}") from error
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror or error}") from error


def _read(
    path: Path, data: DataConfig, first: int = 0, end: int | None = None, words: bool = True
) -> Iterator[tuple[int, bool, list[str]]]:
    """Give the byte at which each piece begins, whether an article does, and its words (none where not asked for)."""
    split = NORMALIZE[data.normalize]
    headings = Headings() if data.articles == "headings" else None
    offset, ended = 0, True
    with _readable(path), _open(path) as file:
        for raw, ends in _pieces(file):
            start, offset, begun, ended = offset, offset + len(raw), ended, ends
            if end is not None and start >= end:
                return
            if start < first:
                continue
            if not words and headings is None:
                if begun:
                    yield start, False, []
                continue
            line = _decode(path, raw, start)
            titled = headings is not None and begun and ends and headings.begins(line)
            begins = start == 0 or titled
            yield start, begins, [*split(line), *[EOS] * ends] if words else []


def text_lines(path: Path) -> Iterator[str]:
    """Give the lines of any file of text, also a packed one; raises `CorpusError` where it cannot be read."""
    offset = 0
    with _readable(path), _open(path) as file:
        for raw in file:
            yield _decode(path, raw, offset)
            offset += len(raw)


def _decode(path: Path, raw: bytes, start: int) -> str:
    content = raw.removeprefix(_BYTE_ORDER_MARK) if start == 0 else raw
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        position = start + len(raw) - len(content) + error.start
        raise CorpusError(f"{path} is not UTF-8: byte {position} cannot be read") from error


def _pieces(file: IO[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Give a file's lines, a very long one in pieces that end at a space, and whether the line ends there."""
    held, ended = b"", True
    while part := file.readline(_LONGEST_PIECE):
        held += part
        if part.endswith(b"\n"):
            yield held, True
            held, ended = b"", True
        elif len(held) >= _LONGEST_PIECE and (cut := held.rfind(b" ") + 1):
            yield held[:cut], False
            held, ended = held[cut:], False
    if held or not ended:
        yield held, True
