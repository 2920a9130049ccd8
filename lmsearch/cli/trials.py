"""`lmsearch trials` and `show`."""

import click

from lmsearch.cli.options import COUNT, command_text, json_option, open_store, parse_storage, storage_option
from lmsearch.config import MOST_TRIALS
from lmsearch.terminal.output import say, say_json


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
    from lmsearch.terminal.trials import print_table

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
    print_table(found, paths, "value" if info.is_plain else "perplexity")


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
    from lmsearch.terminal.trials import print_trial

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
    print_trial(study, found)
    if found.outcome == "failed":
        say(f"retry it with: {command_text(['lmsearch', 'retry', study, str(trial)], url)}")
