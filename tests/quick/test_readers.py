"""Any text in: files and folders, packed ones, arrays; normalised, cut into splits and articles; and what is refused."""

import gzip
import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmsearch.config import DataConfig
from lmsearch.errors import ConfigError, CorpusError, LmsearchError
from lmsearch.text import readers
from lmsearch.text.arrays import ArrayFolder
from lmsearch.text.corpus import Corpus, Text, open_corpus
from lmsearch.text.lines import basic_words, tutorial_words
from tests.factories import save_articles, write_corpus

TITLED = " = One = \n\n a b c \n = = Part = = \n d e \n\n = Two = \n\n f g h i \n k = 1 = \n\n = Three = \n\n a b \n"


def opened(path: Path, **options: Any) -> Corpus:
    return open_corpus(DataConfig(corpus=str(path), **{"min_count": 1} | options), path.parent / "cache")


def words_of(corpus: Corpus, text: Text | None) -> str:
    assert text is not None
    return " ".join(corpus.vocabulary.words[token] for token in text.tokens)


# Words.


def test_basic_splits_marks_off_lowers_case_and_keeps_every_script_whole() -> None:
    line = "Don't — «Élan» <unk> costs 3€; हिन्दी, naïve! <unk>"
    assert basic_words(line) == (
        "don ' t — « élan » <unk> costs 3 € ; हिन्दी , naïve ! <unk>".split()  # noqa: SIM905
    )


def test_tutorial_is_its_two_regexes_and_keeps_the_case() -> None:
    assert tutorial_words("Hello, World! It's 3.5 km?") == ["Hello", "World", "!", "It", "s", ".", "km", "?"]


# One file.


def test_one_file_is_cut_into_contiguous_parts_at_the_ends_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    lines = [f"a{number} b{number % 7} c" for number in range(100)]
    path.write_text("\n".join(lines) + "\n")
    corpus = opened(path)
    parts = [words_of(corpus, text) for text in (corpus.train, corpus.valid, corpus.test)]
    sizes = [part.count("<eos>") for part in parts]
    assert sum(sizes) == 100 and abs(sizes[0] - 80) <= 2 and abs(sizes[1] - 10) <= 2
    assert parts[0].split(" <eos>")[0] == lines[0] and "c <eos>" in parts[2]
    assert opened(path, split=(0.5, 0.5, 0.0)).test is None
    assert opened(path, split=(0.5, 0.25, 0.25)).fingerprint != corpus.fingerprint


def test_one_file_with_headings_is_cut_between_articles_only(tmp_path: Path) -> None:
    path = tmp_path / "wiki.txt"
    path.write_text(TITLED)
    corpus = opened(path, articles="headings", split=(0.4, 0.3, 0.3))
    assert words_of(corpus, corpus.train).startswith("= One =") and words_of(corpus, corpus.train).endswith(
        "e <eos> <eos>"
    )
    for text, title in ((corpus.valid, "Two"), (corpus.test, "<unk>")):
        assert words_of(corpus, text).startswith(f"= {title} =" if title != "Two" else "= <unk> =")
    with pytest.raises(CorpusError, match="too few articles to be cut into train, valid, test"):
        opened(path, articles="headings", split=(0.9, 0.05, 0.05))


def test_articles_begin_at_headings_after_a_blank_line(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        (tmp_path / f"{split}.txt").write_text("\n" + TITLED)
    corpus = opened(tmp_path, articles="headings")
    assert len(corpus.train.article_starts) == 3 and corpus.train.article_starts[0] == 0
    starts = [corpus.vocabulary.words[corpus.train.tokens[start + 1]] for start in corpus.train.article_starts[1:]]
    assert starts == ["Two", "Three"]
    assert len(opened(tmp_path).train.article_starts) == 1


def test_packed_files_are_the_same_text(tmp_path: Path) -> None:
    plain, packed = write_corpus(tmp_path / "plain"), tmp_path / "packed"
    packed.mkdir()
    for path in plain.glob("*.txt"):
        (packed / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert opened(plain).fingerprint == opened(packed).fingerprint
    single = tmp_path / "one.txt"
    single.write_bytes((plain / "train.txt").read_bytes())
    (tmp_path / "two.txt.gz").write_bytes(gzip.compress(single.read_bytes()))
    assert opened(single).fingerprint == opened(tmp_path / "two.txt.gz").fingerprint
    (packed / "train.txt.gz").write_bytes(gzip.compress(b"a b c\n" * 99)[:-12])
    with pytest.raises(CorpusError, match=r"train.txt.gz is not a whole gzip file"):
        opened(packed)


def test_wikitexts_own_file_names_are_known(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        (tmp_path / f"wiki.{split}.tokens").write_text(f"a b {split}\n")
    assert opened(tmp_path).test is not None


def test_a_line_of_any_length_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_corpus(tmp_path / "corpus")
    text = " ".join(f"w{number % 50}" for number in range(500))
    for split in ("train", "valid"):
        (folder / f"{split}.txt").write_text(f"{text}\n{text} ")
    whole = opened(folder)
    monkeypatch.setattr(readers, "_LONGEST_PIECE", 64)
    pieces = open_corpus(DataConfig(corpus=str(folder)), tmp_path / "other")
    assert pieces.fingerprint == whole.fingerprint and len(whole.train.tokens) == 1002


# Arrays.


def write_arrays(folder: Path, words: Any = None, objects: bool = True, **splits: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "vocab.npy", np.array(["the", "<unk>", "<eos>", "cat"] if words is None else words))
    for split, articles in ({"train": [[0, 3, 2], [0, 1, 0, 2]], "valid": [[3, 0, 2]]} | splits).items():
        if objects:
            save_articles(folder / f"wiki.{split}.npy", articles)
        else:
            np.save(folder / f"{split}.npy", np.asarray(articles))
    return folder


def test_what_a_pickle_would_run_is_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "exploded"),))

    folder = write_arrays(tmp_path / "arrays")
    held = io.BytesIO()
    np.lib.format.write_array_header_1_0(held, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    held.write(pickle.dumps(np.array([Bomb()], dtype=object)))
    for name in ("vocab.npy", "wiki.train.npy"):
        (folder / name).write_bytes(held.getvalue())
        with pytest.raises(CorpusError, match="pickle can run code"):
            opened(folder)
    assert not (tmp_path / "exploded").exists()


BAD_ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "an index too high": ({"train": [0, 4]}, "train.npy has the index 4, and vocab.npy has words 0 to 3"),
    "a negative index": ({"valid": [0, -1]}, "valid.npy has the index -1"),
    "a duplicate word": ({"words": ["a", "<unk>", "<eos>", "a"]}, "vocab.npy has the word 'a' twice, at 0 and at 3"),
    "no <eos>": ({"words": ["a", "<unk>", "b", "c"]}, "vocab.npy has no <eos>"),
    "numbers for words": ({"words": [1, 2, 3]}, "vocab.npy is no list of words"),
    "fractions": ({"train": [0.5, 1.0]}, "train.npy is no list of whole numbers"),
    "nothing": ({"valid": np.zeros(0, int)}, "the valid split of .* is empty"),
    "a single word": ({"train": [3, 3, 3]}, "fewer than two words"),
    "two dimensions": ({"train": [[0, 1], [1, 2]]}, "train.npy is no list of whole numbers"),
}


@pytest.mark.parametrize(("given_", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_arrays_that_are_no_corpus_are_refused(tmp_path: Path, given_: dict[str, Any], message: str) -> None:
    good = {"train": [0, 3, 2, 1], "valid": [3, 0]}
    with pytest.raises(CorpusError, match=message):
        opened(write_arrays(tmp_path / "arrays", objects=False, **(good | given_)))


def test_settings_that_would_do_nothing_are_refused(tmp_path: Path) -> None:
    arrays, folder = write_arrays(tmp_path / "arrays", objects=False, train=[0, 1, 2], valid=[0, 1]), tmp_path / "text"
    write_corpus(folder)
    for path, options in (
        (arrays, {"min_count": 3}),
        (arrays, {"normalize": "basic"}),
        (folder, {"split": (0.5, 0.25, 0.25)}),
        (Path("python-docs"), {"articles": "headings"}),
    ):
        with pytest.raises(ConfigError, match=f"data.{next(iter(options))} does nothing to"):
            open_corpus(DataConfig(corpus=str(path), **options), tmp_path / "cache")  # type: ignore[arg-type]


# Bad input, of every kind.


def test_line_ends_and_a_byte_order_mark_change_nothing_in_one_file(tmp_path: Path) -> None:
    text = "a b c\nd e f\n" * 40
    (tmp_path / "unix.txt").write_bytes(text.encode())
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    found = [opened(tmp_path / name) for name in ("unix.txt", "windows.txt")]
    assert found[0].vocabulary == found[1].vocabulary
    assert [list(one.train.tokens) for one in found[:1]] == [list(one.train.tokens) for one in found[1:]]


FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
CONTENT = st.one_of(
    st.binary(max_size=200),
    st.text(alphabet=st.sampled_from("ab \n\r\t=<unk>é\u2028\x00\x0b."), max_size=300).map(str.encode),
    st.lists(st.sampled_from([b"a b c\n", b" = T = \n", b"\n", b"x <unk> y\n"]), max_size=40).map(b"".join),
)
OPTIONS = st.fixed_dictionaries(
    {
        "normalize": st.sampled_from(["none", "basic", "tutorial"]),
        "articles": st.sampled_from(["none", "headings"]),
        "min_count": st.integers(1, 3),
        "max_vocabulary": st.integers(0, 5),
    }
)


def check_valid(corpus: Corpus) -> None:
    texts = [text for text in (corpus.train, corpus.valid, corpus.test) if text is not None]
    for text in texts:
        assert len(text.tokens) and text.tokens.min() >= 0 and text.tokens.max() < len(corpus.vocabulary)
        assert text.article_starts[0] == 0 and (np.diff(text.article_starts) > 0).all()
        assert text.article_starts[-1] < len(text.tokens)
    assert {"<unk>", "<eos>"} <= set(corpus.vocabulary.words)


def is_refused_or_valid(path: Path, options: dict[str, Any], cache: Path) -> None:
    try:
        check_valid(open_corpus(DataConfig(corpus=str(path), **options), cache))
    except LmsearchError as error:
        assert "\n" not in str(error)


@FUZZ
@given(CONTENT, OPTIONS, st.sampled_from([".txt", ".txt.gz"]), st.booleans())
def test_any_file_is_a_corpus_or_refused(
    tmp_path: Path, content: bytes, options: dict[str, Any], suffix: str, pack: bool
) -> None:
    path = tmp_path / f"text{suffix}"
    path.write_bytes(gzip.compress(content) if pack else content)
    is_refused_or_valid(path, options, tmp_path / "cache")


@FUZZ
@given(CONTENT, CONTENT, OPTIONS)
def test_any_folder_is_a_corpus_or_refused(tmp_path: Path, train: bytes, valid: bytes, options: dict[str, Any]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(exist_ok=True)
    (folder / "train.txt").write_bytes(train)
    (folder / "valid.txt").write_bytes(valid)
    is_refused_or_valid(folder, options, tmp_path / "cache")


def saved(array: Any) -> bytes:
    held = io.BytesIO()
    np.save(held, array, allow_pickle=True)
    return held.getvalue()


ARRAYS = st.one_of(
    st.lists(st.integers(-2, 6), max_size=12).map(np.array).map(saved),
    st.lists(st.lists(st.integers(-1, 5), max_size=4), max_size=4).map(lambda x: np.array([*x, None], object)[:-1]).map(saved),
    st.lists(st.sampled_from(["a", "b", "<unk>", "<eos>", ""]), max_size=6).map(lambda x: np.array(x, "U")).map(saved),
    st.binary(max_size=60),
    st.binary(max_size=20).map(lambda junk: saved(np.arange(4))[:-3] + junk),
)  # fmt: skip


@FUZZ
@given(ARRAYS, ARRAYS, ARRAYS, st.booleans())
def test_any_arrays_are_a_corpus_or_refused(
    tmp_path: Path, words: bytes, train: bytes, articles: bytes, good_words: bool
) -> None:
    folder = tmp_path / "arrays"
    folder.mkdir(exist_ok=True)
    (folder / "vocab.npy").write_bytes(saved(np.array(["<unk>", "<eos>", "a", "b", "c"])) if good_words else words)
    (folder / "train.npy").write_bytes(train)
    (folder / "valid.npy").write_bytes(saved(np.array([0, 1, 2, 3])))
    (folder / "train.articles.npy").write_bytes(articles)
    is_refused_or_valid(folder, {}, tmp_path / "cache")


# Encoding a large text.


def test_a_folder_of_arrays_is_reported_by_what_it_lacks(tmp_path: Path) -> None:
    folder = write_arrays(tmp_path / "arrays", objects=False, train=[0, 1, 2], valid=[0, 1])
    (folder / "valid.npy").unlink()
    with pytest.raises(CorpusError, match="has a vocab.npy and no valid.npy"):
        ArrayFolder(folder)
