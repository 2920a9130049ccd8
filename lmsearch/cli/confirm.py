"""`lmsearch confirm`."""

import functools
from pathlib import Path
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
    quiet_option,
    storage_option,
    study_argument,
    work_options,
    work_request,
    workers_option,
)
from lmsearch.cli.searching import leave_at_work, listen, output_words, watch, why_over
from lmsearch.errors import SearchFailedError, StoreGoneError
from lmsearch.folders import study_folder
from lmsearch.terminal import logs
from lmsearch.terminal.output import say, say_json, tolerating_lost_output
from lmsearch.terminal.progress import reading_bar

if TYPE_CHECKING:
    from lmsearch.search.start import Prepared
    from lmsearch.store.records import StudyRecord


@click.command()
@study_argument()
@click.option("--top", type=COUNT, default=3, show_default=True, help="Number of best configurations to train again.")
@click.option("--seeds", type=COUNT, default=3, show_default=True, help="Number of fresh seeds for each.")
@storage_option
@workers_option
@launcher_options
@click.option("--corpus", type=click.Path(path_type=Path), help="Path of the study's text on this host.")
@work_options
@quiet_option
@json_option
def confirm(study: str, storage: str, **options: Any) -> int:
    """Train a study's best configurations again on fresh seeds and say whether the winner is real.

    The trainings are a study of their own, STUDY.confirm. Any worker may join it, and the same command resumes it.
    best-config.json then names the confirmed winner. The test split is not read.

    \b
    Examples:
        lmsearch confirm default --top 3 --seeds 3
        lmsearch confirm default --top 3 --seeds 10 --workers 4
    """
    from lmsearch.launch.search import supervisor
    from lmsearch.launch.supervise import Signals
    from lmsearch.report.keeping import Keeper
    from lmsearch.search.start import ConfirmRequest, prepare_confirmation
    from lmsearch.store.tickets import list_tickets

    fields = {name: options[name] for name in ("top", "seeds", "workers", "device", "corpus")}
    request = ConfirmRequest(study=study, **fields, work=work_request(options), placement=placement_of(options))
    url = parse_storage(storage)
    with reading_bar() as progress:
        prepared = prepare_confirmation(request, url, progress)
    command = command_text(request.words() + output_words(options), url)
    listen(signals := Signals(), prepared.placement.is_cluster)
    supervision = supervisor(prepared, signals)
    quiet = options["quiet"] or options["as_json"]
    if not quiet:
        with tolerating_lost_output():
            tickets = list_tickets(prepared.storage, prepared.info.ref)
            remaining = sum(not ticket.is_done for ticket in tickets)
            say(f"confirm  {study}: {len(tickets)} trainings requested, {remaining} left")
    if prepared.placement.detach:
        return leave_at_work(prepared, supervision)
    try:
        keeper = Keeper(prepared.storage, prepared.folder, functools.partial(command_text, url=url))
        record = watch(supervision.run(prepared.devices), quiet, keeper.look)
    except StoreGoneError as error:
        raise StoreGoneError(f"{error}; progress is saved. Resume with: {command}") from error
    if record.done < record.total:
        why = "interrupted" if signals.received else why_over(prepared)
        with tolerating_lost_output():
            say(f"{why}; everything is saved; resume with: {command}", err=options["as_json"])
        return 128 + signals.received[0] if signals.received else 0
    return _conclude(prepared, record, study, command, options)


def _conclude(prepared: "Prepared", record: "StudyRecord", study: str, command: str, options: dict[str, Any]) -> int:
    from lmsearch.launch.retrain import with_weights
    from lmsearch.report.figures import dashboard_figures
    from lmsearch.report.publishing import Publisher
    from lmsearch.results.best import file_lines, write_files
    from lmsearch.results.confirmation import confirmation_document, confirmation_sentence
    from lmsearch.results.reading import Results, read
    from lmsearch.results.verdict import verdict

    url = prepared.storage.store_url
    results = read(study, prepared.storage)
    confirmation = results.confirmation
    if confirmation is None or confirmation.winner is None:
        said = "nothing was run" if confirmation is None else confirmation_sentence(confirmation)
        raise SearchFailedError(f"{study} has no confirmed winner: {said}")
    folder = study_folder(study)
    printed = functools.partial(command_text, url=url)
    files = write_files(results, folder, command, printed, prepared.work.artifacts)
    tell_remark(files)
    if options["quiet"]:
        logs.warnings_only()
    files = with_weights(files, results, folder, prepared.devices[0], options["allow_pickle"])
    publisher = Publisher(storage=prepared.storage, command=printed)
    publisher.publish(results, folder, dashboard_figures())
    publisher.publish(Results(record=record), prepared.folder)
    if options["as_json"]:
        say_json({"study": study, **confirmation_document(confirmation)})
        return 0
    with tolerating_lost_output():
        for sentence in verdict(results):
            say(sentence)
        for leader in confirmation.leaders:
            values = [f"{seed}: {value:.2f}" for seed, value in leader.perplexities.items()]
            values += [f"{seed}: {outcome}" for seed, outcome in leader.lost.items()]
            mean = f"mean {leader.mean:.2f}" if leader.perplexities else "lost"
            say(f"  trial {leader.trial.number}: {mean} (seed {', '.join(values)})")
        say("files")
        for line in file_lines(files):
            say(line)
        say("next, once, at the very end")
        say(f"  {command_text(['lmsearch', 'test', study], url)}")
    return 0
