"""Row 3 of docs/reliability.md: a search that is asked to stop, by the real command with the real trainer.

What a person does at the keyboard is in tests/slow/end_to_end/test_terminal.py.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bureau import alive, wait_for
from tests.conftest import Cli, at_work, started
from tests.factories import TINY_STUDY, write_study

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `lmsearch` in a process group of its own; what it says goes into the file `said`."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(*words: str, prefix: tuple[str, ...] = (), **options: Any) -> "subprocess.Popen[bytes]":
        command = [*prefix, sys.executable, "-m", "lmsearch.cli.main", *words]
        with (tmp_path / "said").open("wb") as said:
            started.append(
                subprocess.Popen(command, cwd=tmp_path, stdout=said, stderr=said, start_new_session=True, **options)
            )
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()
    for path in (tmp_path / "said", *tmp_path.glob("runs/*/logs/*.log")):  # pytest shows it where a test failed
        print(f"{path}:\n{path.read_text()}")


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.heavy),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.heavy),
        pytest.param(signal.SIGUSR1, 138, marks=pytest.mark.heavy),
    ],
)
def test_row_3_a_signal_to_the_group_stops_the_default_study_within_10_s_with_all_saved(
    cli: Cli, tmp_path: Path, start: Start, number: int, code: int
) -> None:
    """I2 and I5; tests/end_to_end/test_commands.py goes on after it and compares the curves, for I3."""
    search = start("run", "--workers", "2")
    wait_for(lambda: started(cli, "default"))
    processes = [row["process"] for row in started(cli, "default")]
    began = time.monotonic()
    os.killpg(search.pid, number)
    assert search.wait(timeout=60) == code
    assert time.monotonic() - began < 10
    assert not any(map(alive, processes))
    assert "interrupted; everything is saved; resume with: lmsearch run --workers 2" in (tmp_path / "said").read_text()
    left = [row["state"] for row in at_work(cli, "default")]
    assert left.count("waiting") == 2 and set(left) <= {"waiting", "paused"}
    assert len(list((tmp_path / "runs/default/checkpoints").glob("*.checkpoint"))) >= 2


def test_row_3_an_evaluation_is_left_at_its_next_block(cli: Cli, tmp_path: Path, start: Start) -> None:
    """I3: it goes on inside the evaluation, to the figures of a run that nobody stopped."""
    one = TINY_STUDY.replace("trials = 3", "trials = 1").replace("eval_batch_size = 4", "eval_batch_size = 1")
    study = one.replace("epochs = 3", "epochs = 2")
    write_study(tmp_path, study)
    rng = random.Random(1)
    words = [f"word{rng.randrange(12)}" for _ in range(150_000)]
    (tmp_path / "corpus/valid.txt").write_text("\n".join(" ".join(words[i : i + 10]) for i in range(0, 150_000, 10)))
    search = start("run", "tiny.toml", "--workers", "1", "--lease-seconds", "1")  # a heartbeat each third of that
    # 660 tokens are 21 steps of training; the rest of an epoch is its evaluation.
    wait_for(lambda: any(row["epoch"] == 0 and row["step"] >= 21 for row in started(cli, "tiny", 1)))
    began = time.monotonic()
    search.terminate()
    assert search.wait(timeout=60) == 143 and time.monotonic() - began < 10
    (left,) = at_work(cli, "tiny")
    assert (left["state"], left["epoch"]) == ("waiting", 0)
    assert cli("run", "tiny.toml", "--workers", "1").returncode == 0
    assert cli("run", "tiny.toml", "--workers", "1", "--name", "whole").returncode == 0
    best = [json.loads(cli("best", name, "--json").stdout)["result"] for name in ("tiny", "whole")]
    assert best[0]["curve"] == best[1]["curve"] and len(best[0]["curve"]) == 2


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGHUP, 129, marks=pytest.mark.heavy)]
)
def test_row_3_a_second_signal_stops_at_once_also_workers_that_handle_no_signal(
    cli: Cli, tmp_path: Path, start: Start, number: int, code: int
) -> None:
    write_study(tmp_path, TINY_STUDY.replace("epochs = 3", "epochs = 4000"))
    search = start("run", "tiny.toml", "--workers", "2")
    wait_for(lambda: started(cli, "tiny"))
    processes = [row["process"] for row in started(cli, "tiny")]
    os.kill(processes[0], signal.SIGSTOP)
    os.killpg(search.pid, number)
    time.sleep(1)
    assert search.poll() is None  # it waits for the one that saves nothing
    began = time.monotonic()
    os.killpg(search.pid, number)
    # Five of these seconds are for a lock of SQLite that the frozen worker may hold.
    assert search.wait(timeout=60) == code and time.monotonic() - began < 10
    assert not any(map(alive, processes))
    assert {row["state"] for row in at_work(cli, "tiny")} == {"waiting"}


def test_row_3_under_nohup_a_closed_terminal_stops_nothing(cli: Cli, tmp_path: Path, start: Start) -> None:
    write_study(tmp_path, TINY_STUDY.replace("epochs = 3", "epochs = 60"))
    search = start("run", "tiny.toml", "--workers", "2", prefix=("nohup",))
    wait_for(lambda: started(cli, "tiny"))
    os.killpg(search.pid, signal.SIGHUP)
    for row in started(cli, "tiny"):
        os.kill(row["process"], signal.SIGHUP)
    assert search.wait(timeout=120) == 0
    assert "tiny: 3 of 3 trials, 3 complete" in (tmp_path / "said").read_text()
