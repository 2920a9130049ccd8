"""Formats: each has a number, a newer one is refused in one sentence, and a damaged one is distinguished from a newer one."""

import json
import re
import tomllib
from pathlib import Path

import pytest

import lmsearch
from lmsearch.care import disk
from lmsearch.config import DataConfig
from lmsearch.errors import LmsearchError
from lmsearch.formats import (
    FIRST,
    FORMATS,
    FORMATS_OF,
    DamagedError,
    NewerFormatError,
    check_stamp,
    known_version,
    seal,
    stamp,
    unseal,
)
from lmsearch.lm.use.model_folder import load
from lmsearch.study.reading import load_config, load_study
from lmsearch.text.corpus import load_cached, open_corpus
from tests.factories import TINY_STUDY, write_corpus, write_study

ROOT = Path(__file__).parents[2]


def test_a_changed_format_rises_with_a_version_and_never_falls() -> None:
    versions = list(FORMATS_OF)
    assert versions[0] == FIRST and versions == sorted(versions, key=lambda v: tuple(map(int, v.split("."))))
    for before, after in zip(FORMATS_OF.values(), list(FORMATS_OF.values())[1:], strict=False):
        assert before != after and all(after[kind] >= number for kind, number in before.items())
    newest = tuple(map(int, versions[-1].split(".")))
    assert tuple(int(part) for part in lmsearch.__version__.split(".")) >= newest
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project and project["dynamic"] == ["version"]  # it stands in one place


@pytest.mark.parametrize("kind", ["checkpoint", "training state"])
def test_what_is_sealed_comes_back_and_damage_is_distinguished_from_a_newer_format(kind: str) -> None:
    sealed = seal(kind, b"content\n\xff")
    assert unseal(kind, "x", sealed) == (FORMATS[kind], b"content\n\xff")
    assert f" {lmsearch.__version__} ".encode() in sealed.partition(b"\n")[0]
    for damaged in (sealed[:-1], sealed + b"x", b"", b"\n", sealed.replace(b"lmsearch", b"lmsaerch"), b"\xff" * 99):
        with pytest.raises(DamagedError):
            unseal(kind, "x", damaged)
    other = {"checkpoint": "training state", "training state": "checkpoint"}[kind]
    with pytest.raises(DamagedError):
        unseal(other, "x", sealed)
    number = f"-{FORMATS[kind]} ".encode()
    newer = sealed.replace(number, b"-99 ").replace(lmsearch.__version__.encode(), b"7.1.0")[:-3]  # and cut short
    with pytest.raises(NewerFormatError) as error:
        unseal(kind, "the file x", newer)
    assert str(error.value) == (
        f"the file x is of format 99 (lmsearch 7.1.0 wrote it), and lmsearch {lmsearch.__version__} reads up to format "
        f"{FORMATS[kind]}; it is left as it is: use lmsearch 7.1.0 or later"
    )


@pytest.mark.parametrize("version", ["\x1b[2Jevil", "1.0; rm -rf ~", "", None, 7, "1" * 99])
def test_a_version_that_is_none_is_never_repeated(version: object) -> None:
    assert known_version(version) == FIRST
    with pytest.raises(NewerFormatError) as error:
        check_stamp("model", "x", {"format": 99, "lmsearch": version})
    assert str(error.value).endswith("it is left as it is: use a later lmsearch")


@pytest.mark.parametrize("number", [0, -1, "2", 1.5, True, None, [1]])
def test_a_format_that_is_no_number_is_refused(number: object) -> None:
    with pytest.raises(LmsearchError, match="which is no whole number from 1"):
        check_stamp("model", "x", {"format": number})


def test_a_newer_study_file_config_and_model_are_refused_before_their_content(tmp_path: Path) -> None:
    path = write_study(tmp_path, "unknown_key = 7\n" + TINY_STUDY.replace("format = 1", "format = 9"))
    with pytest.raises(NewerFormatError, match="is of format 9, and lmsearch .* use a later lmsearch$"):
        load_study(path)
    config = tmp_path / "best-config.json"
    config.write_text(json.dumps({"format": 9, "lmsearch": "3.0.0", "nothing": "known"}))
    with pytest.raises(NewerFormatError, match=r"use lmsearch 3\.0\.0 or later$"):
        load_config(config)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(stamp("model") | {"format": 9, "lmsearch": "3.0.0"}))
    (folder / "config.json").write_text('{"model": {"cell": "of the future"}}')
    with pytest.raises(NewerFormatError, match=r"the model .* use lmsearch 3\.0\.0 or later$"):
        load(folder)


def test_an_encoded_corpus_of_a_later_version_is_not_damaged(tmp_path: Path) -> None:
    open_corpus(DataConfig(corpus=str(write_corpus(tmp_path / "text"))), tmp_path / "cache")
    (meta,) = (tmp_path / "cache/corpora").glob("*/meta.json")
    document = json.loads(meta.read_text())
    assert (document["format"], document["lmsearch"]) == (FORMATS["encoded corpus"], lmsearch.__version__)
    meta.write_text(json.dumps({"format": 99, "lmsearch": "3.0.0", "words": {}, "fingerprint": 1, "splits": 7}))
    with pytest.raises(NewerFormatError, match=r"use lmsearch 3\.0\.0 or later$"):
        load_cached(meta.parent, "")
    assert disk.damaged_corpora(tmp_path / "cache") == []


def test_the_formats_stand_on_the_page_of_the_store() -> None:
    text = (ROOT / "docs/store.md").read_text()
    rows = dict(re.findall(r"^\| (\w[\w ]*?) \|.*\| (\d+) \|$", text, re.MULTILINE))
    assert {kind: int(rows[kind]) for kind in FORMATS} == FORMATS
