"""`lmsearch status`, `studies`, `best` and `dashboard`."""

import json
from typing import TYPE_CHECKING, Any

import click

from lmsearch.cli.options import (
    RUNS,
    command_text,
    json_option,
    parse_storage,
    spell_value,
    storage_option,
)

if TYPE_CHECKING:
    from lmsearch.store.records import StudyRecord


@click.command()
@click.argument("study")
@storage_option
@json_option
def status(study: str, storage: str, as_json: bool) -> None:
    """Say how far a study is, and who is at work on what.

    \b
    Example:
        lmsearch status default
    """
    from lmsearch.store.records import open_study, read_study
    from lmsearch.store.storage import open_storage

    opened = open_storage(parse_storage(storage))
    record = read_study(opened, open_study(opened, study))
    if as_json:
        click.echo(json.dumps(status_document(record), indent=2))
        return
    click.echo(count_line(record))
    for line in _busy_lines(record):
        click.echo(line)


def status_document(record: "StudyRecord") -> dict[str, Any]:
    """Give a study's state as one document."""
    from lmsearch.store.records import OUTCOMES

    best = record.best
    return {
        "study": record.info.ref.name,
        "total": record.total,
        "done": record.done,
        "counts": {outcome: record.count(outcome) for outcome in OUTCOMES},
        "best": None if best is None else {"trial": best.number, "perplexity": best.perplexity, "params": best.params},
        "at_work": [
            {
                "trial": ticket.trial_number,
                "worker": ticket.worker,
                "host": ticket.host,
                "device": ticket.device,
                "epoch": ticket.epoch,
                "step": ticket.step,
                "tokens_per_second": ticket.tokens_per_second,
            }
            for ticket in record.tickets
            if ticket.state == "running"
        ],
    }


def count_line(record: "StudyRecord") -> str:
    """Say in one line how far a study is."""
    parts = [f"{record.info.ref.name}: {record.done} of {record.total} trials"]
    for outcome in ("complete", "pruned", "diverged", "infeasible", "failed", "running", "waiting"):
        if count := record.count(outcome):
            parts.append(f"{count} {outcome}")
    if foreign := sum(trial.ticket is None for trial in record.trials):
        parts.append(f"{foreign} taken over")
    if best := record.best:
        parts.append(f"best {best.perplexity:.2f} (trial {best.number})")
    return ", ".join(parts)


def _busy_lines(record: "StudyRecord") -> list[str]:
    lines = []
    for ticket in record.tickets:
        if ticket.state == "running" or (ticket.state == "open" and ticket.trial_number is not None):
            where = f"{ticket.worker} on {ticket.device}" if ticket.state == "running" else "waiting"
            speed = "" if ticket.tokens_per_second is None else f", {ticket.tokens_per_second:,.0f} tokens/s"
            name = "a trial" if ticket.trial_number is None else f"trial {ticket.trial_number}"
            lines.append(f"  {name}: {where}, {ticket.epoch} epochs done, step {ticket.step}{speed}")
    return lines


@click.command()
@storage_option
@json_option
def studies(storage: str, as_json: bool) -> None:
    """List the studies of a store with their best perplexity.

    \b
    Example:
        lmsearch studies --storage postgresql://me@db.example/lmsearch
    """
    from lmsearch.store.records import lmsearch_studies, open_study, read_study
    from lmsearch.store.storage import open_storage

    opened = open_storage(parse_storage(storage))
    records = [read_study(opened, open_study(opened, name)) for name in lmsearch_studies(opened)]
    if as_json:
        click.echo(json.dumps([status_document(record) for record in records], indent=2))
        return
    for record in records:
        click.echo(count_line(record))
    if not records:
        click.echo("the store has no study yet; begin one with: lmsearch run")


@click.command()
@click.argument("study")
@storage_option
@json_option
def best(study: str, storage: str, as_json: bool) -> None:
    """Show the best trial of a study, and write its result files anew.

    \b
    Example:
        lmsearch best default
    """
    from lmsearch.results.best import best_config, require_best, write_results
    from lmsearch.store.records import open_study, read_study
    from lmsearch.store.storage import open_storage

    url = parse_storage(storage)
    opened = open_storage(url)
    record = read_study(opened, open_study(opened, study))
    found = require_best(record)
    command = command_text(["lmsearch", "best", study], url)
    files = write_results(record, RUNS / study, command)
    if as_json:
        click.echo(json.dumps(best_config(record, found, RUNS / study, command), indent=2))
        return
    click.echo(f"trial {found.number}: perplexity {found.perplexity:.2f} in epoch {found.best_epoch}")
    for path, value in found.params.items():
        click.echo(f"  {path} = {spell_value(value)}")
    for line in file_lines(files):
        click.echo(line)


def file_lines(files: Any) -> list[str]:
    """Say where the results are, and which command makes what is missing here."""
    lines = [f"  {path}" for path in (files.best_config, files.best_model, files.trials) if path is not None]
    if files.best_config is not None and files.best_model is None:
        where = f"the best model's weights are on {files.model_host}" if files.model_host else "no weights are kept"
        lines.append(f"  {where}; make them here with: lmsearch train {files.best_config}")
    return lines


@click.command()
@storage_option
@click.option(
    "--port",
    type=click.IntRange(1, 65_535),
    default=8080,
    show_default=True,
    help="On this machine's loopback address.",
)
def dashboard(storage: str, port: int) -> None:
    """Serve optuna-dashboard on the store, for a browser on this machine.

    \b
    Example:
        lmsearch dashboard --port 8080
    """
    from lmsearch.dashboard import serve

    click.echo(f"http://127.0.0.1:{port}/  (Ctrl-C stops it; the search does not need it)")
    serve(parse_storage(storage), port)
