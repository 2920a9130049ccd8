"""Homes, folders and names that are not as usual: one sentence, and nothing is started."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from lmsearch.errors import ConfigError, CorpusError
from lmsearch.folders import absolute
from lmsearch.study.shipped import find_study_file
from lmsearch.text.corpus import cache_folder
from tests.conftest import Cli
from tests.factories import TINY_STUDY, write_corpus

LMSEARCH = [sys.executable, "-m", "lmsearch.cli.main"]


def test_a_working_folder_that_is_gone_is_reported(tmp_path: Path) -> None:
    for words in ("studies", "run default", "doctor", "train x.toml"):
        gone = tmp_path / "gone"
        gone.mkdir()
        command = f'cd "{gone}" && rmdir "{gone}" && "{sys.executable}" -m lmsearch.cli.main {words}'
        ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
        assert ran.returncode == 2 and "the working folder has been removed" in ran.stderr, (words, ran.stderr)


def test_a_user_without_a_home_is_shown_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may run as a user that nobody has entered anywhere."""

    def nobody(uid: int) -> object:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "LMSEARCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(
        CorpusError, match="there is no home folder to keep encoded texts in; name one in LMSEARCH_CACHE"
    ):
        cache_folder()
    monkeypatch.setenv("LMSEARCH_CACHE", "/tmp/here")
    assert cache_folder() == Path("/tmp/here")
    monkeypatch.setenv("LMSEARCH_CACHE", "~/there")  # as a unit file or Compose gives it, without a shell
    with pytest.raises(ConfigError, match="LMSEARCH_CACHE = '~/there' is not a path"):
        cache_folder()


def test_paths_that_are_none_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in ("a\0b", "~nobody-of-that-name/x", str(tmp_path / "loop"), "bad\udc80\ud800"):
        with pytest.raises(ConfigError, match="is not a path"):
            absolute(path)
    assert absolute("~") == Path.home().resolve()


def test_a_corpus_that_is_a_loop_of_links_is_reported(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    said = cli("data", "show", "loop.txt")
    assert said.returncode == 2 and "Traceback" not in said.stderr and len(said.stderr.splitlines()) == 1


def test_a_study_file_with_bytes_that_are_no_text_in_its_name_can_be_run_under_another_name(
    tmp_path: Path, cli: Cli
) -> None:
    write_corpus(tmp_path / "corpus")
    path = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.toml")
    Path(path).write_text(TINY_STUDY, encoding="utf-8")
    refused = cli("run", path)
    assert refused.returncode == 2 and "a byte that is not text" in refused.stderr
    ran = cli("run", path, "--name", "good", "--workers", "1", "--trials", "1")
    assert ran.returncode == 0, ran.stderr


def test_a_folder_of_the_same_name_does_not_hide_a_study_that_lmsearch_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "default").mkdir()
    assert find_study_file("default").name == "default.toml"
    (tmp_path / "tutorial").write_text("format = 1\n")
    assert find_study_file("tutorial") == Path("tutorial")
