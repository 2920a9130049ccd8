"""Workers as child processes on this host."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sqlalchemy.engine import URL

from lmsearch.folders import LOGS, make_folder
from lmsearch.launch.base import Exit, Placed
from lmsearch.machine import count_oom_kills
from lmsearch.store import url as urls
from lmsearch.store.workers import new_name, stacks_file

_log = logging.getLogger(__name__)

_OOM_SECONDS = 5.0  # between the kernel's count of a kill and the end of the process

Command = Callable[[str, str, int], Sequence[str]]
"""Returns a worker's command line from its name, its device and the pipe that ends with the parent."""


@dataclass
class Child(Placed):
    """A worker that is a child process."""

    process: "subprocess.Popen[bytes]"
    pipe: int  # our end; closed by our death


class LocalLauncher:
    """Starts workers as child processes of this one; each has a log in the study's folder."""

    kind = "local"

    def __init__(
        self,
        command: Command,
        folder: Path,
        environment: Mapping[str, str],
        oom_kills: Callable[[], int] = count_oom_kills,
    ) -> None:
        self._command = command
        self._folder = folder
        self._environment = environment
        self._oom_kills = oom_kills
        self._oom_seen = oom_kills()
        self._oom_at = -_OOM_SECONDS  # monotonic: when the count last rose
        self._oom_rises = 0  # that no death of ours has answered yet

    def start(self, devices: Sequence[str]) -> list[Child]:
        """Start a worker for each device."""
        return [self._start(new_name(), device) for device in devices]

    def find(self) -> list[Child]:
        """List nothing: workers on this host end with the process that started them."""
        return []

    def _start(self, name: str, device: str) -> Child:
        log = self._folder / LOGS / f"{name}.log"
        theirs, ours = os.pipe()
        with self._open_log(log) as output:
            process = self._spawn(list(self._command(name, device, theirs)), output, theirs)
        os.close(theirs)
        return Child(name=name, log=log, process=process, pipe=ours)

    def _spawn(self, command: list[str], output: IO[bytes], pipe: int) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(pipe,),
            env=self._environment,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which passes it on once
        )

    def _open_log(self, log: Path) -> IO[bytes]:
        try:
            with contextlib.suppress(OSError):  # a full disk costs the mark, not the log
                make_folder(self._folder)
            log.parent.mkdir(parents=True, exist_ok=True)
            return log.open("wb")
        except OSError as error:
            _log.warning("a worker has no log: %s", error, extra={"event": "no_log"})
            return Path(os.devnull).open("wb")

    def look(self, placed: Child) -> Exit | None:
        """Return how a worker's process ended, None while it runs; `wait4` alone tells how much memory it used."""
        self._count_oom()
        pid, status, used = os.wait4(placed.process.pid, os.WNOHANG)
        if pid == 0:
            return None
        os.close(placed.pipe)
        placed.process.returncode = code = os.waitstatus_to_exitcode(status)
        unit = 1 if sys.platform == "darwin" else 1024
        return Exit(
            code=code,
            peak_memory=unit * used.ru_maxrss,
            hung=code == 1 and _has_stacks(placed),
            out_of_memory=code == -signal.SIGKILL and self._was_out_of_memory(),
        )

    def _count_oom(self) -> None:
        """Note a rise of the kernel's count; one that no death of ours follows was somebody else's."""
        count = self._oom_kills()
        if time.monotonic() - self._oom_at > _OOM_SECONDS:
            self._oom_rises = 0
        if count > self._oom_seen:
            self._oom_at = time.monotonic()
            self._oom_rises += count - self._oom_seen
        self._oom_seen = count

    def _was_out_of_memory(self) -> bool:
        self._count_oom()
        if self._oom_rises == 0:
            return False
        self._oom_rises -= 1
        return True

    def signal(self, placed: Child, number: int) -> None:
        """Pass a signal on; to one that has ended it does nothing."""
        # Not by Popen, which would take the child's end from `look`. Until that has it, the number is nobody else's.
        with contextlib.suppress(ProcessLookupError):
            os.kill(placed.process.pid, number)

    def close(self, placed: Child, wait: float) -> None:
        """Let go of a worker: after `wait` seconds end a process that is still there."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            placed.process.wait(wait)
        if placed.process.returncode is None:  # frozen, or hung in a library
            self.signal(placed, signal.SIGKILL)
            placed.process.wait()
        os.close(placed.pipe)


def worker_environment(environment: Mapping[str, str], url: URL) -> dict[str, str]:
    """Return the environment of a worker."""
    # The URL travels by the environment: command lines can be read by everybody.
    own = {"LMSEARCH_STORAGE": urls.full_text(url), "LMSEARCH_LAUNCHER": LocalLauncher.kind}
    return dict(environment) | own | {"OMP_NUM_THREADS": "1"}  # a trial sets its own number of threads


def _has_stacks(placed: Child) -> bool:
    """Whether the C runtime wrote the stacks of a worker's threads, before it ended the process."""
    try:
        return stacks_file(placed.log.parent, placed.name).stat().st_size > 0
    except OSError:
        return False
