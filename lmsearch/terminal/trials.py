"""Trials as a table and one by one."""

import itertools
import math
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmsearch.escapes import shown
from lmsearch.spelling import count, short_names, spell_value
from lmsearch.terminal.live import spark
from lmsearch.terminal.output import say, say_coloured, say_lines

if TYPE_CHECKING:
    from lmsearch.store.records import TrialRecord

_HEAD = 5  # columns that are always shown: trial, outcome, by, its value, epochs


def print_table(
    found: "list[TrialRecord]", paths: list[str], value: str, wide: bool, best: "TrialRecord | None" = None
) -> None:
    """Print a line for each trial: all searched values, or, unless `wide`, those that the terminal has room for.

    `value` heads the trials' values; the best trial is bright. Through a pipe each trial stays one whole line.
    """
    short = short_names(paths)
    rows = [("trial", "outcome", "by", value, "epochs", *map(shown, short.values()))]
    rows += [
        (
            str(trial.number),
            trial.outcome,
            shown(trial.by),
            f"{trial.perplexity:.2f}" if trial.curve else "",
            str(len(trial.curve)),
            *(shown(short_value(trial.params[path])) if path in trial.params else "" for path in paths),
        )
        for trial in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    fit = len(widths)
    if sys.stdout.isatty() and not wide:
        columns = shutil.get_terminal_size().columns
        fit = max(_HEAD, sum(end <= columns for end in itertools.accumulate(width + 2 for width in widths)))
    for number, row in enumerate(rows):
        line = _line(row[:fit], widths[:fit])
        if number and best is not None and found[number - 1].number == best.number:
            say_coloured(line, "green", "")
        else:
            say(line)
    if fit < len(widths):
        say(f"… {count(len(widths) - fit, 'more column')}: --wide")


def short_value(value: object) -> str:
    """Write a value for a column of a table: a number with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else spell_value(value)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Write a row: outcome and by to the left, numbers to the right."""
    padded = (
        cell.ljust(width) if column in (1, 2) else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join(padded).rstrip()


def print_trial(study: str, trial: "TrialRecord") -> None:
    """Print one trial in full."""
    reached = f", perplexity {trial.perplexity:.2f} in epoch {trial.best_epoch}" if trial.curve else ""
    say(f"trial {trial.number} of {study}, by {trial.by or 'another program'}: {trial.outcome}{reached}")
    if trial.reason and trial.reason != trial.outcome:
        say(f"  {trial.reason}")
    if trial.origin_trial:
        say(f"  from {trial.origin_trial}")
    for path, value in trial.params.items():
        say(f"  {path} = {spell_value(value)}")
    if trial.parameters:
        say(f"  {trial.parameters:,} parameters")
    if trial.epochs:
        say(f"epoch  train    valid    perplexity  seconds  tokens/s   {spark(list(trial.curve.values()))}")
    for row in trial.epochs:
        perplexity = trial.curve.get(row.epoch, math.nan)
        say(
            f"{row.epoch:5}  {row.train_loss:7.4f}  {row.valid_loss:7.4f}  {perplexity:10.2f}  {row.seconds:7.1f}  "
            f"{row.tokens / max(row.seconds, 1e-9):8,.0f}"
        )
    if trial.traceback and trial.traceback != trial.reason:
        say_lines(trial.traceback)
    if trial.sample:
        say_lines(f"sample of its text: {trial.sample}")
    if trial.known_perplexity is not None:
        say(f"perplexity of the known words alone: {trial.known_perplexity:.2f}")
