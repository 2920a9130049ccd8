"""The search as it runs: a live table in a terminal, plain timestamped lines elsewhere."""

import contextlib
import math
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Protocol

from lmsearch.escapes import shown
from lmsearch.results.progress import count_line, epochs_done, is_started, spell_epochs
from lmsearch.spelling import count, short_names, spell_seconds, spell_value
from lmsearch.terminal.logs import timestamped

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.text import Text

    from lmsearch.launch.supervise import Snapshot
    from lmsearch.store.records import StudyRecord, TrialRecord
    from lmsearch.store.tables import Ticket

_LINE_SECONDS = 30.0  # the longest silence of the plain view
_SPARK_WIDTH = 24
_SPARKS = "▁▂▃▄▅▆▇█"
_BEST_ROWS = 5
_KEYS = "Ctrl-C saves all trials and stops"


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
        self._clock = _Clock()

    def show(self, snapshot: "Snapshot") -> None:
        record = snapshot.record
        since = self._clock.since(record)
        for trial in record.trials:
            if trial.ended is not None and trial.number not in self._printed:
                self._printed.add(trial.number)
                found = (
                    f", perplexity {trial.perplexity:.2f} after {count(len(trial.curve), 'epoch')}"
                    if trial.curve
                    else ""
                )
                timestamped(f"trial {trial.number} ({trial.by}): {trial.outcome}{found}")
                self._last = snapshot.seconds
        best = record.best
        if best is not None and best.number != self._best:
            self._best = best.number
            timestamped(f"best so far {best.perplexity:.2f} (trial {best.number}): {spell_params(best)}")
        for note in (*stopping_notes(snapshot), *live_notes(record)):
            if note not in self._noted:
                self._noted.add(note)
                timestamped(note)
        if snapshot.seconds - self._last >= _LINE_SECONDS:
            self._last = snapshot.seconds
            left = "" if snapshot.seconds_left is None else f", about {spell_seconds(snapshot.seconds_left)} left"
            running = [
                f"trial {trial.number} at epoch {_epochs(record, ticket, trial, since)}"
                for ticket, trial in _started(record)
                if ticket.is_running and trial is not None
            ]
            timestamped(count_line(record) + left + (f"; {', '.join(running)}" if running else ""))


class _Table:
    def __init__(self, live: "Live") -> None:
        self._live = live
        self._clock = _Clock()

    def show(self, snapshot: "Snapshot") -> None:
        width, height = shutil.get_terminal_size()
        since = self._clock.since(snapshot.record)
        self._live.update(render(snapshot, width, height, since), refresh=True)


class _Clock:
    """Says how long ago the heartbeat of each running trial was first seen here, by this process's own clock."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[float | None, float]] = {}  # by ticket: its heartbeat, and when it was first seen

    def since(self, record: "StudyRecord") -> dict[int, float]:
        now = time.monotonic()
        running = [ticket for ticket in record.tickets if ticket.is_running]
        self._seen = {
            ticket.number: known
            if (known := self._seen.get(ticket.number)) is not None and known[0] == ticket.seen
            else (ticket.seen, now)
            for ticket in running
        }
        return {number: now - first for number, (_, first) in self._seen.items()}


def render(
    snapshot: "Snapshot", width: int = 80, height: int = 24, since: Mapping[int, float] | None = None
) -> "RenderableType":
    """Draw a snapshot: how far the search is, the best so far, the trials at work and the best of those that ended.

    What does not fit into a terminal of `width` columns and `height` lines is left out, the least important first.
    """
    from rich.console import Group

    record = snapshot.record
    lines = [_head(snapshot, width, since or {}), *_best_lines(record, width, 2 if height > 16 else 1)]
    lines.append(_counts(snapshot))
    notes = [*stopping_notes(snapshot), *live_notes(record)]
    lines += [_text(note, "yellow") for note in notes[: 2 if height > 16 else len(stopping_notes(snapshot))]]
    left = height - 2 - sum(_height(line, width) for line in lines)  # one for the cursor, one for the table's head
    footer = [_text(_KEYS, "dim")] if left > 8 and not snapshot.stopping else []
    table = _rows(record, width, left - len(footer), since or {})
    return Group(*lines, *([] if table is None else [table]), *footer)


def _head(snapshot: "Snapshot", width: int, since: Mapping[int, float]) -> "Text":
    from rich.text import Text

    record = snapshot.record
    done = record.done + sum(
        min(0.99, _epochs_done(record, ticket, trial, since) / record.info.spec.epochs)
        for ticket, trial in _started(record)
    )
    left = (
        "stopping"
        if snapshot.stopping
        else (
            "estimating the time left"
            if snapshot.seconds_left is None
            else f"{spell_seconds(snapshot.seconds_left)} left"
        )
    )
    head, tail = f"{record.done}/{record.total} ", f" {spell_seconds(snapshot.seconds)}, "
    workers = f", {count(snapshot.workers, 'worker')}"
    bar = max(6, min(32, width - len(head) - len(tail) - len(left) - len(workers) - 1))
    full = round(bar * done / max(1, record.total))
    return Text.assemble(
        (head, "bold"), ("━" * full, "green"), ("━" * (bar - full), "bright_black"), tail, (left, "cyan"), workers
    )


def _best_lines(record: "StudyRecord", width: int, most: int) -> "list[Text]":
    """Return the best perplexity, the brightest thing on the screen, and its values as far as they fit."""
    from rich.text import Text

    best = record.best
    if best is None:
        return []
    text = Text.assemble(
        "best ", (f"{best.perplexity:.2f}", "bold bright_green"), f"  trial {best.number} by {shown(best.by)}: "
    )
    short = short_names(record.info.spec.open)
    text.append(
        shown(", ".join(f"{short.get(path, path)} {spell_value(value)}" for path, value in best.params.items()))
    )
    if len(text) > most * width:
        text.truncate(most * width - 1, overflow="ellipsis")
    return [text]


def _counts(snapshot: "Snapshot") -> "Text":
    record = snapshot.record
    counts = shown(count_line(record)).partition(", ")[2].partition(", best ")[0]
    if record.best is None and snapshot.workers and not any(ticket.is_running for ticket in record.tickets):
        counts = ", ".join(filter(None, [counts, f"starting {count(snapshot.workers, 'worker')}, loading PyTorch …"]))
    return _text(counts or f"{record.total} trials to run", "")


def _rows(record: "StudyRecord", width: int, height: int, since: Mapping[int, float]) -> "RenderableType | None":
    """Draw the trials at work, and below them the best ones; None where there is no room or nothing to show."""
    from rich.table import Table

    started = [(ticket, trial) for ticket, trial in _started(record) if ticket.is_running]
    started = started[: max(1, height)]
    best = sorted(
        (t for t in record.trials if t.outcome in ("complete", "pruned") and t.curve), key=lambda t: t.perplexity
    )
    best = best[: max(0, min(_BEST_ROWS, height - len(started) - 1))]
    if height < 1 or not (started or best):
        return None
    low, high = _scale(record)
    with_by, with_speed, with_values = width >= 60, width >= 70, width >= 110
    rows = Table(box=None, pad_edge=False, header_style="bold", expand=with_values)
    for name, wanted in (("trial", True), ("state", True), ("by", with_by), ("epoch", True), ("perplexity", True),
                         ("curve", True), ("tokens/s", with_speed), ("values", with_values)):  # fmt: skip
        if wanted:
            right = name in ("trial", "epoch", "perplexity", "tokens/s")
            ratio = 1 if name == "values" else None
            rows.add_column(name, justify="right" if right else "left", no_wrap=True, overflow="ellipsis", ratio=ratio)
    spark_width = max(4, min(_SPARK_WIDTH, width - 36 - 9 * with_by - 10 * with_speed - 30 * with_values))
    short = short_names(record.info.spec.open)

    def cells(number: str, state: str, by: str, epoch: str, trial: "TrialRecord | None", speed: str) -> list[str]:
        curve = list(trial.curve.values()) if trial is not None else []
        values = trial.params if trial is not None else {}
        return [
            number,
            state,
            *([shown(by)] if with_by else []),
            epoch,
            f"{min(curve):.2f}" if curve else "",
            spark(curve[-spark_width:], low, high),
            *([speed] if with_speed else []),
            *(
                [shown(", ".join(f"{short.get(p, p)} {spell_value(v)}" for p, v in values.items()))]
                if with_values
                else []
            ),
        ]

    for ticket, trial in started:
        number = "-" if ticket.trial_number is None else str(ticket.trial_number)
        speed = "" if ticket.tokens_per_second is None else f"{ticket.tokens_per_second:,.0f}"
        rows.add_row(*cells(number, "running", ticket.by, _epochs(record, ticket, trial, since), trial, speed))
    if started and best:
        rows.add_row()
    for place, trial in enumerate(best):
        epochs = f"{len(trial.curve)}/{record.info.spec.epochs}"
        style = "bold" if place == 0 else ""
        rows.add_row(*cells(str(trial.number), trial.outcome, trial.by, epochs, trial, ""), style=style)
    return rows


def _started(record: "StudyRecord") -> "Iterator[tuple[Ticket, TrialRecord | None]]":
    """Yield the tickets whose trials have started and not ended, each with its trial."""
    trials = {trial.number: trial for trial in record.trials}
    for ticket in record.tickets:
        if is_started(ticket):
            yield ticket, None if ticket.trial_number is None else trials.get(ticket.trial_number)


def _epochs_done(
    record: "StudyRecord", ticket: "Ticket", trial: "TrialRecord | None", since: Mapping[int, float]
) -> float:
    return epochs_done(record, ticket, trial, since.get(ticket.number, 0.0))


def _epochs(record: "StudyRecord", ticket: "Ticket", trial: "TrialRecord | None", since: Mapping[int, float]) -> str:
    return spell_epochs(_epochs_done(record, ticket, trial, since), record.info.spec.epochs)


def _text(text: str, style: str) -> "Text":
    from rich.text import Text

    return Text(shown(text), style=style)


def _height(text: "Text", width: int) -> int:
    return max(1, math.ceil(len(text) / max(1, width)))


def spell_params(trial: "TrialRecord") -> str:
    """Write a trial's values in one line."""
    return ", ".join(f"{path} = {spell_value(value)}" for path, value in trial.params.items())


def stopping_notes(snapshot: "Snapshot") -> list[str]:
    """Say what happens once a person has asked to stop."""
    if not snapshot.stopping:
        return []
    left = count(sum(ticket.is_running for ticket in snapshot.record.tickets), "trial")
    if snapshot.stopping > 1:
        return ["stopping now: what was not saved yet continues from its last save"]
    return [f"stopping: saving {left} (a second Ctrl-C ends the workers at once, and loses what they trained since "
            "their last save)"]  # fmt: skip


def live_notes(record: "StudyRecord") -> list[str]:
    """List what a person should know while the search runs: ends of ranges that the best crowd."""
    if record.best is None:  # what follows loads SciPy, which the first seconds of a search do without
        return []
    from lmsearch.results.ranges import edge_sentence, edges

    return [f"note: {edge_sentence(edge)}" for edge in edges(record)]


def _scale(record: "StudyRecord") -> tuple[float, float]:
    """Return the best perplexity of a study, and that of an ordinary first epoch: the ends of its spark lines."""
    curves = [curve for trial in record.trials if (curve := [v for v in trial.curve.values() if math.isfinite(v)])]
    if not curves:
        return math.nan, math.nan
    return min(map(min, curves)), median(curve[0] for curve in curves)


def spark(values: Sequence[float], low: float = math.nan, high: float = math.nan) -> str:
    """Draw a curve in a line of characters, between the logarithms of `low` and `high`; else between its own ends."""
    values = [value for value in values[-_SPARK_WIDTH:] if math.isfinite(value) and value > 0]
    if not values:
        return ""
    low = min(values) if math.isnan(low) else low
    high = max(values) if math.isnan(high) else high
    scale = (len(_SPARKS) - 1) / math.log(high / low) if high > low > 0 else 0.0
    return "".join(_SPARKS[round(min(max(math.log(value / low) * scale, 0.0), len(_SPARKS) - 1))] for value in values)
