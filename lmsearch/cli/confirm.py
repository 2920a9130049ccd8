"""`lmsearch confirm`."""

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmsearch.cli.look import file_lines, tell_remark, write_files
from lmsearch.cli.options import (
    COUNT,
    command_text,
    json_option,
    parse_storage,
    storage_option,
    work_options,
    work_request,
    workers_option,
)
from lmsearch.cli.progress import reading_bar
from lmsearch.cli.searching import Keeper, listen, output_words, watch, why_over
from lmsearch.cli.terminal import bearing, say, say_json
from lmsearch.errors import SearchFailedError, StoreGoneError
from lmsearch.files import remove_tree
from lmsearch.folders import MODEL, make_folder, study_folder
from lmsearch.processes import python

if TYPE_CHECKING:
    from lmsearch.results.best import ResultFiles
    from lmsearch.results.reading import Results
    from lmsearch.search.start import Prepared

_SAME = 0.005  # of a perplexity: a training on another kind of device may differ by so much


@click.command()
@click.argument("study")
@click.option("--top", type=COUNT, default=3, show_default=True, help="Number of best configurations to train again.")
@click.option("--seeds", type=COUNT, default=3, show_default=True, help="Number of fresh seeds for each.")
@storage_option
@workers_option
@click.option("--corpus", type=click.Path(path_type=Path), help="Path of the study's text on this host.")
@work_options
@click.option("--quiet", is_flag=True, help="Print only the result.")
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
    from lmsearch.search.start import ConfirmRequest, prepare_confirmation
    from lmsearch.store.tickets import list_tickets

    asked = {name: options[name] for name in ("top", "seeds", "workers", "device", "corpus")}
    request = ConfirmRequest(study=study, **asked, work=work_request(options))
    url = parse_storage(storage)
    with reading_bar() as progress:
        prepared = prepare_confirmation(request, url, progress)
    command = command_text(request.words() + output_words(options), url)
    listen(signals := Signals())
    quiet = options["quiet"] or options["as_json"]
    if not quiet:
        with bearing():
            tickets = list_tickets(prepared.storage, prepared.info.ref)
            owed = sum(ticket.state != "done" for ticket in tickets)
            say(f"confirm  {study}: {len(tickets)} trainings requested, {owed} left")
    try:
        record = watch(supervisor(prepared, signals).run(prepared.devices), quiet, Keeper(prepared))
    except StoreGoneError as error:
        raise StoreGoneError(f"{error}; progress is saved. Resume with: {command}") from error
    if record.done < record.total:
        why = "interrupted" if signals.received else why_over(prepared)
        with bearing():
            say(f"{why}; everything is saved; resume with: {command}", err=options["as_json"])
        return 128 + signals.received[0] if signals.received else 0
    return _conclude(prepared, study, command, options)


def _conclude(prepared: "Prepared", study: str, command: str, options: dict[str, Any]) -> int:
    from lmsearch.report.figures import dashboard_figures
    from lmsearch.report.publishing import Publisher
    from lmsearch.results.confirmation import confirmation_document, confirmation_sentence
    from lmsearch.results.reading import read
    from lmsearch.results.verdict import verdict

    url = prepared.storage.place
    results = read(study, prepared.storage)
    confirmation = results.confirmation
    if confirmation is None or confirmation.winner is None:
        said = "nothing was run" if confirmation is None else confirmation_sentence(confirmation)
        raise SearchFailedError(f"{study} has no confirmed winner: {said}")
    folder = study_folder(study)
    files = write_files(results, folder, command, url)
    tell_remark(files)
    files = _with_weights(files, results, folder, options, prepared.devices[0])
    publisher = Publisher(storage=prepared.storage, command=functools.partial(command_text, url=url))
    publisher.publish(results, folder, dashboard_figures())
    if options["as_json"]:
        say_json({"study": study, **confirmation_document(confirmation)})
        return 0
    with bearing():
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


def _with_weights(
    files: "ResultFiles", results: "Results", folder: Path, options: dict[str, Any], device: str
) -> "ResultFiles":
    """Train the winner again where its weights are gone, so that best-model/ is what best-config.json says.

    It is trained where weights of the study's trials lie, under a name of its own, and resumes where it was stopped.
    """
    import dataclasses
    import subprocess

    from lmsearch.results.best import copy_model, name_of_retraining

    winner, target = results.winner, folder / MODEL
    if files.best_model is not None or files.model_host or files.best_config is None or winner is None:
        return files
    if not options["quiet"]:
        say(f"the weights of trial {winner.number} are missing; it is trained again", err=True)
    place = folder / "models" / name_of_retraining(results.record.info, winner)
    make_folder(place.parent)
    words = python("-m", "lmsearch.cli.main", "train", str(files.best_config), "--folder", str(place), "--resume")
    words += ["--device", device, "--json"] + (["--allow-pickle"] if options["allow_pickle"] else [])
    trained = subprocess.run(words, capture_output=True, text=True, check=False)
    if trained.returncode != 0:
        say(
            f"warning: the winner's weights are missing and training it again failed: {trained.stderr.strip()}",
            err=True,
        )
        return files
    told = json.loads(trained.stdout)
    if abs(told["perplexity"] / winner.perplexity - 1) > _SAME:
        say(
            f"warning: trained again, trial {winner.number} has perplexity {told['perplexity']:.2f} instead of "
            f"{winner.perplexity:.2f}, as can happen on another device; the model is in {place}",
            err=True,
        )
        return files
    copy_model(results.record.info, winner, place, target)
    remove_tree(place)
    place.with_name(f"{place.name}.training").unlink(missing_ok=True)
    return dataclasses.replace(files, best_model=target)
