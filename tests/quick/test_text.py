"""Corpora: what is read, how it is split and encoded, what is refused."""

import platform
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lmsearch.config import DataConfig, TrainConfig
from lmsearch.errors import ConfigError, CorpusError
from lmsearch.text.corpus import Corpus, Text, cache_folder, check_lengths, open_corpus
from lmsearch.text.readers import SPLITS, PythonDocs, TextFolder
from lmsearch.text.vocabulary import build_vocabulary
from tests.factories import make_corpus, write_corpus

COUNTED = {"3.11.7": (68_584, 10_745, 15_537, 1_622)}
"""Tokens of train, valid and test, and words at min_count = 3, as they were counted elsewhere."""


def open_folder(folder: Path, min_count: int | None = 1, max_vocabulary: int = 0) -> Corpus:
    config = DataConfig(corpus=str(folder), min_count=min_count, max_vocabulary=max_vocabulary)
    return open_corpus(config, folder / "cache")


def words_of(corpus: Corpus, text: Text | None) -> list[str]:
    assert text is not None
    return [corpus.vocabulary.words[token] for token in text.tokens]


def test_the_embedded_corpus_is_what_was_counted_and_leaks_nothing() -> None:
    corpus = open_corpus(DataConfig(corpus="python-docs", min_count=3), cache_folder())
    assert corpus.test is not None
    sizes = [len(text.tokens) for text in (corpus.train, corpus.valid, corpus.test)]
    total = sum(sizes)
    assert 0.09 < sizes[1] / total < 0.2 and 0.05 < sizes[2] / total < 0.2 and sizes[0] > 0.6 * total
    assert COUNTED.get(platform.python_version(), (*sizes, len(corpus.vocabulary))) == (*sizes, len(corpus.vocabulary))
    assert platform.python_version() in corpus.description
    paragraphs = Counter(" ".join(words) for split in SPLITS for _, words, *_ in PythonDocs().lines(split))
    assert set(paragraphs.values()) == {1}
    assert len(corpus.train.article_starts) > 40 and corpus.train.article_starts[0] == 0


def test_its_tokens_are_words_and_single_marks() -> None:
    words = {word for _, line, *_ in PythonDocs().lines("train") for word in line}
    assert all(word.replace("_", "a").isalnum() or len(word) == 1 for word in words - {"<eos>"})


def test_a_folders_lines_end_in_eos_and_unknown_words_are_unk(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("b a\n\nb c\n")
    (tmp_path / "valid.tokens").write_text("c d\n")
    corpus = open_folder(tmp_path)
    assert corpus.vocabulary.words == ("<unk>", "b", "a", "<eos>", "c")  # in order of appearance
    assert words_of(corpus, corpus.train) == ["b", "a", "<eos>", "<eos>", "b", "c", "<eos>"]
    assert words_of(corpus, corpus.valid) == ["c", "<unk>", "<eos>"]
    assert corpus.test is None


def test_a_text_that_has_unk_keeps_it_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a <unk> b\n")
    (tmp_path / "valid.txt").write_text("z\n")
    assert open_folder(tmp_path).vocabulary.words == ("a", "<unk>", "b", "<eos>")


def test_rare_words_are_left_out_and_the_most_frequent_kept() -> None:
    counts = Counter({"a": 3, "<eos>": 1, "b": 1, "c": 2, "d": 3})
    assert build_vocabulary(counts, 2, 0).words == ("<unk>", "a", "<eos>", "c", "d")
    assert build_vocabulary(counts, 1, 4).words == ("<unk>", "a", "<eos>", "d")


def test_line_ends_and_byte_order_marks_of_other_systems_change_nothing(tmp_path: Path) -> None:
    for name, content in (("unix", b"a b\nc\n"), ("windows", b"\xef\xbb\xbfa b\r\nc\r\n")):
        (tmp_path / name).mkdir()
        for split in ("train", "valid"):
            (tmp_path / name / f"{split}.txt").write_bytes(content)
    assert open_folder(tmp_path / "unix").fingerprint == open_folder(tmp_path / "windows").fingerprint


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train.txt": b"a b\nc \xff d\n", "valid.txt": b"a\n"}, "train.txt is not UTF-8: byte 6 cannot be read"),
        ({"train.txt": b"\xef\xbb\xbf\xff", "valid.txt": b"a\n"}, "byte 3 cannot be read"),
        ({"train.txt": b"", "valid.txt": b"a\n"}, "fewer than two words"),
        ({"train.txt": b"a a a\n", "valid.txt": b"a\n"}, "fewer than two words"),
        ({"train.txt": b"a b\n", "valid.txt": b""}, "the valid split of .* is empty"),
        ({"train.txt": b"a b\n"}, "has no valid.txt .*; it has train.txt$"),
        ({"train.txt": b"a b\n", "dev.txt": b"a"}, "it has dev.txt, train.txt; rename dev.txt to valid.txt"),
        ({"train.txt": b"a b\n", "train.tokens": b"a", "valid.txt": b"a"}, "has both train.tokens and train.txt"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_corpus_is_refused_by_name(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        open_folder(tmp_path)
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_a_corpus_that_is_not_there_is_answered_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="there is no corpus 'pyhton-docs'.*did you mean python-docs?"):
        open_folder(tmp_path / "pyhton-docs")


def test_a_cached_corpus_is_read_from_disk_and_is_the_same(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus")
    first, second = open_folder(folder), open_folder(folder)
    assert isinstance(second.train.tokens, np.memmap)
    assert (first.fingerprint, first.vocabulary) == (second.fingerprint, second.vocabulary)


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "meta"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, damage: str) -> None:
    folder = write_corpus(tmp_path / "corpus")
    expected = words_of(opened := open_folder(folder), opened.train)
    del opened
    (cached,) = [path for path in (folder / "cache" / "corpora").iterdir() if path.is_dir()]
    path = cached / ("meta.json" if damage == "meta" else "train.npy")
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": content[:-1], "flip": content, "meta": content[:-9]}[damage])
    again = open_folder(folder)
    assert words_of(again, again.train) == expected


def test_changed_text_and_changed_options_are_other_corpora(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus")
    found = {open_folder(folder).fingerprint, open_folder(folder, max_vocabulary=5).fingerprint}
    write_corpus(folder, seed=3)
    found.add(open_folder(folder).fingerprint)
    assert len(found) == 3


def test_a_split_too_short_for_its_batch_is_refused_with_the_numbers() -> None:
    corpus = make_corpus(tokens=100)
    check_lengths(corpus, TrainConfig(batch_size=33, eval_batch_size=49, eval_context=0))
    check_lengths(corpus, TrainConfig(batch_size=33, eval_batch_size=50))  # a short split has fewer columns
    with pytest.raises(
        CorpusError, match="train split has 100 tokens, too few for train.batch_size = 34.*at least 102"
    ):
        check_lengths(corpus, TrainConfig(batch_size=34))
    with pytest.raises(CorpusError, match="valid split has 50 tokens, too few for train.eval_batch_size = 50"):
        check_lengths(corpus, TrainConfig(batch_size=10, eval_batch_size=50, eval_context=0))


def test_the_reader_names_what_a_split_lacks(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    (tmp_path / "test.txt").unlink()
    assert TextFolder(tmp_path, DataConfig(corpus="x")).splits() == ("train", "valid")


def test_a_given_vocabulary_is_the_models_and_lies_beside_the_text(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus")
    (folder / "words.txt").write_text("word3\nnever\nword1\n", encoding="utf-8")
    config = DataConfig(corpus=str(folder), vocabulary="words.txt")
    corpus = open_corpus(config, tmp_path / "cache")
    assert corpus.vocabulary.words == ("<unk>", "<eos>", "word3", "never", "word1")
    whole = open_corpus(DataConfig(corpus=str(folder)), tmp_path / "cache")
    assert corpus.fingerprint != whole.fingerprint and len(corpus.train.tokens) == len(whole.train.tokens)
    (folder / "words.txt").write_text("word3\nword1\nword2\n", encoding="utf-8")
    assert open_corpus(config, tmp_path / "cache").vocabulary.words[2:] == ("word3", "word1", "word2")
    for text, why in (("a b\n", "line 1 of .* is not one word"), ("a\n\nb\n", "line 2"), ("a\na\n", "has 'a' twice")):
        (folder / "words.txt").write_text(text, encoding="utf-8")
        with pytest.raises(CorpusError, match=why):
            open_corpus(config, tmp_path / "cache")
    with pytest.raises(CorpusError, match="cannot be read"):
        open_corpus(DataConfig(corpus=str(folder), vocabulary="missing.txt"), tmp_path / "cache")
    with pytest.raises(ConfigError, match="leave data.min_count and data.max_vocabulary out"):
        DataConfig(corpus="x", vocabulary="words.txt", min_count=2)
