"""A store that may not be written to can be looked at, and is left as it is."""

import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lmsearch.errors import StoreError
from lmsearch.store.opening import open_storage
from lmsearch.store.url import parse_url
from tests.conftest import Cli
from tests.factories import TINY_STUDY, write_corpus


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Mount a folder over itself so that nobody may write to it, root neither."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_colleagues_store_can_be_looked_at_and_not_changed(tmp_path: Path, cli: Cli) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    write_corpus(theirs / "corpus")
    (theirs / "tiny.toml").write_text(TINY_STUDY)
    assert cli("run", "tiny.toml", "--workers", "1", cwd=theirs).returncode == 0
    (tmp_path / "mine").mkdir()
    store = ("--storage", f"sqlite:///{theirs}/runs/lmsearch.db")
    before = (theirs / "runs/lmsearch.db").read_bytes()
    with read_only(theirs):
        for words in (["status", "tiny"], ["studies"], ["trials", "tiny"], ["show", "tiny", "0"], ["report", "tiny"]):
            said = cli(*words, *store, cwd=tmp_path / "mine")
            assert said.returncode == 0 and "Traceback" not in said.stderr, (words, said.stderr)
        assert "3 of 3 trials" in cli("status", "tiny", *store, cwd=tmp_path / "mine").stdout
        assert "notes and plots stay as they are" in cli("report", "tiny", *store, cwd=tmp_path / "mine").stderr
        for words in (["enqueue", "tiny"], ["stop", "tiny"], ["worker", "tiny"], ["run", str(theirs / "tiny.toml")]):
            said = cli(*words, *store, cwd=tmp_path / "mine")
            assert said.returncode == 2 and "read-only, or not yours to write" in said.stderr, (words, said.stderr)
        assert sorted(path.name for path in (theirs / "runs").iterdir() if "lmsearch.db" in path.name) == [
            path for path in ("lmsearch.db", "lmsearch.db.lock") if (theirs / "runs" / path).exists()
        ]
    assert (theirs / "runs/lmsearch.db").read_bytes() == before


def test_a_store_whose_newest_changes_cannot_be_read_is_not_half_shown(tmp_path: Path, prepared_sqlite: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    shutil.copy(prepared_sqlite, folder / "store.db")
    writer = sqlite3.connect(folder / "store.db")
    writer.execute("PRAGMA wal_autocheckpoint=0")
    writer.execute("CREATE TABLE newer (id integer)")
    writer.commit()
    (tmp_path / "copy").mkdir()
    for name in ("store.db", "store.db-wal"):  # as one who copied them without the index
        shutil.copy(folder / name, tmp_path / "copy" / name)
    writer.close()
    with read_only(tmp_path / "copy"), pytest.raises(StoreError, match="its newest changes are in store.db-wal"):
        open_storage(parse_url(f"sqlite:///{tmp_path}/copy/store.db"))
