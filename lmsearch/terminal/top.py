"""A study on the whole terminal, for long searches: leaderboard, curves, workers, the log of a trial's worker."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import DataTable, Footer, RichLog, Static

from lmsearch.errors import LmsearchError
from lmsearch.escapes import shown
from lmsearch.folders import LOGS
from lmsearch.results.progress import State, count_line, started_rows
from lmsearch.spelling import short_names, spell_seconds, spell_value
from lmsearch.store.records import StudyRecord, TrialRecord
from lmsearch.store.workers import WorkerRow
from lmsearch.terminal.status import worker_cells
from lmsearch.terminal.trials import short_value

_SECONDS = 2.0  # between two readings of the store
_MOST_ROWS = 500  # of the leaderboard
_LOG_BYTES = 20_000  # of the end of a log
_WORKER_COLUMNS = ("trial", "state", "epoch", "tokens/s", "last seen", "host", "device")
_STYLES = {"complete": "green", "running": "cyan", "paused": "yellow", "failed": "red", "diverged": "red"}


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A study as it was read at one moment."""

    record: StudyRecord  # with the epochs of each trial
    state: State
    now: tuple[float, str]
    workers: Sequence[WorkerRow]
    seconds_left: float | None


class StudyTop(App[None]):
    """The view. `read` is called every two seconds, in a thread."""

    CSS = """
    #head { height: auto; padding: 0 1; }
    #upper { height: 2fr; }
    #trials { width: 3fr; }
    #side { width: 2fr; padding: 0 1; }
    #curve { height: 1fr; }
    #values { height: auto; max-height: 60%; }
    #lower { height: 1fr; min-height: 6; }
    #workers { width: 2fr; }
    #log { width: 3fr; border-left: solid $panel; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit; the search goes on"),
        Binding("tab", "focus_next", "next table"),
    ]
    TITLE = "lmsearch top"

    def __init__(self, read: Callable[[], Moment], folder: Path) -> None:
        super().__init__()
        self._read = read
        self._folder = folder  # of the study's files on this host
        self._moment: Moment | None = None
        self._chosen: int | None = None  # a trial's number; the best until a person chooses

    def compose(self) -> ComposeResult:
        """Place what there is to see."""
        yield Static("reading the study …", id="head")
        with Horizontal(id="upper"):
            yield DataTable(id="trials", cursor_type="row", zebra_stripes=True)
            with Vertical(id="side"):
                yield Static(id="curve")
                yield Static(id="values")
        with Horizontal(id="lower"):
            yield DataTable(id="workers", cursor_type="none", show_cursor=False)
            yield RichLog(id="log", markup=False, wrap=True, max_lines=500)
        yield Footer()

    def on_mount(self) -> None:
        """Start to read."""
        self._renew()
        self.set_interval(_SECONDS, self._renew)

    def _renew(self) -> None:
        self.run_worker(self._load, thread=True, exclusive=True)

    def _load(self) -> None:
        try:
            moment = self._read()
        except LmsearchError as error:  # an outage: the next reading may succeed
            self.call_from_thread(self.query_one("#head", Static).update, Text(shown(error), style="bold red"))
            return
        self.call_from_thread(self._show, moment)

    def _show(self, moment: Moment) -> None:
        self._moment = moment
        record = moment.record
        left = "" if moment.seconds_left is None else f", about {spell_seconds(moment.seconds_left)} left"
        self.query_one("#head", Static).update(Text(f"{shown(count_line(record))}\n{moment.state}{left}"))
        self._show_trials(record)
        self._show_workers(moment)
        self._show_chosen()

    def _show_trials(self, record: StudyRecord) -> None:
        table = self.query_one("#trials", DataTable)
        paths = list(record.info.spec.open)
        if not table.columns:
            for name in ("trial", "outcome", "by", "perplexity", "epochs", *short_names(paths).values()):
                table.add_column(Text(shown(name)))
        ordered = leaderboard(record)
        chosen = self._chosen if self._chosen is not None else (ordered[0].number if ordered else None)
        table.clear()
        for trial in ordered:
            style = "bold green" if record.best is not None and trial.number == record.best.number else ""
            values = [short_value(trial.params[path]) if path in trial.params else "" for path in paths]
            cells = [trial.number, trial.outcome, trial.by, _perplexity(trial), len(trial.curve), *values]
            styles = [style, _STYLES.get(trial.outcome, ""), *[style] * (len(cells) - 2)]
            row = [Text(shown(cell), style=one) for cell, one in zip(cells, styles, strict=True)]
            table.add_row(*row, key=str(trial.number))
        if chosen is not None and str(chosen) in {key.value for key in table.rows}:
            table.move_cursor(row=table.get_row_index(str(chosen)))

    def _show_workers(self, moment: Moment) -> None:
        table = self.query_one("#workers", DataTable)
        if not table.columns:
            table.add_columns(*_WORKER_COLUMNS)
        table.clear()
        for row in started_rows(moment.record, moment.now):
            if row["state"] != "paused":
                cells = worker_cells(row, moment.record.info.spec.epochs)
                table.add_row(*(Text(cells[name]) for name in _WORKER_COLUMNS))

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Follow the trial that a person moves to."""
        if event.data_table.id == "trials" and event.data_table.has_focus and event.row_key.value is not None:
            self._chosen = int(event.row_key.value)
            self._show_chosen()

    def _show_chosen(self) -> None:
        if self._moment is None:
            return
        record = self._moment.record
        trials = {trial.number: trial for trial in record.trials}
        best = record.best
        trial = trials.get(self._chosen) if self._chosen is not None else best
        if trial is None:
            return
        curve = self.query_one("#curve", Static)
        curves = [list(one.curve.values()) for one in (best, trial) if one is not None]
        named = "" if best is None or best.number == trial.number else f" (o), and trial {best.number}, the best (.)"
        drawn = plot(curves, max(10, curve.size.width - 10), max(3, curve.size.height - 2))
        curve.update(Text(f"perplexity of trial {trial.number}{named}\n{drawn}"))
        lines = [f"{path} = {spell_value(value)}" for path, value in trial.params.items()]
        self.query_one("#values", Static).update(Text("\n".join(map(shown, [*lines, *filter(None, [trial.reason])]))))
        log = self.query_one("#log", RichLog)
        log.clear()
        log.write(Text(shown_log(self._folder, trial)))


def leaderboard(record: StudyRecord) -> list[TrialRecord]:
    """Return the trials to show: complete ones first, each kind the best first."""
    return sorted(record.trials, key=lambda trial: (trial.outcome != "complete", trial.perplexity))[:_MOST_ROWS]


def shown_log(folder: Path, trial: TrialRecord) -> str:
    """Return the end of the log of the worker that has, or had, a trial."""
    ticket = trial.ticket
    if ticket is None or not ticket.worker:
        return f"trial {trial.number}: no worker of this search has it"
    path = folder / LOGS / f"{ticket.worker}.log"
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return f"the log of its worker is on {shown(ticket.host or 'another host')}: {shown(path)}"
    return "\n".join(map(shown, text.splitlines()))


def plot(curves: Sequence[Sequence[float]], width: int, height: int) -> str:
    """Draw curves in so many columns and rows of characters over their epochs, the last one on top, on a log scale."""
    values = [value for curve in curves for value in curve if math.isfinite(value) and value > 0]
    if not values:
        return "no epoch has ended yet"
    low, high = math.log(min(values)), math.log(max(values))
    longest = max(map(len, curves))
    grid = [[" "] * width for _ in range(height)]
    for number, curve in enumerate(curves):
        for epoch, value in enumerate(curve):
            if math.isfinite(value) and value > 0:
                column = round(epoch * (width - 1) / max(1, longest - 1))
                row = round((high - math.log(value)) * (height - 1) / max(high - low, 1e-9))
                grid[row][column] = "o" if number == len(curves) - 1 else "."
    labels = [f"{math.exp(high - (high - low) * row / max(1, height - 1)):8.4g} " for row in range(height)]
    return "\n".join(label + "".join(line) for label, line in zip(labels, grid, strict=True))


def _perplexity(trial: TrialRecord) -> str:
    return f"{trial.perplexity:.2f}" if trial.curve else ""
