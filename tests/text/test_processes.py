"""Corpora read by commands, by several processes at once, and by one that is killed."""

import json
import multiprocessing
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lmsearch.config import DataConfig
from lmsearch.errors import CorpusError
from lmsearch.text.corpus import open_corpus
from tests.conftest import Cli
from tests.factories import write_corpus
from tests.quick.test_judgement import lines_of
from tests.quick.test_readers import opened, write_arrays
from tests.quick.test_text import open_folder


def test_arrays_of_objects_are_refused_and_converted_once_into_safe_ones(tmp_path: Path, cli: Cli) -> None:
    folder = write_arrays(tmp_path / "arrays")
    with pytest.raises(
        CorpusError, match="pickle can run code.*lmsearch data convert .*arrays NEW-FOLDER --allow-pickle"
    ):
        opened(folder)
    allowed = open_corpus(DataConfig(corpus=str(folder)), tmp_path / "other", allow_pickle=True)
    said = cli("data", "convert", "arrays", "safe", "--allow-pickle")
    assert said.returncode == 0 and "train 7, valid 3" in said.stdout
    safe = opened(tmp_path / "safe")
    assert safe.vocabulary.words == ("the", "<unk>", "<eos>", "cat")  # index by index
    assert list(safe.train.tokens) == [0, 3, 2, 0, 1, 0, 2] and list(safe.train.article_starts) == [0, 3]
    assert safe.fingerprint == allowed.fingerprint and safe.shuffle_articles
    assert cli("data", "convert", "arrays", "safe", "--allow-pickle").returncode == 2  # nothing is overwritten


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too few lines to be cut into train, valid, test"),
    "not UTF-8": (b"a b\n" * 10 + b"c \xff d\n" + b"a b\n" * 10, "book.txt is not UTF-8: byte 42 cannot be read"),
    "one line": (b"a b c d e f", "too few lines"),
    "one word": (b"a\n" * 50, "fewer than two words"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_is_no_corpus_is_refused_with_one_sentence(
    tmp_path: Path, cli: Cli, content: bytes, message: str
) -> None:
    (tmp_path / "book.txt").write_bytes(content)
    said = cli("data", "show", "book.txt")
    assert said.returncode == 2 and message in said.stderr and "Traceback" not in said.stderr
    assert said.stderr.count("\n") == 1


def test_a_corpus_is_encoded_in_bounded_memory_and_survives_a_kill_in_the_middle(tmp_path: Path) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    rng = np.random.default_rng(0)
    block = "\n".join(" ".join(f"w{word}" for word in row) for row in rng.zipf(1.3, (2_000, 25)) % 20_000) + "\n"
    (folder / "train.txt").write_text(block * 60)  # 3.1 million tokens, 18 MB
    (folder / "valid.txt").write_text(block)
    program = f"""
import resource, sys
from pathlib import Path
from lmsearch.config import DataConfig
from lmsearch.text.corpus import open_corpus
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def tell(what, done, total):
    print(what, done, total, flush=True)
corpus = open_corpus(DataConfig(corpus={str(folder)!r}), Path({str(tmp_path / "cache")!r}), progress=tell)
print("grown", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, len(corpus.train.tokens))
"""
    killed = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    for line in killed.stdout:
        if line.startswith("encoding train"):
            break
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    lines = said.splitlines()
    assert any(line.startswith("counting words ") for line in lines)
    assert any(line.startswith("encoding train ") and line.endswith(" 3120000") for line in lines)
    _, grown, tokens = lines[-1].split()
    assert int(tokens) == 60 * 2_000 * 26
    assert int(grown) < 60_000  # kB; the tokens and the text would be 30 MB together, words as objects 200


def test_data_show_tells_what_a_model_would_see(tmp_path: Path, cli: Cli) -> None:
    write_corpus(tmp_path / "corpus")
    said = cli("data", "show", "corpus", "--max-vocabulary", "8")
    assert said.returncode == 0
    assert "8 words, fingerprint" in said.stdout and "first lines:" in said.stdout
    facts = json.loads(cli("data", "show", "corpus", "--max-vocabulary", "8", "--json").stdout)
    train = facts["splits"][0]
    assert (train["split"], train["tokens"], train["articles"]) == ("train", 660, 1)
    assert 0.2 < train["unknown"] < 0.6 and sum(facts["most_frequent"].values()) == 660
    listed = cli("data", "list").stdout
    assert all(name in listed for name in ("python-docs", "wikitext-2", "penn-treebank"))
    assert (
        "no text to fetch is called 'wikitext2'; did you mean wikitext-2?" in cli("data", "fetch", "wikitext2").stderr
    )


def _open_in_another_process(folder: str) -> str:
    return open_folder(Path(folder)).fingerprint


def test_many_processes_encode_a_corpus_once(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", lines=3_000)
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        found = set(pool.map(_open_in_another_process, [str(folder)] * 4))
    assert len(found) == 1
    made = [path for path in (folder / "cache" / "corpora").iterdir() if path.is_dir()]
    assert len(made) == 1 and not list(made[0].parent.glob("*.draft"))


def test_what_is_no_utf_8_text_is_refused_with_the_command_that_makes_it_one(tmp_path: Path) -> None:
    text = lines_of(["grün", "blau", "gelb"], 40)
    path = tmp_path / "a text.txt"
    for encoding, named in (("utf-16", "UTF-16LE"), ("utf-16-le", "UTF-16LE"), ("utf-16-be", "UTF-16BE"),
                            ("iso-8859-1", "ISO-8859-1")):  # fmt: skip
        path.write_bytes(text.encode(encoding))
        with pytest.raises(CorpusError) as refused:
            opened(path)
        assert f"convert it with: iconv -f {named} -t UTF-8" in str(refused.value), encoding
        command = str(refused.value).partition("convert it with: ")[2]
        subprocess.run(command, shell=True, check=True, cwd=tmp_path, timeout=60)
        converted = tmp_path / "a text-utf8.txt"
        assert {"grün", "blau"} <= set(opened(converted).vocabulary.words)
        converted.unlink()
