"""Processes of ours that start fast: a server has loaded lmsearch and what it needs, and forks for each.

A command or a worker is a process of its own with its own arguments, folder, environment and files, and its starter is
its parent; only the loading of modules, seconds of each one's time, is shared. What depends on how an interpreter
starts is tested with real ones.
"""

import ctypes
import gc
import importlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

_OF_THE_INTERPRETER = ("PYTHON", "LC_", "LANG", "OMP_", "LD_", "FAKETIME")  # what a fork would come too late for
_PR_SET_CHILD_SUBREAPER = 36
_STUB = "tests/stub.py"
_LOADED = (
    "alembic.command",
    "alembic.config",
    "alembic.migration",
    "alembic.script",
    "lmsearch.care.doctor",
    "lmsearch.cli.main",
    "lmsearch.launch.local",
    "lmsearch.launch.search",
    "lmsearch.lm.fit",
    "lmsearch.lm.lstm",
    "lmsearch.report.keeping",
    "lmsearch.report.publishing",
    "lmsearch.report.write",
    "lmsearch.search.start",
    "lmsearch.search.worker",
    "lmsearch.store.schema",
    "lmsearch.terminal.live",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite",
    "tests.stub",
    "torch._dynamo",
)
"""What our processes load, or PyTorch (for its first optimizer) and Optuna (for its first store) do then. Nothing of it
makes a connection or a thread, which a fork could not have."""


class ForkServer:
    """The server's end in the process that starts others."""

    def __init__(self, server: "socket.socket | None" = None) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        if server is None:
            server, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            root = str(Path(__file__).parents[1])
            command = [sys.executable, "-m", "tests.forks", str(theirs.fileno())]
            self._server = subprocess.Popen(command, cwd=root, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
            theirs.close()
        self._socket = server
        self._one_at_a_time = threading.Lock()  # tests start commands from threads

    def start(self, words: Sequence[str], cwd: Path, environment: Mapping[str, str], files: Sequence[int]) -> "Forked":
        """Run `lmsearch` with these words; `files` are its standard input, output and error."""
        return self._ask({"words": list(words), "cwd": str(cwd), "environment": dict(environment)}, files)

    def start_worker(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        output: int,
        pipe: int | None = None,
        cwd: Path | None = None,
    ) -> "Forked":
        """Start a worker, of which `command` is the command line; one with a `pipe` in a session of its own."""
        stub = command[1].endswith(_STUB)
        words = list(command[2:] if stub else command[command.index("lmsearch.cli.main") + 1 :])
        request = {"words": words, "stub": stub, "cwd": str(cwd or Path.cwd())}
        request |= {"environment": dict(environment), "pipe": pipe}
        with Path(os.devnull).open("rb") as nothing:
            files = [nothing.fileno(), output, output]
            return self._ask(request, files if pipe is None else [*files, pipe])

    def _ask(self, request: Mapping[str, Any], files: Sequence[int]) -> "Forked":
        content = json.dumps(request).encode()
        # For this moment, what loses its parent becomes our child; later it must not, or nobody would bury a daemon.
        with self._one_at_a_time:
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            try:
                socket.send_fds(self._socket, [len(content).to_bytes(4, "little")], files)
                self._socket.sendall(content)
                return Forked(int.from_bytes(self._socket.recv(8), "little"))
            finally:
                ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

    def close(self) -> None:
        """End the server; what it forked is not touched."""
        self._socket.close()
        if self._server is not None:
            self._server.wait(timeout=30)


shared: list[ForkServer] = []
"""The server of a test session, while there is one; a program that a test starts has none."""


class Forked:
    """A process that was forked: as much of `subprocess.Popen` as is used here."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return its end if there is one; negative: a signal."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired("lmsearch", timeout or 0.0)
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it by SIGKILL, if it has not ended."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """End it by SIGTERM, if it has not ended."""
        self.send_signal(signal.SIGTERM)


def is_worker(command: Sequence[str]) -> bool:
    """Whether a command line is that of a worker of ours."""
    return command[0] == sys.executable and (command[1].endswith(_STUB) or "lmsearch.cli.main" in command)


def can_fork(environment: Mapping[str, str]) -> bool:
    """Whether nothing in a process's own environment is for the interpreter or for libraries as they load."""
    return not any(name.startswith(_OF_THE_INTERPRETER) for name in environment)


def _serve(requests: socket.socket) -> dict[str, Any] | None:
    """Fork for each request until nobody is there to ask; return the request in its fork."""
    while True:
        head, files, _, _ = socket.recv_fds(requests, 4, 8)
        if not head:
            return None
        size, content = int.from_bytes(head, "little"), b""
        while len(content) < size:
            content += requests.recv(size - len(content))
        # The grandchild becomes the child of whoever asks, once the child between has ended.
        reading_end, writing_end = os.pipe()
        if (between := os.fork()) == 0:
            if (child := os.fork()) == 0:
                request: dict[str, Any] = json.loads(content)
                _become(request, files)
                return request
            os.write(writing_end, child.to_bytes(8, "little"))
            os._exit(0)
        os.waitpid(between, 0)
        requests.send(os.read(reading_end, 8))
        for file in (*files, reading_end, writing_end):
            os.close(file)


def _become(request: dict[str, Any], files: list[int]) -> None:
    """Give this fork the files, folder and environment of the process that was asked for."""
    kept = [os.dup(file) for file in files]  # none of them at a number that is about to be taken
    for target, file in enumerate(kept[:3]):
        os.dup2(file, target)
    pipe = request.get("pipe")
    if pipe is not None:
        os.dup2(kept[3], pipe)
    last = 3 if pipe is None else pipe
    os.closerange(3, last)
    os.closerange(last if pipe is None else last + 1, 4096)
    if pipe is not None:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        raw = os.fdopen(number, "rb" if number == 0 else "wb", closefd=False)
        stream = io.TextIOWrapper(raw, encoding="utf-8", errors="surrogateescape", line_buffering=number == 2)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.argv = ["lmsearch", *request["words"]]


def _fork_workers_too() -> None:
    """Let the workers of a search be forked as the search was: from a copy of it made before it has done anything."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    if os.fork() == 0:
        ours.close()
        request = _serve(theirs)
        _run(request)
        os._exit(0)
    theirs.close()
    server = ForkServer(ours)
    local = importlib.import_module("lmsearch.launch.local")

    def spawn(launcher: Any, command: list[str], output: Any, pipe: int) -> Any:
        return server.start_worker(command, launcher._environment, output.fileno(), pipe)

    local.LocalLauncher._spawn = spawn


def _run(request: dict[str, Any] | None) -> None:
    """Run what was asked for, and end as an interpreter ends."""
    if request is None:
        return
    words = request["words"]
    if request.get("stub"):
        importlib.import_module("tests.stub").work(words)
    if words[:1] in (["run"], ["confirm"], ["extend"]):
        _fork_workers_too()
    importlib.import_module("lmsearch.cli.main").main(words)


def forking_launcher(server: ForkServer) -> type[Any]:
    """Return a local launcher whose workers are forked by a server."""
    local = importlib.import_module("lmsearch.launch.local")

    class ForkingLauncher(local.LocalLauncher):  # type: ignore[name-defined,misc]
        def _spawn(self, command: list[str], output: Any, pipe: int) -> Any:
            if not is_worker(command):
                return super()._spawn(command, output, pipe)
            return server.start_worker(command, self._environment, output.fileno(), pipe)

    return cast(type[Any], ForkingLauncher)


if __name__ == "__main__":
    _requests = socket.socket(fileno=int(sys.argv[1]))
    for _name in _LOADED:
        importlib.import_module(_name)
    gc.freeze()  # a collection in a fork need not look through, and so copy, all of this
    _run(_serve(_requests))
