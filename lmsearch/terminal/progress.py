"""What moves in the terminal while a corpus is read or a model is trained."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from lmsearch.spelling import spell_seconds
from lmsearch.terminal.logs import timestamped
from lmsearch.terminal.output import say

if TYPE_CHECKING:
    from lmsearch.lm.events import Step

_TERMINAL_SECONDS = 0.5  # between two changes of the line
_LOG_SECONDS = 30.0  # the same where it is a log


@contextlib.contextmanager
def reading_bar() -> Iterator[Callable[[str, int, int | None], None] | None]:
    """Draw the progress of reading a corpus on stderr; provide None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    done = TextColumn("{task.completed:,} tokens")
    columns = TextColumn("{task.description}"), BarColumn(), done, TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


@contextlib.contextmanager
def training_line(tokens: int, epochs: int, quiet: bool) -> "Iterator[TrainingLine]":
    """Report how far an epoch is: on one line in a terminal, every half minute in a log."""
    line = TrainingLine(tokens, epochs, quiet)
    try:
        yield line
    finally:
        line.clear()


class TrainingLine:
    """Says how far a training of so many epochs is, each of so many tokens, and how long it will take."""

    def __init__(self, tokens: int, epochs: int, quiet: bool) -> None:
        self._tokens = tokens
        self._epochs = epochs
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._reported = time.monotonic()
        self._began: tuple[int, int, float] | None = None  # an epoch, its tokens and the time when it was first seen
        self._drawn = False

    def step(self, step: "Step") -> None:
        """Take note of a step, and say so where the last word was long ago."""
        now = time.monotonic()
        if self._began is None or self._began[0] != step.epoch:
            self._began = (step.epoch, step.tokens, now)
        if self._quiet or now - self._reported < (_TERMINAL_SECONDS if self._terminal else _LOG_SECONDS):
            return
        self._reported = now
        text = self._text(step, now)
        if self._terminal:
            self._drawn = True
            say(f"{text:<79}"[:79], err=True, end="\r")
        else:
            timestamped(text)

    def _text(self, step: "Step", now: float) -> str:
        assert self._began is not None
        _, first, began = self._began
        speed = (step.tokens - first) / (now - began) if now > began else 0.0
        text = f"epoch {step.epoch} of {self._epochs}: {min(1.0, step.tokens / self._tokens):4.0%}"
        if not speed:
            return text
        left = max(0, self._tokens - step.tokens) / speed
        whole = left + (self._epochs - step.epoch) * self._tokens / speed
        return f"{text}  {speed:,.0f} tokens/s, {spell_seconds(left)} left in it, about {spell_seconds(whole)} in all"

    def clear(self) -> None:
        """Take the line out of the terminal, before another one is written."""
        if self._drawn:
            say(" " * 79, err=True, end="\r")
            self._drawn = False
