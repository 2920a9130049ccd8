"""Commands that start fast: a server has loaded lmsearch and what it needs, and forks for each.

A command is a process of its own with its own arguments, folder, environment and files; only the loading of modules,
seconds of each command's time, is shared. What depends on how an interpreter starts is tested with real ones.
"""

import contextlib
import gc
import importlib
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_OF_THE_INTERPRETER = ("PYTHON", "LC_", "LANG", "OMP_", "LD_")  # what a fork would come too late for


class ForkServer:
    """The server's end in the test's process."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        command = [sys.executable, "-m", "tests.forks", str(theirs.fileno())]
        root = str(Path(__file__).parents[1])
        self._server = subprocess.Popen(command, cwd=root, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()

    def start(self, words: Sequence[str], cwd: Path, environment: Mapping[str, str], files: Sequence[int]) -> "Forked":
        """Run `lmsearch` with these words; `files` are its standard input, output and error."""
        ended, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        request = json.dumps([list(words), str(cwd), dict(environment)]).encode()
        head = len(request).to_bytes(4, "little")
        socket.send_fds(self._socket, [head], [*files, theirs.fileno()])
        self._socket.sendall(request)
        theirs.close()
        return Forked(ended)

    def close(self) -> None:
        """End the server; what it forked is not touched."""
        self._socket.close()
        self._server.wait(timeout=30)


class Forked:
    """A command that was forked: as much of `subprocess.Popen` as tests use."""

    def __init__(self, ended: socket.socket) -> None:
        self._ended = ended
        self.pid = int.from_bytes(ended.recv(8), "little")
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; negative: a signal."""
        if self.returncode is None:
            self._ended.settimeout(timeout)
            try:
                self.returncode = int.from_bytes(self._ended.recv(8), "little", signed=True)
            except TimeoutError as error:
                raise subprocess.TimeoutExpired("lmsearch", timeout or 0.0) from error
            self._ended.close()
        return self.returncode

    def kill(self) -> None:
        """End it by SIGKILL, if it is there."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)


def can_fork(environment: Mapping[str, str]) -> bool:
    """Whether nothing in a command's own environment is for the interpreter or for libraries as they load."""
    return not any(name.startswith(_OF_THE_INTERPRETER) for name in environment)


def _serve(server: socket.socket) -> list[str] | None:
    """Fork for each request until nobody is there to ask; return a command's words in its fork."""
    waiting: dict[int, socket.socket] = {}  # by process
    ends = socket.socketpair()  # written to by each signal: a child has ended
    for end in ends:
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(ends[1].fileno())
    while True:
        ready, _, _ = select.select([server, ends[0]], [], [])
        if ends[0] in ready:
            ends[0].recv(4096)
        _reap(waiting)
        if server not in ready:
            continue
        head, files, _, _ = socket.recv_fds(server, 4, 4)
        if not head:
            return None
        size = int.from_bytes(head, "little")
        request = b""
        while len(request) < size:
            request += server.recv(size - len(request))
        child = os.fork()
        if child == 0:
            return _become(json.loads(request), files)
        ended = socket.socket(fileno=files.pop())
        ended.send(child.to_bytes(8, "little"))
        waiting[child] = ended
        for file in files:
            os.close(file)


def _reap(waiting: dict[int, socket.socket]) -> None:
    while waiting:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process == 0:
            return
        ended = waiting.pop(process)
        with contextlib.suppress(OSError):  # nobody waits
            ended.send(os.waitstatus_to_exitcode(status).to_bytes(8, "little", signed=True))
        ended.close()


def _become(request: Any, files: list[int]) -> list[str]:
    """Turn this fork into the command's process; return its words."""
    words, folder, environment = request
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for target, file in enumerate(files[:3]):
        os.dup2(file, target)
    os.closerange(3, 1024)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        raw = os.fdopen(number, "rb" if number == 0 else "wb", closefd=False)
        stream = io.TextIOWrapper(raw, encoding="utf-8", errors="surrogateescape", line_buffering=number == 2)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.argv = ["lmsearch", *words]
    return list(words)


_LOADED = (
    "lmsearch.care.doctor",
    "lmsearch.cli.main",
    "lmsearch.launch.supervise",
    "lmsearch.lm.fit",
    "lmsearch.lm.lstm",
    "lmsearch.report.publishing",
    "lmsearch.report.write",
    "lmsearch.search.begin",
    "lmsearch.search.confirm",
    "lmsearch.search.worker",
    "lmsearch.store.schema",
)
"""What commands load. Nothing of it makes a connection or a thread, which a fork could not have."""


if __name__ == "__main__":
    for _name in _LOADED:
        importlib.import_module(_name)
    gc.freeze()  # a collection in a fork need not look through, and so copy, all of this
    if (_words := _serve(socket.socket(fileno=int(sys.argv[1])))) is not None:
        importlib.import_module("lmsearch.cli.main").main(_words)  # and end as an interpreter ends
