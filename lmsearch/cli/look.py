"""`lmsearch studies` and `best`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmsearch.cli.options import (
    command_text,
    json_option,
    open_store,
    parse_storage,
    storage_option,
)
from lmsearch.cli.status import count_line, status_document
from lmsearch.cli.terminal import say, say_json
from lmsearch.errors import ResultsError
from lmsearch.folders import study_folder
from lmsearch.spelling import spell_value

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

    from lmsearch.results.best import ResultFiles
    from lmsearch.results.reading import Results


@click.command()
@storage_option
@json_option
def studies(storage: str, store_timeout: float | None, as_json: bool) -> None:
    """List the studies of a store with their best perplexity.

    \b
    Example:
        lmsearch studies --storage postgresql://me@db.example/lmsearch
    """
    from lmsearch.store.records import readable_studies
    from lmsearch.store.tickets import present
    from lmsearch.store.trials import read_study

    opened = open_store(storage, store_timeout)
    infos, unreadable = readable_studies(opened)
    records = [read_study(opened, info) for info in infos]
    if as_json:
        documents = [status_document(record, present(opened)) for record in records]
        documents += [{"study": name, "error": why} for name, why in unreadable.items()]
        say_json(documents)
        return
    for record in records:
        say(count_line(record))
    for name, why in unreadable.items():
        say(f"{name}: cannot be read: {why}")
    if not records and not unreadable:
        say("the store has no study yet; start one with: lmsearch run")


@click.command()
@click.argument("study")
@storage_option
@json_option
def best(study: str, storage: str, store_timeout: float | None, as_json: bool) -> None:
    """Show a study's best trial and regenerate its result files.

    \b
    Example:
        lmsearch best default
    """
    from lmsearch.results.best import best_config, require_winner
    from lmsearch.results.confirmation import confirmation_sentence
    from lmsearch.results.reading import read_best

    url = parse_storage(storage)
    results = read_best(study, open_store(storage, store_timeout))
    found = require_winner(results)
    command = command_text(["lmsearch", "best", study], url)
    files = write_files(results, study_folder(results.name), command, url)
    if as_json:
        tell_remark(files)
        say_json(best_config(results, study_folder(results.name), command))
        return
    say(f"trial {found.number}: perplexity {found.perplexity:.2f} in epoch {found.best_epoch}")
    if results.confirmation is not None:
        say(confirmation_sentence(results.confirmation))
    for path, value in found.params.items():
        say(f"  {path} = {spell_value(value)}")
    for line in file_lines(files):
        say(line)
    tell_remark(files)


def tell_remark(files: "ResultFiles") -> None:
    """Say what a person should know about the result files that were written."""
    if files.remark:
        say(f"note: {files.remark}", err=True)


def write_files(results: "Results", folder: Path, command: str, url: "URL") -> "ResultFiles":
    """Write the result files of a study; raises `ResultsError`, with the command that writes them again."""
    from lmsearch.results.best import write_results

    try:
        return write_results(results, folder, command)
    except OSError as error:
        raise ResultsError(
            f"the results cannot be written: {error}; nothing is lost, write them again with: "
            f"{command_text(['lmsearch', 'best', results.name], url)}"
        ) from error


def file_lines(files: "ResultFiles") -> list[str]:
    """Say where the results are, and which command makes what is missing here."""
    lines = [f"  {path}" for path in (files.best_config, files.best_model, files.trials) if path is not None]
    if files.best_config is not None and files.best_model is None:
        where = f"the best model's weights are on {files.model_host}" if files.model_host else "no weights are kept"
        lines.append(f"  {where}; make them here with: lmsearch train {files.best_config}")
    return lines
