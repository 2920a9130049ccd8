"""What a person does to a study by hand: add, try again, fail and delete."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from lmsearch.errors import StudyError
from lmsearch.store.copies import open_own_study
from lmsearch.store.records import StudyInfo, open_study
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import Ticket
from lmsearch.store.tickets import Changes, NewTicket, change_tickets, close_ended, delete_tickets, leases


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


def delete(storage: FencedStorage, name: str, folders: Sequence[Path]) -> None:
    """Delete a study that nobody works on: trials, tickets, and its files in `folders` of this host."""
    info = check_idle(storage, name)
    storage.delete_study(info.ref.id)
    delete_tickets(storage, info.ref)
    for folder in folders:
        _delete_files(info, folder)


def _delete_files(info: StudyInfo, folder: Path) -> None:
    stem = info.ref.key[:12]
    for path in [*folder.glob(f"checkpoints/{stem}-*"), *folder.glob(f"models/{stem}-*")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    # A study of the same name in another store has its checkpoints and weights in this folder too.
    if not any(True for part in ("checkpoints", "models") for _ in folder.glob(f"{part}/*")):
        shutil.rmtree(folder, ignore_errors=True)


def _trial(storage: FencedStorage, info: StudyInfo, number: int) -> FrozenTrial:
    trials = storage.get_all_trials(info.ref.id, deepcopy=False)
    if not 0 <= number < len(trials):
        there = f"there are 0 to {len(trials) - 1}" if trials else "it has none yet"
        raise StudyError(f"{info.ref.name} has no trial {number}; {there}")
    return trials[number]
