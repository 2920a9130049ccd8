"""`lmsearch run`."""

import functools
from typing import TYPE_CHECKING, Any

import click

from lmsearch.cli.look import tell_remark
from lmsearch.cli.options import (
    COUNT,
    command_text,
    json_option,
    launcher_options,
    parse_storage,
    placement_of,
    pruner_option,
    quiet_option,
    sampler_option,
    storage_option,
    study_file_argument,
    time_limit_option,
    work_options,
    work_request,
    workers_option,
)
from lmsearch.cli.searching import leave_at_work, listen, output_words, watch, why_over
from lmsearch.errors import SearchFailedError, StoreGoneError
from lmsearch.terminal.output import say, say_json, tolerating_lost_output
from lmsearch.terminal.progress import reading_bar
from lmsearch.terminal.search import print_found, print_plan

if TYPE_CHECKING:
    from lmsearch.report.keeping import Keeper
    from lmsearch.results.best import ResultFiles
    from lmsearch.results.reading import Results
    from lmsearch.search.start import Prepared
    from lmsearch.store.records import StudyRecord


@click.command()
@study_file_argument
@storage_option
@click.option("--name", help="Name of the study. [default: the file's name]")
@sampler_option
@pruner_option
@click.option("-n", "--trials", type=COUNT, help="Set the trial budget of the study.")
@click.option("--more", type=COUNT, metavar="N", help="Add N trials to the budget.")
@workers_option
@launcher_options
@click.option("--from", "source", metavar="STUDY", help="Reuse the trials of another study that fit this space.")
@time_limit_option
@work_options
@click.option(
    "--notify",
    metavar="URL",
    multiple=True,
    envvar="LMSEARCH_NOTIFY",
    help="Tell this Apprise URL (mail, Slack, …) of the first trial, of trouble, and of the end. May be repeated. Also "
    "LMSEARCH_NOTIFY, which shows its secrets to nobody.",
)
@quiet_option
@json_option
def run(study_file: str, storage: str, **options: Any) -> int:
    """Start or resume a study and run it until its trial budget is used up.

    STUDY_FILE is a file, the name of a study in the store, or of one that ships with lmsearch: default, tutorial,
    tutorial-regularised, wikitext2-awd-lstm, penn-treebank-awd-lstm, lstm-wikitext2, asha-paper,
    mogrifier-small, mogrifier-wikitext2.

    \b
    Examples:
        lmsearch run --sampler tpe --workers 4
        lmsearch run my-study.toml --more 20
    """
    from lmsearch.launch.notify import Notifier
    from lmsearch.launch.search import supervisor
    from lmsearch.launch.supervise import Signals
    from lmsearch.report.keeping import Keeper
    from lmsearch.results.progress import count_line
    from lmsearch.search.begin import SpaceChangedError
    from lmsearch.search.start import SearchRequest, prepare

    names = ("name", "sampler", "pruner", "trials", "more", "source", "time_limit", "workers", "device")
    fields = {name: options[name] for name in names}
    request = SearchRequest(
        study_file=study_file, **fields, work=work_request(options), placement=placement_of(options)
    )
    url = parse_storage(storage)
    notifier = Notifier(options["notify"])
    try:
        with reading_bar() as progress:
            prepared = prepare(request, url, progress)
    except SpaceChangedError as error:
        new = command_text(error.new_study, url)
        raise SpaceChangedError(f"{error}; start a new study from it with: {new}") from error
    command = command_text(request.words() + output_words(options), url)
    listen(signals := Signals(), prepared.placement.is_cluster)
    supervision = supervisor(prepared, signals)
    printed = functools.partial(command_text, url=url)
    keeper = Keeper(prepared.storage, prepared.folder, printed)
    quiet = options["quiet"] or options["as_json"]
    if not quiet:
        with tolerating_lost_output():
            print_plan(prepared)
    if prepared.placement.detach:
        return leave_at_work(prepared, supervision)
    with notifier.watching(prepared.info.ref.name):
        try:
            record = watch(supervision.run(prepared.devices), quiet, keeper.look, notifier.look)
        except StoreGoneError as error:
            raise StoreGoneError(f"{error}; progress is saved. Resume with: {command}") from error
        code = _conclude(prepared, record, command, signals.received, options["as_json"], keeper)
        if not signals.received:
            over = record.done == record.total
            notifier.tell("finished" if over else why_over(prepared), count_line(record))
        return code


def _conclude(
    prepared: "Prepared", record: "StudyRecord", command: str, received: list[int], as_json: bool, keeper: "Keeper"
) -> int:
    """Write the results, print them and return the exit code."""
    from lmsearch.results.best import write_files
    from lmsearch.results.commands import failure_sentence

    results = _results(prepared, record)
    printed = functools.partial(command_text, url=prepared.storage.store_url)
    files = write_files(results, prepared.folder, command, printed, prepared.work.artifacts)
    tell_remark(files)
    keeper.end(results, interrupted=bool(received))
    if as_json:
        say_json(_document(prepared, results, files))
    else:
        with tolerating_lost_output():
            print_found(results, files, printed)
    if record.done < record.total:
        why = "interrupted" if received else why_over(prepared)
        with tolerating_lost_output():
            say(f"{why}; everything is saved; resume with: {command}", err=as_json)
        return 128 + received[0] if received else 0
    if record.best is None:
        raise SearchFailedError(failure_sentence(results, printed))
    return 0


def _results(prepared: "Prepared", record: "StudyRecord") -> "Results":
    """Add what else the store knows of the study; nothing where it went away before it could be asked."""
    from lmsearch.results.reading import Results, complete

    try:
        return complete(prepared.storage, record)
    except StoreGoneError:
        return Results(record=record)


def _document(prepared: "Prepared", results: "Results", files: "ResultFiles") -> dict[str, Any]:
    from lmsearch.results.progress import status_document
    from lmsearch.store.tickets import present

    try:
        now = present(prepared.storage)
    except StoreGoneError:  # interrupted while it was away
        now = (0.0, "")  # by no clock: the last heartbeat of a worker is not known
    return status_document(results.record, now) | {
        "importances": results.importances.document(),
        "files": {
            "best_config": None if files.best_config is None else str(files.best_config),
            "best_model": None if files.best_model is None else str(files.best_model),
            "trials": str(files.trials),
        },
    }
