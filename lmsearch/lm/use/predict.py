"""The word after each of many contexts, in the form in which course material asks for it.

Shapes: N contexts, T time, V vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmsearch.errors import ConfigError
from lmsearch.lm.use.trained import TrainedModel, check_indices
from lmsearch.text.arrays import read_words
from lmsearch.text.vocabulary import UNK, Vocabulary


@dataclass(frozen=True, kw_only=True)
class Contexts:
    """Contexts by the model's indices, and the words that follow them where these are known."""

    contexts_NT: npt.NDArray[np.int64]
    next_N: npt.NDArray[np.int64] | None
    unknown: int  # indices of words that the model does not know


def read_contexts(
    path: Path, words: Vocabulary, vocabulary: Path | None = None, allow_pickle: bool = False
) -> Contexts:
    """Read `inp` (N, T) and perhaps `out` (N,) of an .npz file; raises `ConfigError` where they are not that.

    `vocabulary` is a vocab.npy that lists the words by the file's indices; without it they are the model's own.
    """
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            raise ConfigError(f"{path} is one array; contexts come in an .npz file, with `inp` and perhaps `out`")
        with stored:
            arrays = {name: stored[name] for name in ("inp", "out") if name in stored}
    except ConfigError:
        raise
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise ConfigError(f"{path} is not a readable .npz file: {error}") from error
    except Exception as error:  # of zipfile and zlib, for a file that is damaged
        raise ConfigError(f"{path} is damaged: {error}") from error
    if "inp" not in arrays:
        raise ConfigError(f"{path} has no array `inp` of contexts")
    inp, out = arrays["inp"], arrays.get("out")
    if inp.ndim != 2 or inp.dtype.kind not in "iu" or not inp.size:
        raise ConfigError(f"`inp` in {path} must be whole numbers of shape (N, T), it is {inp.dtype} of {inp.shape}")
    if out is not None and (out.shape != inp.shape[:1] or out.dtype.kind not in "iu"):
        raise ConfigError(
            f"`out` in {path} must be whole numbers of shape ({len(inp)},), it is {out.dtype} of {out.shape}"
        )
    table = np.arange(len(words)) if vocabulary is None else _table(vocabulary, words, allow_pickle)
    for part in (inp, out):
        if part is not None:
            check_indices(part, len(table))
    unknown = sum(int((table[part] < 0).sum()) for part in (inp, out) if part is not None)
    known = np.where(table < 0, words.index[UNK], table)
    return Contexts(contexts_NT=known[inp], next_N=None if out is None else known[out], unknown=unknown)


def _table(path: Path, words: Vocabulary, allow_pickle: bool) -> npt.NDArray[np.int64]:
    """Return the model's index of each word that another vocabulary lists, -1 where it knows none."""
    return np.array([words.index.get(word, -1) for word in read_words(path, allow_pickle)], dtype=np.int64)


def log_likelihoods(model: TrainedModel, contexts: Contexts) -> npt.NDArray[np.float64]:
    """Return the log-probability of the word that follows each context, of shape (N,)."""
    assert contexts.next_N is not None
    found, start = [], 0
    for block in model.next_word(contexts.contexts_NT):
        rows = contexts.next_N[start : start + len(block), None]
        found.append(np.take_along_axis(block, rows, 1)[:, 0].astype(np.float64))
        start += len(block)
    return np.concatenate(found)


def write_log_probabilities(model: TrainedModel, contexts: Contexts, path: Path) -> None:
    """Write the log-probabilities of all words after each context, float32 of shape (N, V), some at a time."""
    shape = (len(contexts.contexts_NT), len(model.vocabulary))
    written = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    start = 0
    for block in model.next_word(contexts.contexts_NT):
        written[start : start + len(block)] = block
        start += len(block)
    written.flush()


def top_words(model: TrainedModel, contexts: Contexts, count: int) -> list[dict[str, Any]]:
    """Return the most probable words after each context, and the probability of the one that follows where known."""
    rows: list[dict[str, Any]] = []
    words = model.vocabulary.words
    for block in model.next_word(contexts.contexts_NT):
        for row in block:
            number = len(rows)
            best = np.argsort(-row, kind="stable")[:count]
            follows = None if contexts.next_N is None else int(contexts.next_N[number])
            rows.append(
                {
                    "context": [words[token] for token in contexts.contexts_NT[number]],
                    "candidates": [_candidate(words, row, int(index)) for index in best],
                    "next": None if follows is None else _candidate(words, row, follows),
                }
            )
    return rows


def _candidate(words: tuple[str, ...], row: npt.NDArray[np.float32], index: int) -> dict[str, Any]:
    return {"word": words[index], "probability": float(np.exp(row[index]))}
