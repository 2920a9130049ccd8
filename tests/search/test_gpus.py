"""Two searches on one host: the second takes the GPUs that the first has left, and says so where it cannot."""

import subprocess
import sys
from pathlib import Path

import pytest

from lmsearch import machine
from lmsearch.machine import default_devices, is_in_use
from lmsearch.search.placement import Placement
from lmsearch.search.start import _devices
from tests.bureau import wait_for

_HOLD = "import sys; from lmsearch.machine import hold_gpu; hold_gpu(sys.argv[1]); print(flush=True); sys.stdin.read()"


class Holder:
    """Another process that works on a GPU."""

    def __init__(self, device: str) -> None:
        words = [sys.executable, "-c", _HOLD, device]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_count_gpus", lambda: 2)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_gpu_of_another_search_comes_last(caplog: pytest.LogCaptureFixture) -> None:
    assert default_devices("auto", None) == ["cuda:0", "cuda:1"]
    holder = Holder("cuda:0")
    assert default_devices("auto", None) == ["cuda:1"]
    assert default_devices("auto", 3) == ["cuda:1", "cuda:0", "cuda:1"]
    assert _devices("auto", 1, Placement()) == ["cuda:1"] and not caplog.records
    assert _devices("cuda:0", 1, Placement()) == ["cuda:0"]
    assert "cuda:0 is in use by another search of yours on this host; they share it" in caplog.text
    second = Holder("cuda:1")
    assert default_devices("auto", None) == ["cuda:0", "cuda:1"]
    holder.kill()
    wait_for(lambda: not is_in_use("cuda:0"), 10)
    second.kill()


def test_workers_of_one_search_share_a_gpu_and_the_last_one_frees_it() -> None:
    first, second = Holder("cuda:0"), Holder("cuda:0")
    first.kill()
    assert is_in_use("cuda:0")
    second.kill()
    wait_for(lambda: not is_in_use("cuda:0"), 10)


def test_a_gpu_is_known_by_what_the_process_sees_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    holder = Holder("cuda:0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert is_in_use("cuda:1") and not is_in_use("cuda:0")
    holder.kill()


def test_a_folder_that_is_not_this_users_alone_is_not_used(tmp_path: Path) -> None:
    import os

    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"lmsearch-gpus-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    holder = Holder("cuda:0")
    assert not is_in_use("cuda:0") and not list((tmp_path / "elsewhere").iterdir())
    holder.kill()
