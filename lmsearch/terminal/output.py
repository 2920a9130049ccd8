"""The one way in which a command says something: what others wrote is shown, and never obeyed.

Names of studies, words of a corpus or a model, paths, reasons and attributes may come from other people. In a terminal
their control characters would move the cursor, set its title or write to the clipboard, and marks of direction would
reorder what stands beside them.
"""

import contextlib
import errno
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lmsearch.escapes import shown, shown_lines
from lmsearch.losses import json_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_COLOURS = {"green": 32, "yellow": 33, "red": 31}


class OutputGoneError(Exception):
    """Whoever read what a command says has left, as `head` does."""


def say(text: object = "", *, err: bool = False, end: str = "\n") -> None:
    """Print one line; raises `OutputGoneError` where nobody reads it any more."""
    _write(shown(text) + end, err)


def say_lines(text: object, *, err: bool = False) -> None:
    """Print several lines, such as a traceback."""
    _write(shown_lines(text).rstrip("\n") + "\n", err)


def say_wrapped(head: str, text: object) -> None:
    """Print a head and a text beside it, in a terminal broken between words, below where the text began."""
    if not sys.stdout.isatty():
        say(head + shown(text))
        return
    width = max(20, shutil.get_terminal_size().columns)
    lines = textwrap.wrap(shown(text), max(10, width - len(head)), break_long_words=True, break_on_hyphens=False)
    for number, line in enumerate(lines or [""]):
        say((head if number == 0 else " " * len(head)) + line)


def say_json(document: Any, indent: int | None = 2) -> None:
    """Print a document as JSON, in which nothing can be obeyed."""
    _write(json_text(document, indent=indent) + "\n", False)


def say_data(text: str) -> None:
    """Print a text for another program: as it is, but for a terminal."""
    _write(shown_lines(text) if sys.stdout.isatty() else text, False)


def draw(drawn: "RenderableType", console: "Console | None" = None) -> None:
    """Draw a table, whose cells are to be `shown` texts."""
    from rich.console import Console

    with _gone():
        (console or Console()).print(drawn, markup=False, highlight=False, end="")


def say_coloured(head: str, colour: str, text: object) -> None:
    """Print a line or several, the first of which begins with a word in a colour (not in a file or a pipe)."""
    head = f"\x1b[{_COLOURS[colour]}m{shown(head)}\x1b[0m" if sys.stdout.isatty() else shown(head)
    _write(head + shown_lines(text) + "\n", False)


def _write(text: str, err: bool) -> None:
    stream: TextIO = sys.stderr if err else sys.stdout
    with _gone():
        stream.write(text)
        stream.flush()


@contextlib.contextmanager
def _gone() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise OutputGoneError from error


def prepare() -> bool:
    """Make the standard streams fit to be written to, whatever they are; false where there is no standard output.

    A terminal that cannot show a character shows `?` for it. What goes into a file or a pipe is UTF-8, unless
    PYTHONIOENCODING says otherwise.
    """
    there = sys.stdout is not None
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  (for good)
        stream = getattr(sys, name)
        if not hasattr(stream, "reconfigure"):
            continue  # a test's
        if stream.isatty() or os.environ.get("PYTHONIOENCODING"):
            stream.reconfigure(errors="replace")
        else:
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    return there


def go_quiet(*descriptors: int) -> None:
    """Lose what is written to these descriptors from now on."""
    for descriptor in descriptors:
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


@contextlib.contextmanager
def tolerating_lost_output() -> Iterator[None]:
    """Lose what is said where it cannot be written: a full disk, a closed terminal or a reader that left cost a search
    its words, not its life."""
    try:
        yield
    except OutputGoneError:
        go_quiet(1)
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.EIO, errno.ENOSPC):
            raise
        if error.errno == errno.EIO:
            leave_terminal()


def leave_terminal() -> None:
    """Say nothing more where the terminal is closed: each word would be an error there."""
    go_quiet(*(descriptor for descriptor in (1, 2) if _is_closed_terminal(descriptor)))


def _is_closed_terminal(descriptor: int) -> bool:
    import stat
    import termios

    if not stat.S_ISCHR(os.fstat(descriptor).st_mode):
        return False
    try:
        termios.tcgetattr(descriptor)
    except termios.error as error:
        return bool(error.args[0] != errno.ENOTTY)
    return False
