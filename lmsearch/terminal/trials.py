"""Trials as a table and one by one."""

import math
import shutil
import sys
from typing import TYPE_CHECKING

import click

from lmsearch.escapes import shown
from lmsearch.spelling import spell_value
from lmsearch.terminal.live import spark
from lmsearch.terminal.output import say, say_lines

if TYPE_CHECKING:
    from lmsearch.store.records import TrialRecord


def print_table(found: "list[TrialRecord]", paths: list[str], value: str) -> None:
    """Print a line for each trial, or a paragraph each where the terminal is too narrow; `value` heads their values."""
    head = ("trial", "outcome", "by", value, "epochs", *paths)
    rows = [
        [
            str(trial.number),
            trial.outcome,
            shown(trial.by),
            f"{trial.perplexity:.2f}" if trial.curve else "",
            str(len(trial.curve)),
            *(shown(spell_value(trial.params[path])) if path in trial.params else "" for path in paths),
        ]
        for trial in found
    ]
    # A dotted name breaks after its dot, and so two lines of head serve for long names.
    parts = [shown(name).partition(".") for name in head]
    heads = [[first + dot for first, dot, _ in parts], [last for _, _, last in parts]]
    heads = heads if any(heads[1]) else heads[:1]
    widths = [max(len(row[column]) for row in (*heads, *rows)) for column in range(len(head))]
    lines = [_line(row, widths) for row in (*heads, *rows)]
    # Through a pipe each trial stays one line: a program counts lines, and `less -S` scrolls.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    if sum(widths) + 2 * len(widths) - 2 <= width:
        say_lines("\n".join(lines))
        return
    for trial in found:  # wider than the terminal: a paragraph each
        reached = f", {trial.perplexity:.2f} in {len(trial.curve)} epochs" if trial.curve else ""
        say(f"trial {trial.number} ({trial.by}): {trial.outcome}{reached}")
        values = ", ".join(f"{path} = {spell_value(value)}" for path, value in trial.params.items())
        say_lines(click.wrap_text(shown(values), width, initial_indent="  ", subsequent_indent="  "))


def _line(cells: list[str], widths: list[int]) -> str:
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
