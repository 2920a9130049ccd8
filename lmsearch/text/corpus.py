"""Text as token arrays, encoded once into a memory-mapped cache that all workers share."""

import hashlib
import json
import os
import shutil
import uuid
from array import array
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import numpy.typing as npt
import platformdirs

from lmsearch.config import DataConfig
from lmsearch.errors import CorpusError
from lmsearch.files import replace_file, sync_folder
from lmsearch.text.readers import Reader, open_reader
from lmsearch.text.vocabulary import EOS, UNK, Vocabulary, build_vocabulary

_FORMAT = 1  # of the cache's files; a new number makes every corpus be encoded anew


@dataclass(frozen=True)
class Text:
    """One split: its tokens, and where its articles begin."""

    tokens: npt.NDArray[np.int32]
    article_starts: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Corpus:
    """An encoded corpus. Two corpora with the same fingerprint are the same to every model."""

    description: str
    fingerprint: str
    vocabulary: Vocabulary
    train: Text
    valid: Text
    test: Text | None


def cache_folder() -> Path:
    """Give the folder for encoded corpora: LMSEARCH_CACHE, else the user's cache folder."""
    named = os.environ.get("LMSEARCH_CACHE")
    return Path(named) if named else Path(platformdirs.user_cache_dir("lmsearch"))


def open_corpus(config: DataConfig, cache: Path, corpus: str | None = None) -> Corpus:
    """Open a corpus, encoding it first where the cache lacks it.

    `corpus` is where the text lies on this host, if elsewhere than the config says. Raises `CorpusError` for a
    text that is missing, unreadable or too short to be one.
    """
    reader = open_reader(corpus or config.corpus)
    options = f"{_FORMAT} {reader.digest()} {config.min_count} {config.max_vocabulary}"
    folder = cache / "corpora" / hashlib.sha256(options.encode()).hexdigest()[:32]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CorpusError(
            f"the cache folder {cache} cannot be made ({error.strerror}); name another in LMSEARCH_CACHE"
        ) from error
    opened = load_cached(folder, reader.describe())
    if opened is not None:
        return opened
    with filelock.FileLock(f"{folder}.lock"):
        opened = load_cached(folder, reader.describe())
        if opened is None:
            try:
                _encode(reader, config, folder)
            except OSError as error:  # the reader tells of its own as CorpusError
                raise CorpusError(
                    f"the encoded corpus cannot be kept in {cache}: {error}; free space there, or name another "
                    "folder in LMSEARCH_CACHE"
                ) from error
            opened = load_cached(folder, reader.describe())
    if opened is None:
        raise CorpusError(f"the cache {folder} cannot be read back right after it was written")
    return opened


def check_lengths(corpus: Corpus, batch_size: int, eval_batch_size: int) -> None:
    """Refuse a corpus too short for its batches: train needs three rows, valid one prediction a column."""
    rows = len(corpus.train.tokens) // batch_size
    if rows < 3:
        raise CorpusError(
            f"the train split has {len(corpus.train.tokens)} tokens, too few for train.batch_size = {batch_size};"
            f" it needs at least {3 * batch_size}"
        )
    if len(corpus.valid.tokens) <= eval_batch_size:
        raise CorpusError(
            f"the valid split has {len(corpus.valid.tokens)} tokens, too few for "
            f"train.eval_batch_size = {eval_batch_size}; it needs more than that"
        )


def _encode(reader: Reader, config: DataConfig, folder: Path) -> None:
    vocabulary = build_vocabulary(_count(reader), config.min_count, config.max_vocabulary)
    draft = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.draft")
    draft.mkdir()
    try:
        for split in reader.splits():
            text = _encode_split(reader, split, vocabulary)
            np.save(draft / f"{split}.npy", text.tokens)
            np.save(draft / f"{split}.articles.npy", text.article_starts)
        fingerprint = _fingerprint(vocabulary, {split: _read_split(draft, split) for split in reader.splits()})
        meta = {"words": vocabulary.words, "fingerprint": fingerprint, "splits": reader.splits()}
        replace_file(draft / "meta.json", json.dumps(meta))
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _count(reader: Reader) -> Counter[str]:
    counts: Counter[str] = Counter()
    for _, words in reader.lines("train"):
        counts.update(words)
        counts[EOS] += 1
    if len(counts.keys() - {EOS, UNK}) < 2:
        raise CorpusError(f"the train split of {reader.describe()} has fewer than two words")
    return counts


def _encode_split(reader: Reader, split: str, vocabulary: Vocabulary) -> Text:
    tokens, starts = array("i"), array("q")
    eos = vocabulary.index[EOS]
    for begins, words in reader.lines(split):
        if begins:
            starts.append(len(tokens))
        tokens.extend(vocabulary.encode(words))
        tokens.append(eos)
    if not tokens:
        raise CorpusError(f"the {split} split of {reader.describe()} is empty")
    return Text(np.asarray(tokens, dtype=np.int32), np.asarray(starts, dtype=np.int64))


def _read_split(folder: Path, split: str) -> Text:
    return Text(
        np.load(folder / f"{split}.npy", mmap_mode="r", allow_pickle=False),
        np.load(folder / f"{split}.articles.npy", allow_pickle=False),
    )


def load_cached(folder: Path, description: str) -> Corpus | None:
    """Open an encoded corpus, or give None where there is none or where it is damaged."""
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
        texts = {split: _read_split(folder, split) for split in meta["splits"]}
    except (OSError, ValueError, EOFError, KeyError):
        return None
    vocabulary = Vocabulary(tuple(meta["words"]))
    if _fingerprint(vocabulary, texts) != meta["fingerprint"]:
        return None
    return Corpus(description, meta["fingerprint"], vocabulary, texts["train"], texts["valid"], texts.get("test"))


def _fingerprint(vocabulary: Vocabulary, texts: dict[str, Text]) -> str:
    total = hashlib.sha256("\n".join(vocabulary.words).encode())
    for split, text in texts.items():
        total.update(split.encode())
        total.update(np.ascontiguousarray(text.tokens, dtype="<i4").data)
        total.update(np.ascontiguousarray(text.article_starts, dtype="<i8").data)
    return total.hexdigest()[:16]
