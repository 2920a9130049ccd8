"""Texts that are fetched by name: whole, cut short, another one, from a second mirror, and without any network."""

import dataclasses
import hashlib
import http.server
import io
import socket
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmsearch.config import DataConfig
from lmsearch.errors import CorpusError
from lmsearch.text.corpus import open_corpus
from lmsearch.text.fetch import DATASETS, Dataset, File, fetched, is_fetched

TEXTS = {"train": b"a b c\n" * 30, "valid": b"a b\n" * 5, "test": b"c b\n" * 5}


def sha1(content: bytes) -> str:
    return f"sha1:{hashlib.sha1(content).hexdigest()}"


def archive(members: dict[str, bytes]) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as writer:
        for name, content in members.items():
            writer.writestr(name, content)
    return held.getvalue()


GOOD = archive({f"small/wiki.{split}.tokens": content for split, content in TEXTS.items()})


class Mirror:
    """A server that answers with what a test puts on it."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.cut: set[str] = set()  # pages of which only the first half comes
        self.requests: list[str] = []
        mirror = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.requests.append(self.path)
                content = mirror.pages.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if self.path in mirror.cut else content)

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, page: str) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}{page}"


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    opened = Mirror()
    yield opened
    opened.server.shutdown()
    opened.server.server_close()


@pytest.fixture
def small(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Let `wikitext-2` be a small text on two pages of the mirror."""
    files = {
        split: File(name=f"small/wiki.{split}.tokens", hash=sha1(content), tokens=len(content.split()) + content.count(b"\n"))
        for split, content in TEXTS.items()
    }  # fmt: skip
    dataset = Dataset(
        title="small",
        licence="none",
        files=files,
        archive_hash=sha1(GOOD),
        archive_mirrors=(mirror.url("/first.zip"), mirror.url("/second.zip")),
    )
    monkeypatch.setitem(DATASETS, "wikitext-2", dataset)
    return dataset


def use(monkeypatch: pytest.MonkeyPatch, dataset: Dataset, **changes: object) -> None:
    monkeypatch.setitem(DATASETS, "wikitext-2", dataclasses.replace(dataset, **changes))  # type: ignore[arg-type]


def test_a_text_is_fetched_once_verified_and_used_without_a_network_afterwards(
    mirror: Mirror, small: Dataset, tmp_path: Path
) -> None:
    mirror.pages["/first.zip"] = GOOD
    assert not is_fetched("wikitext-2", tmp_path)
    corpus = open_corpus(DataConfig(corpus="wikitext-2"), tmp_path)
    assert corpus.description == "wikitext-2" and len(corpus.train.tokens) == 120 and corpus.test is not None
    mirror.pages.clear()
    assert open_corpus(DataConfig(corpus="wikitext-2"), tmp_path).fingerprint == corpus.fingerprint
    assert mirror.requests == ["/first.zip"] and is_fetched("wikitext-2", tmp_path)
    assert sorted(path.name for path in (tmp_path / "downloads/wikitext-2").iterdir()) == [
        ".verified", "wiki.test.tokens", "wiki.train.tokens", "wiki.valid.tokens",
    ]  # fmt: skip


@pytest.mark.parametrize("first", ["missing", "cut short", "another"])
def test_where_the_first_mirror_fails_the_second_is_asked(
    mirror: Mirror, small: Dataset, tmp_path: Path, first: str
) -> None:
    mirror.pages["/second.zip"] = GOOD
    if first != "missing":
        mirror.pages["/first.zip"] = GOOD if first == "cut short" else GOOD + b"more"
    mirror.cut = {"/first.zip"} if first == "cut short" else set()
    assert fetched("wikitext-2", tmp_path).is_dir()
    assert mirror.requests == ["/first.zip", "/second.zip"]


@pytest.mark.parametrize(
    ("first", "reason"),
    [(b"", "404 Client Error"), (GOOD[:50], "what came is not the file: its hash is another")],
    ids=["404", "wrong hash"],
)
def test_where_no_mirror_has_it_each_is_named_with_its_reason_and_nothing_is_left(
    mirror: Mirror, small: Dataset, tmp_path: Path, first: bytes, reason: str
) -> None:
    if first:
        mirror.pages |= {"/first.zip": first, "/second.zip": first}
    with pytest.raises(CorpusError) as error:
        fetched("wikitext-2", tmp_path)
    said = str(error.value)
    assert said.count(reason) == 2 and "/first.zip: " in said and "/second.zip: " in said and "\n" not in said
    assert list((tmp_path / "downloads/wikitext-2").iterdir()) == []


def test_without_a_network_one_sentence_says_where_the_files_go_and_which_they_are(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("the network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(CorpusError) as error:
        open_corpus(DataConfig(corpus="wikitext-2"), tmp_path)
    said = str(error.value)
    folder = tmp_path / "downloads/wikitext-2"
    assert f"put these files into {folder} by hand: wiki.train.tokens ({small.files['train'].hash})" in said
    for split, content in TEXTS.items():  # what the sentence says, done
        (folder / f"wiki.{split}.tokens").write_bytes(content)
    assert len(open_corpus(DataConfig(corpus="wikitext-2"), tmp_path).train.tokens) == 120


def test_a_file_put_there_by_hand_that_is_another_is_refused(small: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "downloads/wikitext-2"
    folder.mkdir(parents=True)
    for split, content in TEXTS.items():
        (folder / f"wiki.{split}.tokens").write_bytes(content + b"x" * (split == "test"))
    with pytest.raises(CorpusError, match=r"wiki.test.tokens is not the file of wikitext-2: it has the sha1 \w+, and"):
        fetched("wikitext-2", tmp_path)


def test_a_member_with_a_path_of_its_own_is_never_written(
    mirror: Mirror, small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {f"small/wiki.{split}.tokens": content for split, content in TEXTS.items()}
    bad = archive(members | {"../x": b"outside", "/tmp/x": b"outside"})
    use(monkeypatch, small, archive_hash=sha1(bad))
    mirror.pages["/first.zip"] = bad
    cache = tmp_path / "deep/cache"
    fetched("wikitext-2", cache)
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {".lmsearch.json", ".verified", "wikitext-2.lock", *(f"wiki.{split}.tokens" for split in TEXTS)}


@pytest.mark.parametrize("wrong", ["hash", "tokens", "member"])
def test_an_archive_whose_files_are_others_is_refused(
    mirror: Mirror, small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    change = {"hash": {"hash": sha1(b"")}, "tokens": {"tokens": 7}, "member": {"name": "small/wiki.dev.tokens"}}[wrong]
    valid = dataclasses.replace(small.files["valid"], **change)  # type: ignore[arg-type]
    use(monkeypatch, small, files=small.files | {"valid": valid})
    mirror.pages["/first.zip"] = GOOD
    with pytest.raises(CorpusError, match="is not the file of wikitext-2|is not what it should be"):
        fetched("wikitext-2", tmp_path)
    assert not is_fetched("wikitext-2", tmp_path)


def test_files_that_have_mirrors_of_their_own_are_fetched_one_by_one(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {}
    for split, content in TEXTS.items():
        mirror.pages[f"/ptb.{split}.txt"] = content
        files[split] = File(
            name=f"ptb.{split}.txt",
            hash=f"md5:{hashlib.md5(content).hexdigest()}",
            tokens=len(content.split()) + content.count(b"\n"),
            mirrors=(mirror.url(f"/gone/{split}"), mirror.url(f"/ptb.{split}.txt")),
        )
    monkeypatch.setitem(DATASETS, "penn-treebank", Dataset(title="small", licence="none", files=files))
    assert len(open_corpus(DataConfig(corpus="penn-treebank"), tmp_path).train.tokens) == 120


def test_what_is_known_of_the_texts_agrees_with_itself() -> None:
    """Sources: the publishers' own files, and torchtext's and awd-lstm-lm's checks of them."""
    assert sum(file.tokens for file in DATASETS["wikitext-2"].files.values()) == 2_551_843
    assert sum(file.tokens for file in DATASETS["penn-treebank"].files.values()) == 1_085_779
    for dataset in DATASETS.values():
        assert set(dataset.files) == {"train", "valid", "test"}
        for file in dataset.files.values():
            kind, _, digits = file.hash.partition(":")
            assert len(digits) == hashlib.new(kind).digest_size * 2
            assert dataset.archive_mirrors or len(file.mirrors) > 1
