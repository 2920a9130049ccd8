"""`lmsearch enqueue`, `retry`, `fail`, `stop` and `delete`: what a person does to a study by hand."""

import functools
from typing import TYPE_CHECKING

import click

from lmsearch.cli.options import (
    artifacts_option,
    command_text,
    open_store,
    parse_storage,
    storage_option,
    study_argument,
)
from lmsearch.errors import ConfigError
from lmsearch.folders import check_name, study_folder
from lmsearch.spelling import count, spell_value
from lmsearch.terminal.output import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmsearch.store.artifacts import Artifacts
    from lmsearch.store.records import StudyInfo
    from lmsearch.store.storage import FencedStorage
    from lmsearch.store.tables import Ticket


@click.command()
@study_argument()
@click.argument("values", nargs=-1, metavar="NAME=VALUE…")
@click.option("--withdraw", is_flag=True, help="Take the enqueued trials that have not started out of the budget.")
@storage_option
def enqueue(study: str, values: tuple[str, ...], withdraw: bool, storage: str, store_timeout: float | None) -> None:
    """Add one trial with values of your own; it is started before the others.

    The study's sampler chooses the values that you do not name.

    \b
    Example:
        lmsearch enqueue default model.output_dropout=0.4 train.learning_rate=5e-3
    """
    from lmsearch.search.manage import enqueue as enqueue_trials
    from lmsearch.search.manage import withdraw as withdraw_trials
    from lmsearch.study.reading import parse_assignment

    if withdraw == bool(values):
        more = command_text(["lmsearch", "run", study, "--more", "1"], parse_storage(storage))
        raise ConfigError(f"name a value, such as model.output_dropout=0.4; to add a trial of the sampler: {more}")
    if withdraw:
        found = withdraw_trials(open_store(storage, store_timeout, write=True), study)
        say(f"{count(found, 'enqueued trial')} of {study} withdrawn")
        return
    named = dict(parse_assignment(text, "", "model.output_dropout=0.4") for text in values)
    opened = open_store(storage, store_timeout, write=True)
    _tell_new(opened, storage, *enqueue_trials(opened, study, named))


@click.command()
@study_argument()
@click.argument("trial", type=int, required=False)
@click.option("--failed", is_flag=True, help="All failed trials that were not retried yet.")
@storage_option
def retry(study: str, trial: int | None, failed: bool, storage: str, store_timeout: float | None) -> None:
    """Retry a finished trial, such as a failed one, as a new trial; or retry all failed trials.

    \b
    Examples:
        lmsearch retry default 7
        lmsearch retry default --failed
    """
    from lmsearch.search.manage import retry as retry_trials
    from lmsearch.search.manage import retry_failed

    if failed == (trial is not None):
        raise ConfigError("name a trial, or --failed for all that failed")
    opened = open_store(storage, store_timeout, write=True)
    if trial is None:
        info, tickets, new = retry_failed(opened, study)
        say(f"{count(new, 'trial')} added to {study}, with the values of those that failed")
        _tell_new(opened, storage, info, tickets)
        return
    _tell_new(opened, storage, *retry_trials(opened, study, trial))


def _tell_new(opened: "FencedStorage", storage: str, info: "StudyInfo", tickets: "Sequence[Ticket]") -> None:
    from lmsearch.store.tickets import leases, read_stop

    study, new = info.ref.name, tickets[-1]
    fixed = ", ".join(f"{path} = {spell_value(value)}" for path, value in new.fixed.items())
    again = "" if new.retry_of is None else f" (retry of {new.retry_of})"
    say(f"{study} has a budget of {len(tickets)} trials now; the new one{again} has {fixed or 'no fixed values'}")
    if read_stop(opened, info.ref).stopped:
        say(f"{study} is stopped; resume with: {_resume(info, storage)}")
    elif not leases(opened, info.ref):
        run_it = command_text(["lmsearch", "worker", study], parse_storage(storage))
        say(f"no worker is running; start one with: {run_it}")


@click.command()
@study_argument()
@click.argument("trial", type=int)
@storage_option
def fail(study: str, trial: int, storage: str, store_timeout: float | None) -> None:
    """Mark a running or waiting trial as failed; its worker drops it.

    \b
    Example:
        lmsearch fail default 7
    """
    from lmsearch.search.manage import fail as end

    end(open_store(storage, store_timeout, write=True), study, trial)
    say(f"trial {trial} of {study} is marked as failed; its worker takes the next one")


@click.command()
@study_argument()
@storage_option
def stop(study: str, storage: str, store_timeout: float | None) -> None:
    """Stop all workers of a study, on every host, after they saved their trials; `lmsearch run` resumes.

    \b
    Example:
        lmsearch stop default
    """
    from lmsearch.store.copies import open_own_study
    from lmsearch.store.tickets import ask_to_stop, leases

    opened = open_store(storage, store_timeout, write=True)
    info = open_own_study(opened, study)
    ask_to_stop(opened, info.ref, stopped=True)
    _renew_note(opened, info, storage)
    at_work = leases(opened, info.ref)
    hosts = sorted({ticket.host or "?" for ticket in at_work})
    sentence = f"{len(at_work)} trials on {', '.join(hosts)} are being saved" if at_work else "no worker was running"
    say(f"{study} is stopped: {sentence}; resume with: {_resume(info, storage)}")


def _renew_note(opened: "FencedStorage", info: "StudyInfo", storage: str) -> None:
    """Say in the dashboard's note that a study is stopped; nobody else may be there to do it."""
    from lmsearch.report.keeping import Keeper
    from lmsearch.results.reading import read

    keeper = Keeper(opened, study_folder(info.ref.name), functools.partial(command_text, url=parse_storage(storage)))
    keeper.end(read(info.ref.name, opened), interrupted=True)


def _resume(info: "StudyInfo", storage: str) -> str:
    from lmsearch.results.commands import resume_words

    return command_text(resume_words(info), parse_storage(storage))


@click.command()
@study_argument()
@artifacts_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@storage_option
def delete(study: str, artifacts: "Artifacts | None", yes: bool, storage: str, store_timeout: float | None) -> None:
    """Delete a study permanently: its trials, and its checkpoints, weights and results here and among the artifacts.

    It keeps models that `lmsearch train` made from its results, and files that lmsearch did not write.

    \b
    Example:
        lmsearch delete default
    """
    from lmsearch.search.manage import check_idle
    from lmsearch.search.manage import delete as remove
    from lmsearch.store.url import redact

    check_name(study)
    opened = open_store(storage, store_timeout, write=True)
    check_idle(opened, study)
    folder = study_folder(study)
    if not yes:
        store_url = redact(parse_storage(storage))
        folders = str(folder) if artifacts is None else f"{folder} and {artifacts}"
        click.confirm(f"delete the study {study} in {store_url}, and its files in {folders} here?", abort=True)
    left = remove(opened, study, folder, artifacts)
    say(f"{study} is deleted")
    if left:
        kept = ", ".join(str(path) for path in left[:6]) + (f" and {len(left) - 6} more" if len(left) > 6 else "")
        say(f"these files are not the study's own and are kept: {kept}")
