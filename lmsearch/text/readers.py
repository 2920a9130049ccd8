"""Where text comes from: the embedded corpus, folders and single files of text, and arrays of indices."""

import contextlib
import gzip
import hashlib
import itertools
import platform
import re
import shlex
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, Protocol, cast

from lmsearch.config import BUILT_IN_CORPORA, DataConfig
from lmsearch.errors import ConfigError, CorpusError
from lmsearch.spelling import nearest
from lmsearch.text.arrays import ArrayFolder
from lmsearch.text.fetch import DATASETS, fetched
from lmsearch.text.lines import LOSSY, NORMALIZE, Headings
from lmsearch.text.vocabulary import EOS

SPLITS = ("train", "valid", "test")

_SUFFIXES = (".txt", ".tokens", ".txt.gz", ".tokens.gz")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = {b"\xff\xfe": "UTF-16LE", b"\xfe\xff": "UTF-16BE"}
_LONGEST_PIECE = 1 << 20  # bytes of a line that are held at once
_SPACE = re.compile(
    rb"[\t\x0b\x0c\r\x1c-\x20]|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80"
)
"""What `str.split` takes for a space, as UTF-8."""

_OTHER_NAMES = {"valid": ("val", "dev", "validation"), "train": ("training",), "test": ("testing",)}


class Line(NamedTuple):
    """One paragraph with `<eos>` at its end, or part of a long one."""

    begins: bool  # whether an article does, here
    words: list[str]
    ends: bool = True  # whether the last of `words` is the `<eos>` of the line's end
    lost: int = 0  # how many of its characters, but for spaces, `normalize` drops
    characters: int = 0  # of how many; 0 where none can be lost


class Reader(Protocol):
    """Something that gives the lines of each split, as often as it is asked."""

    def describe(self) -> str:
        """Return the name of the text for a person."""
        ...

    def digest(self) -> str:
        """Return a hash of the text, so that a changed text is noticed."""
        ...

    def splits(self) -> tuple[str, ...]:
        """List the splits there are: train and valid, and test where there is one."""
        ...

    def lines(self, split: str) -> Iterator[Line]:
        """Return the lines of one split; raises `CorpusError` for text that cannot be read."""
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
        value = getattr(data, name)
        if value != getattr(usual, name) and (name, value) != ("min_count", 1):  # 1 does nothing to any text
            raise ConfigError(f"data.{name} does nothing to {what}; leave it out")


class PythonDocs:
    """The topics of the standard library's `pydoc_data`: what `help()` shows, in every CPython.

    A fifth of that text stands in several topics, so a split by topic alone would leak: a paragraph that was
    seen before is dropped, in the order of the SHA-1 of the topics' names.
    """

    def __init__(self) -> None:
        self._splits: dict[str, list[Line]] | None = None

    def describe(self) -> str:
        """Return the name of the text and the Python that it belongs to."""
        return f"python-docs of Python {platform.python_version()}"

    def digest(self) -> str:
        """Hash the topics' text."""
        return hashlib.sha256(repr(sorted(_topics().items())).encode()).hexdigest()

    def splits(self) -> tuple[str, ...]:
        """List all three."""
        return SPLITS

    def lines(self, split: str) -> Iterator[Line]:
        """Return the paragraphs of one split, topic by topic."""
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
        split_lines[split] += [Line(number == 0, [*words, EOS]) for number, words in enumerate(article)]
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
                raise CorpusError(self._without(split))

    def _without(self, split: str) -> str:
        """Return which file is missing, and which ones there are."""
        names = sorted(path.name for path in self.folder.iterdir() if path.is_file())
        meant = [name for name in names if name.lower().split(".")[0] in (*_OTHER_NAMES[split], split)]
        hint = f"; rename {meant[0]} to {split}.txt" if meant else ""
        found = f"it has {', '.join(names[:10])}{' …' if len(names) > 10 else ''}" if names else "it has no files"
        return (
            f"the corpus {self.folder} has no {split}.txt ({split}.tokens, NAME.{split}.txt and .gz of these are read, "
            f"too); {found}{hint}"
        )

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
        """Return the name of the folder."""
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
        """Yield the lines of one file, blank ones too."""
        for _, line in _read(self._files[split], self._data):
            yield line


class TextFile:
    """One file of text, cut into contiguous splits at the ends of lines, or of articles where it has headings."""

    def __init__(self, path: Path, data: DataConfig) -> None:
        self.path = path
        self._data = data
        self._hash: tuple[str, int] | None = None
        self._starts: list[int] | None = None  # the byte at which each split begins

    def describe(self) -> str:
        """Return the name of the file."""
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
        """Yield the lines of one split, whose first begins an article."""
        number = self.splits().index(split)
        starts: list[int | None] = [*self._find_starts(), None]
        first, end = starts[number] or 0, starts[number + 1]
        for offset, line in _read(self.path, self._data, first, end):
            yield line._replace(begins=line.begins or offset == first)

    def _find_starts(self) -> list[int]:
        """Find where the splits begin: where their shares of the bytes do, at the next line or article."""
        if self._starts is None:
            self.digest()
            assert self._hash is not None
            size = self._hash[1]
            targets = [share * size for share in itertools.accumulate(self._data.split)][: len(self.splits()) - 1]
            starts = [0]
            by_articles = self._data.articles == "headings"
            for offset, line in _read(self.path, self._data, words=False):
                if targets and offset >= targets[0] and (line.begins or not by_articles):
                    starts.append(offset)
                    del targets[0]
            if targets:
                unit = "articles" if by_articles else "lines"
                raise CorpusError(
                    f"{self.path} has too few {unit} to be cut into {', '.join(self.splits())}"
                    f"{'' if by_articles else _why_few_lines(self.path)}; or give a folder with a file for each split"
                )
            self._starts = starts
        return self._starts


def _open(path: Path) -> IO[bytes]:
    if path.exists() and not path.is_file():  # a pipe could be read once, and some devices have no end
        raise CorpusError(f"{path} is not a file; a text is read several times, so put it into one")
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _why_few_lines(path: Path) -> str:
    with _open(path) as file:
        first = file.read(_LONGEST_PIECE)
    if b"\r" in first and b"\n" not in first:
        return ": its lines end in CR alone, as on old Macs; convert it with: tr '\\r' '\\n'"
    return ""


def _hash(path: Path) -> tuple[str, int]:
    """Return the hash and the number of the bytes of a text, without what packs them."""
    total, size = hashlib.sha256(), 0
    with _readable(path), _open(path) as file:
        while chunk := file.read(1 << 20):
            if b"\0" in chunk:
                raise CorpusError(_why_zeros(path, size + chunk.index(b"\0")))
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
) -> Iterator[tuple[int, Line]]:
    """Yield each piece with the byte at which it begins, and with its words unless they are not asked for."""
    split = NORMALIZE[data.normalize]
    headings = Headings() if data.articles == "headings" else None
    offset, ended = 0, True
    with _readable(path), _open(path) as file:
        for raw, ends in _pieces(path, file):
            start, offset, starts_line, ended = offset, offset + len(raw), ended, ends
            if end is not None and start >= end:
                return
            if start < first:
                continue
            if not words and headings is None:
                if starts_line:
                    yield start, Line(False, [])
                continue
            text = _decode(path, raw, start)
            titled = headings is not None and starts_line and ends and headings.begins(text)
            begins = start == 0 or titled
            if not words:
                yield start, Line(begins, [])
                continue
            found = split(text)
            lost, characters = _count_lost(text, found) if data.normalize in LOSSY else (0, 0)
            yield start, Line(begins, [*found, *[EOS] * ends], ends, lost, characters)


def _count_lost(text: str, words: list[str]) -> tuple[int, int]:
    characters = sum(map(len, text.split()))
    return characters - sum(map(len, words)), characters


def text_lines(path: Path) -> Iterator[str]:
    """Yield the lines of any file of text, also a packed one; raises `CorpusError` where it cannot be read."""
    offset = 0
    with _readable(path), _open(path) as file:
        for raw in file:
            yield _decode(path, raw, offset)
            offset += len(raw)


def _decode(path: Path, raw: bytes, start: int) -> str:
    content = raw.removeprefix(_BYTE_ORDER_MARK) if start == 0 else raw
    if b"\0" in content:
        raise CorpusError(_why_zeros(path, start + len(raw) - len(content) + content.index(b"\0")))
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        position = start + len(raw) - len(content) + error.start
        guess = _UTF16_MARKS.get(raw[:2], "ISO-8859-1") if start == 0 else "ISO-8859-1"
        raise CorpusError(
            f"{path} is not UTF-8: byte {position} cannot be read; if it is {guess}, convert it with: "
            f"{_iconv(guess, path)}"
        ) from error


def _iconv(encoding: str, path: Path) -> str:
    source = shlex.quote(str(path))
    return f"iconv -f {encoding} -t UTF-8 {source} > {shlex.quote(path.stem + '-utf8' + path.suffix)}"


_COMPRESSED = {b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}
"""How compressed files begin."""


def _why_zeros(path: Path, position: int) -> str:
    """Return what a file that is no text probably is."""
    with _readable(path), _open(path) as file:
        first = file.read(512)
    if first[257:262] == b"ustar":
        return f"{path} is a tar archive; unpack it, and name a file or the folder"
    for mark, kind in _COMPRESSED.items():
        if first.startswith(mark):
            return f"{path} is a {kind} file; unpack it, and name the text in it (only .gz is read as it is)"
    zeros = [first[offset:64:2].count(0) for offset in (0, 1)]
    guess = _UTF16_MARKS.get(first[:2], "UTF-16BE" if zeros[0] > zeros[1] else "UTF-16LE")
    if max(zeros) > 8 and min(zeros) < max(zeros) / 2:
        return f"{path} is {guess}, not UTF-8; convert it with: {_iconv(guess, path)}"
    return f"{path} is not a text: byte {position} is zero"


def _pieces(path: Path, file: IO[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Yield a file's lines, a very long one in pieces that end at a space, and whether the line ends there."""
    held, ended = b"", True
    while part := file.readline(_LONGEST_PIECE):
        if part.endswith(b"\n"):
            yield held + part, True
            held, ended = b"", True
            continue
        held += part
        if len(held) < _LONGEST_PIECE:
            continue
        cut = max((found.end() for found in _SPACE.finditer(held)), default=0)
        if not cut:
            raise CorpusError(
                f"{path} has more than {_LONGEST_PIECE >> 20} MiB without a space, and words are what stands between "
                "spaces: put spaces between the words first"
            )
        yield held[:cut], False
        held, ended = held[cut:], False
    if held or not ended:
        yield held, True
