"""`lmsearch studies` and `best`."""

import errno
import functools
from typing import TYPE_CHECKING

import click

from lmsearch.cli.options import (
    artifacts_option,
    command_text,
    json_option,
    open_store,
    parse_storage,
    storage_option,
    study_argument,
)
from lmsearch.folders import study_folder
from lmsearch.spelling import spell_value
from lmsearch.terminal.output import say, say_json

if TYPE_CHECKING:
    from lmsearch.results.best import ResultFiles
    from lmsearch.results.commands import Command
    from lmsearch.results.reading import Results
    from lmsearch.store.artifacts import Artifacts


@click.command()
@storage_option
@json_option
def studies(storage: str, store_timeout: float | None, as_json: bool) -> None:
    """List the studies of a store with their best perplexity.

    \b
    Example:
        lmsearch studies --storage postgresql://me@db.example/lmsearch
    """
    from lmsearch.results.progress import count_line, status_document
    from lmsearch.store.records import open_to_look, plain_studies, readable_studies
    from lmsearch.store.tickets import present
    from lmsearch.store.trials import read_study

    opened = open_store(storage, store_timeout)
    infos, unreadable = readable_studies(opened)
    infos += [open_to_look(opened, name) for name in plain_studies(opened)]
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
@study_argument()
@storage_option
@artifacts_option
@json_option
def best(study: str, storage: str, store_timeout: float | None, artifacts: "Artifacts | None", as_json: bool) -> None:
    """Show a study's best trial and regenerate its result files.

    \b
    Example:
        lmsearch best default
    """
    from lmsearch.results.best import best_config, file_lines, require_winner
    from lmsearch.results.confirmation import confirmation_sentence
    from lmsearch.results.reading import read_best

    url = parse_storage(storage)
    results = read_best(study, open_store(storage, store_timeout))
    found = require_winner(results)
    command = functools.partial(command_text, url=url)
    made_with = command(["lmsearch", "best", study])
    files = renew(results, made_with, command, artifacts)
    if as_json:
        say_json(best_config(results, study_folder(results.name), made_with))
        return
    say(f"trial {found.number}: perplexity {found.perplexity:.2f} in epoch {found.best_epoch}")
    if results.confirmation is not None:
        say(confirmation_sentence(results.confirmation))
    for path, value in found.params.items():
        say(f"  {path} = {spell_value(value)}")
    for line in file_lines(files) if files is not None else ():
        say(line)


def renew(
    results: "Results", made_with: str, command: "Command", artifacts: "Artifacts | None"
) -> "ResultFiles | None":
    """Regenerate a study's result files; None where its folder may not be written to: looking is possible all the same.

    Raises `ResultsError` where they cannot be written for another reason.
    """
    from lmsearch.errors import ResultsError
    from lmsearch.results.best import write_files

    folder = study_folder(results.name)
    try:
        files = write_files(results, folder, made_with, command, artifacts)
    except ResultsError as error:
        if getattr(error.__cause__, "errno", None) not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        say(f"note: {folder} may not be written to, so its result files are not regenerated", err=True)
        return None
    tell_remark(files)
    return files


def tell_remark(files: "ResultFiles") -> None:
    """Say what a person should know about the result files that were written."""
    if files.remark:
        say(f"note: {files.remark}", err=True)
