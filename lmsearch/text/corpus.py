"""Text as token arrays, encoded once into a memory-mapped cache that all workers share."""

import hashlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import filelock
import numpy as np
import numpy.typing as npt
import platformdirs

from lmsearch.config import DataConfig, TrainConfig
from lmsearch.errors import ConfigError, CorpusError
from lmsearch.files import draft_folder, replace_file
from lmsearch.folders import absolute, make_folder, read_document
from lmsearch.formats import FORMATS, check_stamp, stamp
from lmsearch.text.arrays import ArrayFolder
from lmsearch.text.readers import PythonDocs, Reader, TextFile, open_reader
from lmsearch.text.vocabulary import EOS, UNK, Vocabulary, build_vocabulary, read_vocabulary

_BLOCK_TOKENS = 1 << 20  # tokens between two notes of progress, and held at once
_HEADER_BYTES = 128  # of a NumPy file with one dimension

Progress = Callable[[str, int, int | None], None]
"""Called with what is done, the tokens so far, and the number of all tokens where that is known."""


@dataclass(frozen=True)
class Text:
    """One split: its tokens, and where its articles begin."""

    tokens: npt.NDArray[np.int32]
    article_starts: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class TextFacts:
    """Facts about the train split that its tokens do not show."""

    lost: int = 0  # characters, but for spaces, that the normaliser dropped
    characters: int = 0  # of how many; 0 where it drops none
    own_eos: int = 0  # words of the text itself that are `<eos>`


@dataclass(frozen=True)
class Corpus:
    """An encoded corpus. Two corpora with the same fingerprint are the same to every model."""

    description: str
    fingerprint: str
    vocabulary: Vocabulary
    train: Text
    valid: Text
    test: Text | None
    shuffle_articles: bool = False  # each epoch, where the config does not say
    facts: TextFacts = TextFacts()
    folder: Path | None = None  # where it lies encoded

    def test_tokens(self) -> npt.NDArray[np.int32]:
        """Return the tokens of the test split; raises `ConfigError` where there is none."""
        if self.test is None:
            raise ConfigError(f"{self.description} has no test split")
        return self.test.tokens


def _no_progress(what: str, done: int, total: int | None) -> None:
    """Report nothing."""


def cache_folder() -> Path:
    """Return the folder for encoded corpora: LMSEARCH_CACHE, else the user's cache folder."""
    named = os.environ.get("LMSEARCH_CACHE")
    if named:
        return absolute(named, "LMSEARCH_CACHE =")
    try:
        folder = Path(platformdirs.user_cache_dir("lmsearch")).expanduser()
    except RuntimeError as error:  # a user without a home
        raise CorpusError("there is no home folder to keep encoded texts in; name one in LMSEARCH_CACHE") from error
    return folder


def open_corpus(
    config: DataConfig,
    cache: Path,
    corpus: str | None = None,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> Corpus:
    """Open a corpus, fetching and encoding it first where the cache lacks it.

    `corpus` is where the text lies on this host, if elsewhere than the config says; `allow_pickle` lets arrays of
    objects be read, which can run code. Raises `CorpusError` for a text that is missing, unreadable or too short.
    """
    reader = open_reader(config, corpus or config.corpus, cache, allow_pickle)
    given = _given_vocabulary(config, corpus or config.corpus, reader)
    options = f"{FORMATS['encoded corpus']} {reader.digest()} {config.min_count} {config.max_vocabulary}"
    options += f" {config.normalize} {config.articles} {config.split if isinstance(reader, TextFile) else ''}"
    if given is not None:
        options += f" {hashlib.sha256(chr(10).join(given.words).encode()).hexdigest()}"
    folder = cache / "corpora" / hashlib.sha256(options.encode()).hexdigest()[:32]
    try:
        make_folder(folder.parent)
    except OSError as error:
        if not folder.parent.is_dir():  # else a full disk is reported when there is a corpus to keep
            raise CorpusError(
                f"the cache folder {cache} cannot be made ({error.strerror}); name another in LMSEARCH_CACHE"
            ) from error
    shuffled = isinstance(reader, PythonDocs | ArrayFolder)
    opened = load_cached(folder, reader.describe())
    if opened is not None:
        return replace(opened, shuffle_articles=shuffled)
    with filelock.FileLock(f"{folder}.lock"):
        opened = load_cached(folder, reader.describe())
        if opened is None:
            try:
                _encode(reader, config, folder, progress or _no_progress, given)
            except OSError as error:  # the reader raises its own as CorpusError
                raise CorpusError(
                    f"the encoded corpus cannot be kept in {cache}: {error}; free space there, or name another "
                    "folder in LMSEARCH_CACHE"
                ) from error
            opened = load_cached(folder, reader.describe())
    if opened is None:
        raise CorpusError(f"the cache {folder} cannot be read back right after it was written")
    return replace(opened, shuffle_articles=shuffled)


def check_lengths(corpus: Corpus, train: TrainConfig) -> None:
    """Refuse a corpus too short for its batches: train needs three rows, valid one prediction a column."""
    rows = len(corpus.train.tokens) // train.batch_size
    if rows < 3:
        raise CorpusError(
            f"the train split has {len(corpus.train.tokens)} tokens, too few for train.batch_size = {train.batch_size};"
            f" it needs at least {3 * train.batch_size}"
        )
    # With a context, a short split has fewer columns.
    if not train.eval_context and len(corpus.valid.tokens) <= train.eval_batch_size:
        raise CorpusError(
            f"the valid split has {len(corpus.valid.tokens)} tokens, too few for "
            f"train.eval_batch_size = {train.eval_batch_size}; it needs more than that"
        )


def _given_vocabulary(config: DataConfig, corpus: str, reader: Reader | ArrayFolder) -> Vocabulary | None:
    """Read the words that a config gives, from a file beside the text; None where it gives none."""
    if config.vocabulary is None:
        return None
    if isinstance(reader, ArrayFolder):
        raise ConfigError("a corpus of arrays has its words in vocab.npy: leave data.vocabulary out")
    return read_vocabulary((Path(corpus) if Path(corpus).is_dir() else Path(corpus).parent) / config.vocabulary)


def _encode(
    reader: Reader | ArrayFolder, config: DataConfig, folder: Path, progress: Progress, given: Vocabulary | None
) -> None:
    with draft_folder(folder) as draft:
        if isinstance(reader, ArrayFolder):
            vocabulary, facts = _copy_arrays(reader, draft), TextFacts()
        else:
            counts, facts = _count(reader, progress)
            vocabulary = given or build_vocabulary(counts, config.min_count, config.max_vocabulary)
            _check_words(reader, counts, vocabulary)
            for split in reader.splits():
                total = counts.total() if split == "train" else None
                _encode_split(reader, split, vocabulary, draft, progress, total)
        fingerprint = _fingerprint(vocabulary, {split: _read_split(draft, split) for split in reader.splits()})
        meta = stamp("encoded corpus") | {
            "words": vocabulary.words,
            "fingerprint": fingerprint,
            "splits": reader.splits(),
            "facts": asdict(facts),
        }
        replace_file(draft / "meta.json", json.dumps(meta | {"digest": _digest(meta)}))


def _copy_arrays(reader: ArrayFolder, draft: Path) -> Vocabulary:
    vocabulary = reader.vocabulary()
    for split in reader.splits():
        tokens, starts = reader.text(split, len(vocabulary))
        if split == "train" and len({vocabulary.words[token] for token in np.unique(tokens)} - {EOS, UNK}) < 2:
            raise CorpusError(f"the train split of {reader.describe()} has fewer than two words")
        _check_tokens(reader, split, len(tokens))
        np.save(draft / f"{split}.npy", tokens)
        np.save(draft / f"{split}.articles.npy", starts)
    return vocabulary


def _count(reader: Reader, progress: Progress) -> tuple[Counter[str], TextFacts]:
    counts: Counter[str] = Counter()
    done = reported = lines = lost = characters = 0
    for line in reader.lines("train"):
        counts.update(line.words)
        done += len(line.words)
        lines += line.ends
        lost += line.lost
        characters += line.characters
        if done - reported >= _BLOCK_TOKENS:
            progress("counting words", done, None)
            reported = done
    return counts, TextFacts(lost=lost, characters=characters, own_eos=counts[EOS] - lines)


def _check_words(reader: Reader, counts: Counter[str], vocabulary: Vocabulary) -> None:
    """Refuse a train split of which the model would know fewer than two words beside `<unk>` and `<eos>`."""
    if len(set(vocabulary.words) - {EOS, UNK}) > 1:
        return
    different = len(counts.keys() - {EOS, UNK})
    message = f"the train split of {reader.describe()} has fewer than two words"
    if different > 1:
        message += (
            f" that occur often enough: of {different:,} different ones all but {len(vocabulary) - 2} are <unk> by "
            "data.min_count. Words are what stands between spaces: put spaces between them, or lower data.min_count"
        )
    raise CorpusError(message)


def _check_tokens(reader: Reader | ArrayFolder, split: str, tokens: int) -> None:
    """Refuse a split in which there is nothing to predict."""
    if tokens > 1:
        return
    has = "is empty" if tokens == 0 else "has 1 token, so there is nothing to predict"
    shares = "; give data.split other shares" if isinstance(reader, TextFile) else ""
    without = ", or test none (0)" if shares and split == "test" else ""
    raise CorpusError(f"the {split} split of {reader.describe()} {has}{shares}{without}")


def _encode_split(
    reader: Reader, split: str, vocabulary: Vocabulary, draft: Path, progress: Progress, total: int | None
) -> None:
    """Write a split's tokens piece by piece, so that only one piece is held."""
    piece, starts, done = array("i"), array("q"), 0
    with (draft / f"{split}.npy").open("wb") as file:
        _write_header(file, 0)
        for line in reader.lines(split):
            if line.begins:
                starts.append(done + len(piece))
            piece.extend(vocabulary.encode(line.words))
            if len(piece) >= _BLOCK_TOKENS:
                piece.tofile(file)
                done, piece = done + len(piece), array("i")
                progress(f"encoding {split}", done, total)
        piece.tofile(file)
        done += len(piece)
        file.seek(0)
        _write_header(file, done)
    _check_tokens(reader, split, done)
    np.save(draft / f"{split}.articles.npy", np.asarray(starts, dtype=np.int64))


def _write_header(file: IO[bytes], tokens: int) -> None:
    """Write the header of a NumPy file, which has one length for every number of tokens."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.int32)), "fortran_order": False, "shape": (tokens,)}
    np.lib.format.write_array_header_1_0(file, header)
    if file.tell() != _HEADER_BYTES:
        raise CorpusError(f"NumPy {np.__version__} writes headers of {file.tell()} bytes, not of {_HEADER_BYTES}")


def _read_split(folder: Path, split: str) -> Text:
    """Open a split; raises `ValueError` for what is no array of its kind."""
    tokens = np.load(folder / f"{split}.npy", mmap_mode="r", allow_pickle=False)
    starts = np.load(folder / f"{split}.articles.npy", allow_pickle=False)
    if (tokens.dtype, tokens.ndim) != (np.dtype(np.int32), 1) or (starts.dtype, starts.ndim) != (np.dtype(np.int64), 1):
        raise ValueError(f"{folder / split} has arrays of {tokens.dtype} and {starts.dtype}")
    return Text(tokens, starts)


def load_cached(folder: Path, description: str) -> Corpus | None:
    """Open an encoded corpus; None where there is none or where it is damaged.

    Raises `NewerFormatError` for one that a later lmsearch wrote: it is not damaged.
    """
    meta: dict[str, Any] | None = read_document(folder / "meta.json")
    if meta is None:
        return None
    check_stamp("encoded corpus", f"the encoded corpus {folder}", meta)
    if meta.pop("digest", None) != _digest(meta):
        return None
    try:
        texts = {split: _read_split(folder, split) for split in meta["splits"] if split in ("train", "valid", "test")}
        vocabulary = Vocabulary(tuple(meta["words"]))
        facts = TextFacts(**meta["facts"])
        is_whole = {"train", "valid"} <= texts.keys() and _fingerprint(vocabulary, texts) == meta.get("fingerprint")
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None
    if not is_whole:
        return None
    return Corpus(
        description, meta["fingerprint"], vocabulary, texts["train"], texts["valid"], texts.get("test"), facts=facts,
        folder=folder,
    )  # fmt: skip


def _digest(meta: dict[str, Any]) -> str:
    """Return the digest of a document, which no damaged byte of it survives."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _fingerprint(vocabulary: Vocabulary, texts: dict[str, Text]) -> str:
    total = hashlib.sha256("\n".join(vocabulary.words).encode())
    for split, text in texts.items():
        total.update(split.encode())
        total.update(np.ascontiguousarray(text.tokens, dtype="<i4").data)
        total.update(np.ascontiguousarray(text.article_starts, dtype="<i8").data)
    return total.hexdigest()[:16]
