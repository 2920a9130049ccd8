"""The search in a pseudo-terminal: drawn live, interrupted by the keyboard, and gone when it is closed."""

import contextlib
import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bureau import wait_for
from tests.conftest import Cli
from tests.factories import TINY_STUDY, write_study


class Terminal:
    """`lmsearch` in a terminal of 80 columns."""

    def __init__(self, folder: Path, *words: str, **environment: str) -> None:
        self.process, self.master = pty.fork()
        if self.process == 0:
            os.chdir(folder)
            os.environ.update({"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"} | environment)
            os.execv(sys.executable, [sys.executable, "-m", "lmsearch.cli.main", *words])
        self.seen = ""

    def read(self, until: str, seconds: float = 60) -> None:
        """Read what is drawn until a pattern appears."""
        end = time.monotonic() + seconds
        while re.search(until, self.seen) is None:
            assert time.monotonic() < end, self.seen[-2_000:]
            ready, _, _ = select.select([self.master], [], [], 0.2)
            if ready:
                try:
                    self.seen += os.read(self.master, 65_536).decode(errors="replace")
                except OSError:
                    assert re.search(until, self.seen), self.seen[-2_000:]

    def close(self) -> None:
        """Leave nothing running, whatever happened."""
        with contextlib.suppress(OSError):
            os.close(self.master)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait(self) -> int:
        """Give the exit code."""
        _, status = os.waitpid(self.process, 0)
        return os.waitstatus_to_exitcode(status)


@pytest.fixture
def open_terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Open terminals in this test's folder, and close them after it."""
    opened: list[Terminal] = []

    def make(*words: str, **environment: str) -> Terminal:
        opened.append(Terminal(tmp_path, *words, **environment))
        return opened[-1]

    yield make
    for terminal in opened:
        terminal.close()


LONG = TINY_STUDY.replace("trials = 3", "trials = 4").replace("epochs = 3", "epochs = 400")


def test_ctrl_c_at_the_keyboard_saves_and_prints_the_command_that_goes_on(
    tmp_path: Path, cli: Cli, open_terminal: Callable[..., Terminal]
) -> None:
    write_study(tmp_path, LONG)
    terminal = open_terminal("run", "tiny.toml", "--workers", "2")
    terminal.read(r"trial.*by.*epoch.*perplexity")
    terminal.read(r"\d+/400")
    assert "\x1b[" in terminal.seen
    wait_for(lambda: "2 running" in cli("status", "tiny").stdout)
    terminal.type("\x03")
    terminal.read(r"interrupted; everything is saved, go on with: lmsearch run tiny.toml --workers 2")
    assert terminal.wait() == 130
    assert "2 waiting" in cli("status", "tiny").stdout


def test_a_second_ctrl_c_stops_at_once_and_still_loses_nothing(
    tmp_path: Path, cli: Cli, open_terminal: Callable[..., Terminal]
) -> None:
    write_study(tmp_path, LONG)
    terminal = open_terminal("run", "tiny.toml", "--workers", "2")
    terminal.read(r"[1-9]\d*/400")
    terminal.type("\x03")
    terminal.type("\x03")
    terminal.read(r"go on with: lmsearch run")
    assert terminal.wait() == 130
    assert re.search(r"tiny: 0 of 4 trials, [12] waiting", cli("status", "tiny").stdout)


def test_a_closed_terminal_saves_and_leaves_nobody_behind(
    tmp_path: Path, cli: Cli, open_terminal: Callable[..., Terminal]
) -> None:
    write_study(tmp_path, LONG)
    terminal = open_terminal("run", "tiny.toml", "--workers", "1")
    terminal.read(r"[1-9]\d*/400")
    os.close(terminal.master)
    assert terminal.wait() == 129
    end = time.monotonic() + 10
    while "1 waiting" not in cli("status", "tiny").stdout:
        assert time.monotonic() < end


def test_a_search_that_ignores_the_closing_of_its_terminal_goes_on_to_its_end(
    tmp_path: Path, cli: Cli, open_terminal: Callable[..., Terminal]
) -> None:
    write_study(tmp_path, TINY_STUDY.replace("epochs = 3", "epochs = 60"))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup, or after `trap '' HUP`
    try:
        terminal = open_terminal("run", "tiny.toml", "--workers", "1")
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    terminal.read(r"[1-9]\d*/60")
    os.close(terminal.master)
    assert terminal.wait() == 0
    assert "tiny: 3 of 3 trials, 3 complete" in cli("status", "tiny").stdout


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_colour_there_is_none(
    tmp_path: Path, environment: dict[str, str], open_terminal: Callable[..., Terminal]
) -> None:
    write_study(tmp_path)
    terminal = open_terminal("run", "tiny.toml", "--workers", "1", **environment)
    terminal.read(r"next\r\n")
    assert terminal.wait() == 0
    assert not re.search(r"\x1b\[[0-9;]*(3\d|4\d|9\d)[;m]", terminal.seen)
