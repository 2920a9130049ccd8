"""`lmsearch trials` and `show`."""

import shutil
import sys
from typing import TYPE_CHECKING

import click

from lmsearch.cli.options import COUNT, command_text, json_option, open_store, parse_storage, storage_option
from lmsearch.cli.terminal import say, say_json, say_lines
from lmsearch.config import MOST_TRIALS
from lmsearch.escapes import shown
from lmsearch.spelling import spell_value

if TYPE_CHECKING:
    from lmsearch.store.records import TrialRecord


@click.command()
@click.argument("study")
@click.option("--sort", default="trial", show_default=True, metavar="NAME", help="A searched value, perplexity, …")
@click.option("--where", metavar="CONDITION", help='Only trials such as "model.tie_weights == true and epochs > 3".')
@click.option("--limit", type=COUNT, metavar="N", help="Show only the first N.")
@storage_option
@json_option
def trials(
    study: str,
    sort: str,
    where: str | None,
    limit: int | None,
    storage: str,
    store_timeout: float | None,
    as_json: bool,
) -> None:
    """List a study's trials in ascending order.

    Names are the searched values and trial, outcome, by, perplexity, best_epoch, epochs, parameters, seconds, reason.
    A condition compares them (== != < <= > >=), joined by and, or, not and brackets.

    \b
    Examples:
        lmsearch trials default --sort perplexity --limit 10
        lmsearch trials default --sort perplexity --where "model.tie_weights == true"
    """
    from lmsearch.results.documents import trial_document
    from lmsearch.results.where import check_name, needs_epochs, parse_condition, sort_trials
    from lmsearch.store.records import open_to_look
    from lmsearch.store.trials import read_study

    opened = open_store(storage, store_timeout)
    info = open_to_look(opened, study)
    paths = list(info.spec.open)
    check_name(sort, paths)
    condition = parse_condition(where, paths) if where is not None else None
    record = read_study(opened, info, epochs=as_json or needs_epochs(sort, where))
    found = [trial for trial in record.trials if condition is None or condition(trial)]
    found = sort_trials(found, sort)[:limit]
    if as_json:
        say_json([trial_document(trial) for trial in found])
        return
    if not found:
        say(f"{study} has {len(record.trials)} trials, and none of them matches")
        return
    _print_table(found, paths, "value" if info.is_plain else "perplexity")


def _print_table(found: "list[TrialRecord]", paths: list[str], value: str) -> None:
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


@click.command()
@click.argument("study")
@click.argument("trial", type=click.IntRange(0, MOST_TRIALS))
@storage_option
@json_option
def show(study: str, trial: int, storage: str, store_timeout: float | None, as_json: bool) -> None:
    """Show one trial in full: its values, its epochs, why it ended, and a sample of its model's text.

    \b
    Example:
        lmsearch show default 12
    """
    from lmsearch.errors import StudyError
    from lmsearch.results.documents import trial_document
    from lmsearch.store.records import open_to_look
    from lmsearch.store.trials import count_trials, read_trial

    url = parse_storage(storage)
    opened = open_store(storage, store_timeout)
    info = open_to_look(opened, study)
    found = read_trial(opened, info, trial)
    if found is None:
        count = count_trials(opened, info.ref)
        there = f"there are 0 to {count - 1}" if count else "it has none yet"
        raise StudyError(f"{study} has no trial {trial}; {there}")
    if as_json:
        say_json(trial_document(found) | {"traceback": found.traceback or None})
        return
    _print_trial(study, found)
    if found.outcome == "failed":
        say(f"retry it with: {command_text(['lmsearch', 'retry', study, str(trial)], url)}")


def _print_trial(study: str, trial: "TrialRecord") -> None:
    from lmsearch.cli.live import spark

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
        perplexity = trial.curve.get(row.epoch, float("nan"))
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
