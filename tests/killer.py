"""Runs a command again and again, each time in a fresh copy of a folder, and kills it one effect later.

An effect is a commit that writes, or a file that takes its name, loses it, or is removed. Up to the last one the command
is ended by SIGKILL right before the effect; then it ends by itself. `lmsearch` is loaded once; each command is a fork.

    python -m tests.killer FOLDER WORDS…

Copies are FOLDER-0, FOLDER-1, …; the exit code is 0 where the last one ended with 0.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa

import lmsearch.launch.supervise
from lmsearch.cli.main import main

_MOST = 200


def run(folder: Path, words: list[str]) -> int:
    """Run the command in copy after copy, until it is not killed any more; give its exit code."""
    for number in range(_MOST):
        copy = folder.with_name(f"{folder.name}-{number}")
        shutil.copytree(folder, copy)
        if (child := os.fork()) == 0:
            _command(copy, words, number)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code != -signal.SIGKILL:
            return code
    raise AssertionError(f"{_MOST} effects, and no end")


def _command(folder: Path, words: list[str], effects: int) -> None:
    os.chdir(folder)
    left = [effects]

    def effect() -> None:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    _apply(effect)
    # No worker is to start: what comes before it is what may be cut in two.
    lmsearch.launch.supervise.Supervisor.run = _end  # type: ignore[method-assign,assignment]
    try:
        main(words)
    except SystemExit as ended:
        os._exit(int(ended.code or 0))
    os._exit(1)


def _end(*args: Any) -> Any:
    os._exit(0)


def _apply(effect: Callable[[], None]) -> None:
    writing: set[int] = set()

    def execute(connection: sa.Connection, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE", "CREATE", "ALTER")):
            writing.add(id(connection.connection.dbapi_connection))

    def commit(connection: sa.Connection) -> None:
        if id(connection.connection.dbapi_connection) in writing:
            effect()
            writing.clear()

    sa.event.listen(sa.engine.Engine, "before_cursor_execute", execute)
    sa.event.listen(sa.engine.Engine, "commit", commit)
    for name in ("replace", "rename", "unlink", "rmdir"):
        _wrap(name, effect)


def _wrap(name: str, effect: Callable[[], None]) -> None:
    act = getattr(os, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        effect()
        return act(*args, **kwargs)

    setattr(os, name, wrapped)


if __name__ == "__main__":
    assert optuna.__version__
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))
