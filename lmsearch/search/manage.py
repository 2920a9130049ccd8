"""What a person does to a study by hand: add, try again, fail and delete."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from lmsearch.errors import StudyError
from lmsearch.folders import (
    AGAIN,
    LOCK,
    LOGS,
    MARK,
    MODEL,
    RESULTS,
    RESULTS_OF,
    WEIGHTS,
    is_model,
    is_ours,
    mark_of,
    remove_weights,
)
from lmsearch.store.belonging import OTHER, Belonging
from lmsearch.store.checkpoints import SHORT, Checkpoints, remove_checkpoint
from lmsearch.store.copies import open_own_study
from lmsearch.store.records import StudyInfo, open_study
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import Ticket
from lmsearch.store.tickets import Changes, NewTicket, change_tickets, close_ended, delete_study, leases, list_tickets


def enqueue(
    storage: FencedStorage, name: str, values: Mapping[str, object], retry_of: int | None = None
) -> tuple[StudyInfo, list[Ticket]]:
    """Owe one more trial with these values; the study's sampler draws the others. Raises `ConfigError`.

    Gives the study and all its tickets, the new one last.
    """
    info = open_own_study(storage, name)
    fixed = info.spec.check_point(values)
    settings = info.spec.settings
    sampler = settings.sampler if settings.sampler not in ("grid", "manual") else "random"
    new = NewTicket(origin="enqueued", sampler=sampler, pruner=settings.pruner, fixed=fixed, retry_of=retry_of)
    tickets = change_tickets(storage, info.ref, lambda _: Changes(add=[new]))
    return info, tickets


def retry(storage: FencedStorage, name: str, number: int) -> tuple[StudyInfo, list[Ticket]]:
    """Owe one more trial with the values of an ended one. Raises `StudyError` where it is not ended."""
    trial = _trial(storage, open_own_study(storage, name), number)
    if not trial.state.is_finished():
        raise StudyError(f"trial {number} of {name} is not ended; it goes on by itself as soon as a worker is free")
    return enqueue(storage, name, trial.params, retry_of=number)


def fail(storage: FencedStorage, name: str, number: int) -> None:
    """End a running or waiting trial as failed; whoever runs it drops it. Raises `StudyError` for an ended one."""
    info = open_own_study(storage, name)
    trial = _trial(storage, info, number)
    if trial.state.is_finished():
        raise StudyError(f"trial {number} of {name} is {trial.state.name.lower()} already; what is ended stays")
    try:
        storage.set_trial_user_attr(trial._trial_id, "reason", "failed by hand")
        storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    except UpdateFinishedTrialError as error:
        raise StudyError(f"trial {number} of {name} has just ended by itself; what is ended stays") from error
    close_ended(storage, info.ref)


def check_idle(storage: FencedStorage, name: str) -> StudyInfo:
    """Open a study that nobody works on; raises `StudyError` where someone does."""
    info = open_study(storage, name)
    if at_work := leases(storage, info.ref):
        hosts = ", ".join(sorted({ticket.host or "?" for ticket in at_work}))
        raise StudyError(
            f"{len(at_work)} trials of {name} are at work on {hosts}; "
            f"let them save and leave with: lmsearch stop {name}"
        )
    return info


def delete(storage: FencedStorage, name: str, folders: Sequence[Path]) -> list[Path]:
    """Delete a study that nobody works on: its files in `folders` of this host, trials and tickets.

    The files go first, and trials and tickets in one transaction, so that whatever ends it, it can be done again.
    Gives what stays in the folders: all that lmsearch did not make for this study, such as models that were trained
    from its results.
    """
    info = check_idle(storage, name)
    for folder in folders:
        _delete_files(storage, info, folder)
    delete_study(storage, info.ref)
    return [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir()) if path.name != MARK]


def _delete_files(storage: FencedStorage, info: StudyInfo, folder: Path) -> None:
    """Remove a study's files by their names; a folder goes only where it is ours and nothing else is in it."""
    if not is_ours(folder):
        return
    stem = info.ref.key[:SHORT]
    trials = storage.get_all_trials(info.ref.id, deepcopy=False)
    belonging = Belonging(storage, info, list_tickets(storage, info.ref), trials)
    for path in Checkpoints(folder / "checkpoints", "").of_study(info.ref.key):
        if belonging.of_checkpoint(path) != OTHER:
            remove_checkpoint(path)
    for path in (folder / "models").glob(f"{stem}-trial-*"):
        if AGAIN.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
            path.with_name(f"{path.name}.training").unlink(missing_ok=True)
        elif WEIGHTS.fullmatch(path.name) and belonging.of_weights(path) != OTHER:
            remove_weights(path)
    if (mark_of(folder) or {}).get(RESULTS_OF, info.ref.key) == info.ref.key:
        for name in RESULTS:
            (folder / name).unlink(missing_ok=True)
        if is_model(folder / MODEL):
            shutil.rmtree(folder / MODEL)
        for path in (folder / LOGS).glob("*.log"):
            path.unlink(missing_ok=True)
        (folder / LOCK).unlink(missing_ok=True)
    for inner in (folder / "checkpoints", folder / "models", folder / LOGS, folder):
        _remove_empty(inner)


def _remove_empty(folder: Path) -> None:
    """Remove a folder in which nothing but our mark is left."""
    if folder.is_dir() and not folder.is_symlink() and all(path.name == MARK for path in folder.iterdir()):
        shutil.rmtree(folder, ignore_errors=True)


def _trial(storage: FencedStorage, info: StudyInfo, number: int) -> FrozenTrial:
    trials = storage.get_all_trials(info.ref.id, deepcopy=False)
    if not 0 <= number < len(trials):
        there = f"there are 0 to {len(trials) - 1}" if trials else "it has none yet"
        raise StudyError(f"{info.ref.name} has no trial {number}; {there}")
    return trials[number]
