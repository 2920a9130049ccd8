"""Corpora as arrays of indices: a folder with `vocab.npy`, and `train.npy`, `valid.npy`, perhaps `test.npy`.

Each split is one array of whole numbers, with `SPLIT.articles.npy` for where its articles begin; or, in the form in
which course material hands such corpora out, an object array with one array an article, which takes pickle to read.
Pickle can run code: it is used only where a person allows it.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmsearch.errors import CorpusError
from lmsearch.text.vocabulary import EOS, UNK, Vocabulary

SPLITS = ("train", "valid", "test")


class ArrayFolder:
    """A folder of arrays; `vocab.npy` is the vocabulary, index by index."""

    def __init__(self, folder: Path, allow_pickle: bool = False) -> None:
        self.folder = folder
        self.allow_pickle = allow_pickle
        self._files = {split: file for split in SPLITS if (file := self._find(split))}
        for split in ("train", "valid"):
            if split not in self._files:
                raise CorpusError(f"the corpus {folder} has a vocab.npy and no {split}.npy")

    def _find(self, split: str) -> Path | None:
        wanted = re.compile(rf"([^.]+\.)?{split}\.npy")
        found = sorted(path for path in self.folder.iterdir() if wanted.fullmatch(path.name))
        if len(found) > 1:
            raise CorpusError(f"the corpus {self.folder} has both {found[0].name} and {found[1].name}")
        return found[0] if found else None

    def describe(self) -> str:
        """Return the name of the folder."""
        return str(self.folder)

    def digest(self) -> str:
        """Hash the files' bytes."""
        total = hashlib.sha256()
        beside = [path for file in self._files.values() if (path := _articles_file(file)).exists()]
        for path in (self.folder / "vocab.npy", *self._files.values(), *beside):
            try:
                with path.open("rb") as file:
                    total.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
            except OSError as error:
                raise CorpusError(f"{path} cannot be read: {error.strerror}") from error
        return total.hexdigest()

    def splits(self) -> tuple[str, ...]:
        """List the splits there is a file for."""
        return tuple(self._files)

    def vocabulary(self) -> Vocabulary:
        """Read the words; raises `CorpusError` where they are none, or one stands twice."""
        path = self.folder / "vocab.npy"
        listed = read_words(path, self.allow_pickle)
        for word in (UNK, EOS):
            if word not in listed:
                raise CorpusError(f"{path} has no {word}; a model needs it for unknown words, or ends of lines")
        return Vocabulary(listed)

    def text(self, split: str, words: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Return a split's tokens and where its articles begin; each token must be below `words`."""
        path = self._files[split]
        stored = _load(path, self.allow_pickle)
        if stored.dtype == object:
            articles = [np.asarray(article) for article in stored.ravel()]
            for number, article in enumerate(articles):
                if article.ndim != 1 or (article.dtype.kind not in "iu" and len(article)):
                    raise CorpusError(f"{path}: article {number} is no list of whole numbers but {article.dtype}")
            articles = [article for article in articles if len(article)]
            lengths = [0, *map(len, articles)][: len(articles)]
            starts = np.cumsum(lengths, dtype=np.int64)
            tokens = np.concatenate(articles) if articles else np.zeros(0, np.int64)
        else:
            tokens, starts = stored, self._starts(path, len(stored))
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise CorpusError(
                f"{path} is no list of whole numbers: its shape is {tokens.shape}, its type {tokens.dtype}"
            )
        if not len(tokens):
            raise CorpusError(f"the {split} split of {self.folder} is empty")
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= words:
            raise CorpusError(
                f"{path} has the index {low if low < 0 else high}, and vocab.npy has words 0 to {words - 1}"
            )
        return tokens.astype(np.int32), starts

    def _starts(self, path: Path, tokens: int) -> npt.NDArray[np.int64]:
        beside = _articles_file(path)
        if not beside.exists():
            return np.zeros(1, dtype=np.int64)
        starts = _load(beside, self.allow_pickle)
        fits = starts.ndim == 1 and starts.dtype.kind in "iu" and len(starts)
        if not fits or starts[0] != 0 or starts[-1] >= tokens or (np.diff(starts.astype(np.int64)) <= 0).any():
            raise CorpusError(f"{beside} must hold rising numbers from 0 to less than {tokens}, where articles begin")
        article_starts: npt.NDArray[np.int64] = starts.astype(np.int64)
        return article_starts


def _articles_file(path: Path) -> Path:
    return path.with_name(f"{path.name.removesuffix('.npy')}.articles.npy")


def convert(source: ArrayFolder, target: Path) -> dict[str, int]:
    """Write a corpus of arrays into a new folder in the form that needs no pickle; return the tokens of each split."""
    vocabulary = source.vocabulary()
    texts = {split: source.text(split, len(vocabulary)) for split in source.splits()}
    try:
        target.mkdir(parents=True)
    except FileExistsError as error:
        raise CorpusError(f"{target} is there already; name a new folder") from error
    np.save(target / "vocab.npy", np.array(vocabulary.words))
    for split, (tokens, starts) in texts.items():
        np.save(target / f"{split}.npy", tokens)
        np.save(target / f"{split}.articles.npy", starts)
    return {split: len(tokens) for split, (tokens, _) in texts.items()}


def read_words(path: Path, allow_pickle: bool = False) -> tuple[str, ...]:
    """Read a vocab.npy: a word for each index; raises `CorpusError` where they are none, or one stands twice."""
    words = _load(path, allow_pickle)
    if words.ndim != 1 or (words.dtype.kind not in "US" and not all(isinstance(word, str) for word in words)):
        raise CorpusError(f"{path} is no list of words: its shape is {words.shape}, its type {words.dtype}")
    if words.dtype.kind == "S":
        words = np.char.decode(words, "utf-8")
    listed = tuple(map(str, words))
    indices: dict[str, int] = {}
    for number, word in enumerate(listed):
        if indices.setdefault(word, number) != number:
            raise CorpusError(f"{path} has the word {word!r} twice, at {indices[word]} and at {number}")
    return listed


def _load(path: Path, allow_pickle: bool) -> Any:
    try:
        loaded = np.load(path, allow_pickle=allow_pickle)
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        if not allow_pickle and "pickle" in str(error):
            cure = "read it with --allow-pickle, if you trust where it comes from"
            if any(path.parent.glob("*train.npy")):
                cure = (
                    "turn the corpus into safe arrays once, if you trust where it comes from: "
                    f"lmsearch data convert {path.parent} NEW-FOLDER --allow-pickle"
                )
            raise CorpusError(
                f"{path} holds Python objects, which only pickle can read, and pickle can run code; {cure}"
            ) from error
        raise CorpusError(f"{path} is not a whole NumPy array: {error}") from error
    if not isinstance(loaded, np.ndarray):
        raise CorpusError(f"{path} holds several arrays; one is needed")
    return loaded
