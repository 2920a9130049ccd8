"""A text is judged once: what would mislead is said, what cannot be trained on is refused."""

import itertools
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest

from lmsearch.config import DataConfig
from lmsearch.errors import CorpusError
from lmsearch.text.corpus import Corpus, open_corpus
from lmsearch.text.judgement import judge, unknown_share
from lmsearch.text.lines import LOSSY, NORMALIZE
from lmsearch.text.vocabulary import EOS, UNK


def opened(path: Path, **options: Any) -> Corpus:
    return open_corpus(DataConfig(corpus=str(path), **options), path.parent / "cache")


def lines_of(words: list[str], count: int, seed: int = 0, last: str = "", first: str = "") -> str:
    chosen = random.Random(seed)
    rows = ([first] * bool(first) + chosen.choices(words, k=8) + [last] * bool(last) for _ in range(count))
    return "".join(" ".join(row) + "\n" for row in rows)


def folder_of(path: Path, train: str, valid: str) -> Path:
    path.mkdir()
    (path / "train.txt").write_text(train)
    (path / "valid.txt").write_text(valid)
    return path


COMMON = [f"w{number}" for number in range(20)]


def test_a_word_that_is_never_taught_is_reported_and_the_default_teaches_it(tmp_path: Path) -> None:
    rare = lines_of([*COMMON, *(f"rare{n}" for n in range(3))], 40)
    once = " ".join(f"once{number}" for number in range(30)) + "\n"
    folder = folder_of(tmp_path / "text", lines_of(COMMON, 100) + once, rare)
    untaught = opened(folder, min_count=1)
    (remark,) = judge(untaught)
    assert "the train split has none, so the model never learns to predict it" in remark and "min_count = 2" in remark
    taught = opened(folder)
    assert judge(taught) == [] and unknown_share(taught, taught.train) > 0
    # A text with <unk> of its own keeps all its words.
    (folder / "train.txt").write_text(lines_of(COMMON, 100) + once + "<unk> <unk>\n")
    own = opened(folder)
    assert "once7" in own.vocabulary.words and judge(own) == []


def test_a_text_that_is_mostly_unknown_is_reported(tmp_path: Path) -> None:
    valid = lines_of([*COMMON, *(f"other{number}" for number in range(30))], 40)
    folder = folder_of(tmp_path / "text", lines_of(COMMON, 100) + "x y\n", valid)
    (remark,) = judge(opened(folder))
    assert "of the valid split is <unk>: a low perplexity says little" in remark


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        ("", "<eos>", "the text has 100 words <eos> of its own"),
        ("<s>", "</s>", "nearly every line has <s> and </s>"),
        ("[CLS]", "", "nearly every line has [CLS]"),
        ("", "<pad>", "nearly every line has <pad>"),
        ("<unk>", "", ""),
        ("Jun", ".", ""),
    ],
)
def test_marks_that_a_text_brings_are_reported(tmp_path: Path, first: str, last: str, said: str) -> None:
    folder = folder_of(tmp_path / "text", lines_of(COMMON, 100, 1, last, first), lines_of(COMMON, 30, 2, last, first))
    remarks = judge(opened(folder))
    assert [said in remark for remark in remarks] == [True] * bool(said), remarks


def test_blank_lines_are_no_eos_of_the_texts_own(tmp_path: Path) -> None:
    text = lines_of(COMMON, 60).replace("\n", "\n\n")
    assert judge(opened(folder_of(tmp_path / "text", text, text))) == []


def test_a_normaliser_that_drops_most_of_a_text_is_reported(tmp_path: Path) -> None:
    arabic = ["كتاب", "قلم", "بيت", "شمس", "hello", "world"]
    text = lines_of(arabic, 100)
    folder = folder_of(tmp_path / "text", text, text)
    (remark,) = judge(opened(folder, normalize="tutorial"))
    assert "of the text's characters" in remark and 'normalize = "basic"' in remark
    assert judge(opened(folder, normalize="basic")) == []
    english = lines_of(["the", "cat", "sat,", "3"], 100)
    assert judge(opened(folder_of(tmp_path / "english", english, english), normalize="tutorial")) == []


def test_each_normaliser_that_loses_characters_is_counted() -> None:
    line = "Élan, 3 € — हिन्दी naïve!"
    for name, split in NORMALIZE.items():
        lost = len("".join(line.lower().split())) - len("".join(split(line)))
        assert (lost > 0) == (name in LOSSY)


def test_fewer_than_two_words_that_occur_often_enough_are_refused(tmp_path: Path) -> None:
    # Made-up text without spaces: each line is one word, and no word comes again.
    text = "".join(f"{chr(0x4E00 + a)}{chr(0x4E00 + b)}\n" for a, b in itertools.product(range(20), range(20)))
    (tmp_path / "text.txt").write_text(text)
    with pytest.raises(CorpusError, match=r"of 3\d\d different ones all but 0 are <unk> by data.min_count.*spaces"):
        opened(tmp_path / "text.txt")
    (tmp_path / "unk.txt").write_text("<unk> <unk> a\n" * 40)
    with pytest.raises(CorpusError, match="has fewer than two words$"):
        opened(tmp_path / "unk.txt")


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_split_of_one_token_is_refused_before_anything_is_trained(tmp_path: Path, split: str) -> None:
    folder = folder_of(tmp_path / "text", lines_of(COMMON, 50), lines_of(COMMON, 9))
    (folder / f"{split}.txt").write_text("\n")
    with pytest.raises(CorpusError, match=f"the {split} split of .* has 1 token, so there is nothing to predict"):
        opened(folder)
    one = tmp_path / "one.txt"
    one.write_text(lines_of(COMMON, 34) + "\n")
    with pytest.raises(CorpusError, match=r"the test split .* give data.split other shares, or test none \(0\)"):
        opened(one, split=(0.8, 0.19, 0.01))


def test_archives_and_bytes_of_zero_are_refused_by_name(tmp_path: Path) -> None:
    inside = tmp_path / "inside.txt"
    inside.write_text(lines_of(COMMON, 50))
    for name, mode in (("text.tar", "w"), ("text.tar.gz", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as archive:  # type: ignore[call-overload]
            archive.add(inside, "inside.txt")
        with pytest.raises(CorpusError, match="is a tar archive; unpack it"):
            opened(tmp_path / name)
    (tmp_path / "zero.txt").write_bytes(inside.read_bytes() + b"\0\n" + inside.read_bytes())
    with pytest.raises(CorpusError, match=r"is not a text: byte \d+ is zero"):
        opened(tmp_path / "zero.txt")


def test_lines_that_end_as_on_old_macs_are_reported(tmp_path: Path) -> None:
    (tmp_path / "mac.txt").write_bytes(lines_of(COMMON, 50).replace("\n", "\r").encode())
    with pytest.raises(
        CorpusError, match=r"CR alone, as on old Macs; convert it with: tr '\\r' '\\n'; or give a folder"
    ):
        opened(tmp_path / "mac.txt")


def test_a_text_without_a_space_is_refused_at_once_and_one_with_rare_spaces_is_read(tmp_path: Path) -> None:
    (tmp_path / "solid.txt").write_bytes(b"x" * (40 << 20))
    with pytest.raises(CorpusError, match="has more than 1 MiB without a space"):
        opened(tmp_path / "solid.txt", split=(0.8, 0.2, 0.0))
    (tmp_path / "solid").mkdir()
    for split in ("train", "valid"):
        (tmp_path / "solid" / f"{split}.txt").write_bytes(b"x" * (40 << 20))
    with pytest.raises(CorpusError, match="has more than 1 MiB without a space"):
        opened(tmp_path / "solid")
    wide = ("y" * 500_000 + "\u3000") * 5
    folder = folder_of(tmp_path / "wide", wide + "a b a b\n", "a b\n")
    assert [len(word) for word in opened(folder).vocabulary.words if word not in (UNK, EOS)] == [500_000, 1, 1]


def test_a_pipe_and_a_device_are_refused_in_place_of_a_text(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.txt")
    for path in (tmp_path / "pipe.txt", Path("/dev/zero")):
        with pytest.raises(CorpusError, match="is not a file; a text is read several times"):
            open_corpus(DataConfig(corpus=str(path)), tmp_path / "cache")
