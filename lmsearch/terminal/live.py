"""The search as it runs: a live table in a terminal, plain timestamped lines elsewhere."""

import contextlib
import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from lmsearch.escapes import shown
from lmsearch.results.progress import count_line
from lmsearch.spelling import count, spell_seconds, spell_value
from lmsearch.terminal.logs import timestamped

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

    from lmsearch.launch.supervise import Snapshot
    from lmsearch.store.records import StudyRecord, TrialRecord

_LINE_SECONDS = 30.0  # the longest silence of the plain view
_SPARK_WIDTH = 24
_SPARKS = "▁▂▃▄▅▆▇█"


class View(Protocol):
    """Something that shows snapshots to a person."""

    def show(self, snapshot: "Snapshot") -> None:
        """Show one more snapshot."""
        ...


@contextlib.contextmanager
def open_view(quiet: bool) -> Iterator[View]:
    """Choose the view: none when quiet, a table in a terminal, else lines."""
    if quiet:
        yield _Silent()
    elif not sys.stdout.isatty():
        yield _Lines()
    else:
        from rich.console import Console
        from rich.live import Live

        console = Console()
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            yield _Table(live)


class _Silent:
    def show(self, snapshot: "Snapshot") -> None:
        """Show nothing: warnings are logged."""


class _Lines:
    """A line for each trial that ended, and one at least every half minute."""

    def __init__(self) -> None:
        self._printed: set[int] = set()
        self._noted: set[str] = set()
        self._best: int | None = None
        self._last = 0.0

    def show(self, snapshot: "Snapshot") -> None:
        for trial in snapshot.record.trials:
            if trial.ended is not None and trial.number not in self._printed:
                self._printed.add(trial.number)
                found = (
                    f", perplexity {trial.perplexity:.2f} after {count(len(trial.curve), 'epoch')}"
                    if trial.curve
                    else ""
                )
                timestamped(f"trial {trial.number} ({trial.by}): {trial.outcome}{found}")
                self._last = snapshot.seconds
        best = snapshot.record.best
        if best is not None and best.number != self._best:
            self._best = best.number
            timestamped(f"best so far {best.perplexity:.2f} (trial {best.number}): {spell_params(best)}")
        for note in live_notes(snapshot.record):
            if note not in self._noted:
                self._noted.add(note)
                timestamped(f"note: {note}")
        if snapshot.seconds - self._last >= _LINE_SECONDS:
            self._last = snapshot.seconds
            left = "" if snapshot.seconds_left is None else f", about {spell_seconds(snapshot.seconds_left)} left"
            timestamped(count_line(snapshot.record) + left)


class _Table:
    def __init__(self, live: "Live") -> None:
        self._live = live

    def show(self, snapshot: "Snapshot") -> None:
        self._live.update(render(snapshot), refresh=True)


def render(snapshot: "Snapshot") -> "RenderableType":
    """Draw a snapshot: progress, counts and the best so far, then a row for each trial at work."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    record = snapshot.record
    head = Table.grid(padding=(0, 1))
    left = "estimating" if snapshot.seconds_left is None else f"{spell_seconds(snapshot.seconds_left)} left"
    head.add_row(
        f"{record.done}/{record.total}",
        ProgressBar(total=max(1, record.total), completed=record.done, width=24),
        spell_seconds(snapshot.seconds),
        Text(left, style="cyan"),
        f"{snapshot.workers} workers",
    )
    counts = Text(shown(count_line(record)).partition(", ")[2] or "starting workers …", style="dim")
    lines = [] if record.best is None else [Text(shown(f"best so far: {spell_params(record.best)}"), style="dim")]
    lines += [Text(shown(f"note: {note}"), style="yellow") for note in live_notes(record)]
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("trial", "by", "epoch", "perplexity", "curve", "tokens/s"):
        rows.add_column(name, justify="left" if name in ("by", "curve") else "right", no_wrap=True)
    trials = {trial.number: trial for trial in record.trials}
    for ticket in record.tickets:
        if not ticket.is_running:
            continue
        trial = None if ticket.trial_number is None else trials.get(ticket.trial_number)
        curve = list(trial.curve.values()) if trial else []
        rows.add_row(
            "-" if trial is None else str(trial.number),
            shown(ticket.by),
            f"{ticket.epoch}/{record.info.spec.epochs}",
            f"{min(curve):.2f}" if curve else "",
            spark(curve),
            "" if ticket.tokens_per_second is None else f"{ticket.tokens_per_second:,.0f}",
        )
    return Group(head, counts, *lines, rows)


def spell_params(trial: "TrialRecord") -> str:
    """Write a trial's values in one line."""
    return ", ".join(f"{path} = {spell_value(value)}" for path, value in trial.params.items())


def live_notes(record: "StudyRecord") -> list[str]:
    """List what a person should know while the search runs: ends of ranges that the best crowd."""
    if record.best is None:  # what follows loads SciPy, which the first seconds of a search do without
        return []
    from lmsearch.results.ranges import edge_sentence, edges

    return [edge_sentence(edge) for edge in edges(record)]


def spark(values: list[float]) -> str:
    """Draw the last values of a curve in a line of characters, the highest of them as the highest block."""
    values = [value for value in values[-_SPARK_WIDTH:] if math.isfinite(value)]
    if not values:
        return ""
    low, high = min(values), max(values)
    scale = (len(_SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_SPARKS[round((value - low) * scale)] for value in values)
