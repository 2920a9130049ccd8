"""The text of a study on a host that has none: fetched once, verified, and the same to a training."""

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lmsearch.care.disk import StudyTickets, check_corpora
from lmsearch.config import DataConfig
from lmsearch.errors import CorpusError
from lmsearch.search.begin import begin
from lmsearch.search.budget import Request
from lmsearch.search.corpora import join_corpus, share_corpus
from lmsearch.store.artifacts import Artifacts
from lmsearch.store.opening import open_storage
from lmsearch.store.records import StudyInfo
from lmsearch.store.url import parse_url
from lmsearch.text.corpus import Corpus, open_corpus
from tests.factories import TINY_STUDY, make_spec, save_articles, write_corpus
from tests.store.test_checkpoints import make_ticket


class Home:
    """The host on which a study begins, and whose text others fetch."""

    def __init__(self, folder: Path, config: DataConfig, allow_pickle: bool = False) -> None:
        self.corpus = open_corpus(config, folder / "cache-here", allow_pickle=allow_pickle)
        self.artifacts = Artifacts(str(folder / "shared"))
        share_corpus(self.corpus, self.artifacts)
        text = TINY_STUDY.replace('corpus = "corpus"', f"corpus = {json.dumps(config.corpus)}")
        storage = open_storage(parse_url(f"sqlite:///{folder}/store.db"), create=True)
        self.info: StudyInfo = begin(storage, "tiny", make_spec(folder, text), str(folder), self.corpus, Request())
        self.object = folder / f"shared/corpora/{self.corpus.fingerprint}.zip"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    write_corpus(tmp_path / "corpus")
    found = Home(tmp_path, DataConfig(corpus=str(tmp_path / "corpus")))
    shutil.rmtree(tmp_path / "corpus")
    return found


def same(first: Corpus, second: Corpus) -> bool:
    return (
        (first.fingerprint, first.vocabulary.words) == (second.fingerprint, second.vocabulary.words)
        and first.shuffle_articles == second.shuffle_articles
        and np.array_equal(first.train.tokens, second.train.tokens)
        and np.array_equal(first.train.article_starts, second.train.article_starts)
    )


def test_a_host_without_the_text_fetches_it_once(home: Home, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="there is no corpus"):
        join_corpus(home.info, tmp_path / "cache", None, None)
    assert same(join_corpus(home.info, tmp_path / "cache", None, home.artifacts), home.corpus)
    home.object.unlink()
    assert same(join_corpus(home.info, tmp_path / "cache", str(tmp_path / "nowhere"), home.artifacts), home.corpus)
    with pytest.raises(CorpusError, match="does not have it either: lmsearch run puts it there"):
        join_corpus(home.info, tmp_path / "another", None, home.artifacts)


def test_doctor_knows_that_a_missing_text_can_be_fetched(home: Home, tmp_path: Path) -> None:
    ticket = dataclasses.replace(make_ticket(), state="open")
    study = StudyTickets(info=home.info, tickets=(ticket,))
    (missing,) = check_corpora(tmp_path / "cache", [study], repair=False)
    assert missing.state == "problem" and "there is no corpus" in missing.text
    (fetched,) = check_corpora(tmp_path / "cache", [study], repair=False, artifacts=home.artifacts)
    assert fetched.state == "ok" and "workers fetch it from" in fetched.text


def test_another_text_under_the_studys_path_is_not_used(home: Home, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", seed=1)
    assert same(join_corpus(home.info, tmp_path / "cache", None, home.artifacts), home.corpus)
    with pytest.raises(CorpusError, match="or a place that has it with --artifacts URL"):
        join_corpus(home.info, tmp_path / "cache", None, None)


def test_an_array_text_is_trusted_once_and_its_articles_are_shuffled_everywhere(tmp_path: Path) -> None:
    arrays = tmp_path / "arrays"
    arrays.mkdir()
    articles = [np.arange(30) % 6 for _ in range(20)]
    for split in ("train", "valid", "test"):
        save_articles(arrays / f"{split}.npy", articles)
    np.save(arrays / "vocab.npy", np.array(["<eos>", "<unk>", "a", "b", "c", "d"]))
    home = Home(tmp_path, DataConfig(corpus=str(arrays)), allow_pickle=True)
    shutil.rmtree(arrays)
    fetched = join_corpus(home.info, tmp_path / "cache", None, home.artifacts)
    assert fetched.shuffle_articles and same(fetched, home.corpus)


@pytest.mark.parametrize("damage", ["cut", "another", "floats", "words", "no json"])
def test_a_corpus_that_is_damaged_or_another_is_refused(home: Home, tmp_path: Path, damage: str) -> None:
    if damage == "cut":
        home.object.write_bytes(home.object.read_bytes()[:-40])
    else:
        with zipfile.ZipFile(home.object) as archive:
            content = {name: archive.read(name) for name in archive.namelist()}
        if damage == "another":
            content["train.npy"] = content["train.npy"][:-4] + b"\1\0\0\0"
        elif damage == "floats":
            np.save(tmp_path / "floats.npy", home.corpus.train.tokens.astype(np.float64))
            content["train.npy"] = (tmp_path / "floats.npy").read_bytes()
        elif damage == "words":
            content["meta.json"] = content["meta.json"].replace(b'"words": [', b'"words": [1, ')
        else:
            content["meta.json"] = b"[" * 100_000
        with zipfile.ZipFile(home.object, "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
    with pytest.raises(CorpusError, match="does not have it either"):
        join_corpus(home.info, tmp_path / "cache", None, home.artifacts)
    left = [path for path in (tmp_path / "cache/corpora").iterdir() if path.suffix != ".lock"]
    assert [path.name for path in left] == [".lmsearch.json"]
