"""`lmsearch trials` and `show`."""

import click

from lmsearch.cli.options import (
    COUNT,
    command_text,
    json_option,
    open_store,
    parse_storage,
    storage_option,
    study_argument,
    the_study,
)
from lmsearch.config import MOST_TRIALS
from lmsearch.errors import ConfigError
from lmsearch.terminal.output import say, say_data, say_json


@click.command()
@study_argument(required=False)
@click.option(
    "--sort",
    default="perplexity",
    show_default=True,
    metavar="NAME",
    help="A searched value, trial, epochs, …; -NAME puts the highest first.",
)
@click.option("--where", metavar="CONDITION", help='Only trials such as "tie_weights == true and epochs > 3".')
@click.option("--limit", type=COUNT, metavar="N", help="Show only the first N.")
@click.option("--wide", is_flag=True, help="Show all columns, also those beyond the terminal's width.")
@click.option("--csv", "as_csv", is_flag=True, help="Print all that is known of each trial as CSV.")
@storage_option
@json_option
def trials(
    study: str | None,
    sort: str,
    where: str | None,
    limit: int | None,
    wide: bool,
    as_csv: bool,
    storage: str,
    store_timeout: float | None,
    as_json: bool,
) -> None:
    """List a study's trials, the best first.

    Names are the searched values and trial, outcome, by, perplexity, best_epoch, epochs, parameters, seconds, reason.
    A condition compares them (== != < <= > >=), joined by and, or, not and brackets. A searched value may be named
    without its section: learning_rate. With one study in the store, its name may be left out.

    \b
    Examples:
        lmsearch trials default --limit 10
        lmsearch trials default --sort -learning_rate --where "tie_weights == true"
    """
    from lmsearch.results.best import trials_csv
    from lmsearch.results.documents import trial_document
    from lmsearch.results.where import full_name, needs_epochs, parse_condition, sort_trials
    from lmsearch.store.records import open_to_look
    from lmsearch.store.trials import read_study
    from lmsearch.terminal.trials import print_table

    if as_csv and as_json:
        raise ConfigError("--csv and --json are two formats; give one of the two")
    opened = open_store(storage, store_timeout)
    info = open_to_look(opened, study or the_study(opened))
    paths = list(info.spec.open)
    name = full_name(sort.removeprefix("-"), paths)
    condition = parse_condition(where, paths) if where is not None else None
    record = read_study(opened, info, epochs=as_json or needs_epochs(name, where))
    found = [trial for trial in record.trials if condition is None or condition(trial)]
    found = sort_trials(found, name, descending=sort.startswith("-"))[:limit]
    if as_json:
        say_json([trial_document(trial) for trial in found])
    elif as_csv:
        say_data(trials_csv(record, found))
    elif not found:
        say(f"{info.ref.name} has {len(record.trials)} trials, and none of them matches")
    else:
        print_table(found, paths, "value" if info.is_plain else "perplexity", wide, record.best)


@click.command()
@study_argument()
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
