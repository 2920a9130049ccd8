"""What a person does to a study by hand: add, try again, fail and delete."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from lmsearch.errors import StudyError
from lmsearch.files import remove_tree
from lmsearch.folders import (
    AGAIN,
    CHECKPOINTS,
    LOCK,
    LOG,
    LOGS,
    MARK,
    MODEL,
    MODELS,
    RESULTS,
    RESULTS_OF,
    WEIGHTS,
    drafts,
    is_model,
    is_ours,
    mark_of,
    remove_weights,
    study_folder,
)
from lmsearch.search.budget import filling_sampler
from lmsearch.store.artifacts import Artifacts, StudyFiles, study_files
from lmsearch.store.belonging import OTHER, Belonging
from lmsearch.store.checkpoints import SHORT, Checkpoints
from lmsearch.store.copies import open_own_study
from lmsearch.store.records import StudyInfo, open_study
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import OPEN, Ticket
from lmsearch.store.tickets import Changes, NewTicket, change_tickets, close_ended, delete_study, leases, list_tickets
from lmsearch.store.trials import read_study
from lmsearch.store.weights import Weights

_OF_A_STUDY = re.compile(r"\.[0-9a-f]{12}-")  # begins a draft that says by its name whose it is


def enqueue(
    storage: FencedStorage, name: str, values: Mapping[str, object], retry_of: int | None = None
) -> tuple[StudyInfo, list[Ticket]]:
    """Add one trial with these values; the study's sampler draws the others. Raises `ConfigError`.

    Returns the study and all its tickets, the new one last.
    """
    info = open_own_study(storage, name)
    new = _enqueued(info, values, retry_of)
    tickets = change_tickets(storage, info.ref, lambda _: Changes(add=[new]))
    return info, tickets


def withdraw(storage: FencedStorage, name: str) -> int:
    """Take the enqueued trials that nobody has started out of the budget again; return how many these were."""
    info = open_own_study(storage, name)
    found: list[int] = []

    def decide(tickets: Sequence[Ticket]) -> Changes:
        found[:] = [t.number for t in tickets if t.origin == "enqueued" and t.state == OPEN and t.lease == 0]
        return Changes(withdraw=found)

    change_tickets(storage, info.ref, decide)
    return len(found)


def _enqueued(info: StudyInfo, values: Mapping[str, object], retry_of: int | None) -> NewTicket:
    """Make a ticket with these values; the study's sampler draws the others."""
    sampler, pruner = filling_sampler(info.spec), info.spec.settings.pruner
    fixed = info.spec.check_point(values)
    return NewTicket(origin="enqueued", sampler=sampler, pruner=pruner, fixed=fixed, retry_of=retry_of)


def retry(storage: FencedStorage, name: str, number: int) -> tuple[StudyInfo, list[Ticket]]:
    """Add one trial with the values of an ended one. Raises `StudyError` where it has not ended."""
    trial = _trial(storage, open_own_study(storage, name), number)
    if not trial.state.is_finished():
        raise StudyError(f"trial {number} of {name} has not ended; it resumes by itself as soon as a worker is free")
    return enqueue(storage, name, trial.params, retry_of=number)


def retry_failed(storage: FencedStorage, name: str) -> tuple[StudyInfo, list[Ticket], int]:
    """Add a trial for each failed one that was not retried yet; return how many these are.

    Raises `StudyError` where there are none.
    """
    info = open_own_study(storage, name)
    failed = [
        trial for trial in read_study(storage, info).trials if trial.outcome == "failed" and trial.ticket is not None
    ]

    def decide(tickets: Sequence[Ticket]) -> Changes:
        again = {ticket.retry_of for ticket in tickets}
        new = [_enqueued(info, trial.params, trial.number) for trial in failed if trial.number not in again]
        if not new:
            raise StudyError(f"{name} has no failed trial that was not retried already")
        return Changes(add=new)

    before = len(list_tickets(storage, info.ref))
    tickets = change_tickets(storage, info.ref, decide)
    return info, tickets, len(tickets) - before


def fail(storage: FencedStorage, name: str, number: int) -> None:
    """End a running or waiting trial as failed; whoever runs it drops it. Raises `StudyError` for an ended one."""
    info = open_own_study(storage, name)
    trial = _trial(storage, info, number)
    if trial.state.is_finished():
        raise StudyError(
            f"trial {number} of {name} is {trial.state.name.lower()} already; a finished trial cannot be changed"
        )
    try:
        storage.set_trial_user_attr(trial._trial_id, "reason", "failed by hand")
        storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    except UpdateFinishedTrialError as error:
        raise StudyError(
            f"trial {number} of {name} has just ended by itself; a finished trial cannot be changed"
        ) from error
    close_ended(storage, info.ref)


def check_idle(storage: FencedStorage, name: str) -> StudyInfo:
    """Open a study that nobody works on; raises `StudyError` where someone does."""
    info = open_study(storage, name)
    if at_work := leases(storage, info.ref):
        hosts = ", ".join(sorted({ticket.host or "?" for ticket in at_work}))
        raise StudyError(
            f"{len(at_work)} trials of {name} are running on {hosts}; save and stop them with: lmsearch stop {name}"
        )
    return info


def delete(storage: FencedStorage, name: str, folder: Path | None, artifacts: Artifacts | None = None) -> list[Path]:
    """Delete a study that nobody works on: trials, tickets, and its files in `folder`, and among the artifacts.

    The files go first, and trials and tickets in one transaction, so that whatever ends it, it can be done again.
    Returns what stays in the folders: all that lmsearch did not make for this study, such as models that were trained
    from its results. Raises `ArtifactsError` where an object store does not answer: nothing is deleted in the store.
    """
    info = check_idle(storage, name)
    places = [] if folder is None else [StudyFiles(folder)]
    if artifacts is not None:
        places.append(study_files(artifacts, name, info.ref.key, study_folder(name) if folder is None else folder))
        for result in RESULTS:
            artifacts.results(name, info.ref.key).remove(result)
    for place in places:
        _delete_files(storage, info, place)
    if folder is not None:
        _delete_results(info, folder)
    folders = list(dict.fromkeys(place.folder for place in places))
    for parent in folders:
        for draft in (path for inner in (parent, parent / CHECKPOINTS, parent / MODELS) for path in drafts(inner)):
            if draft.name.startswith(f".{info.ref.key[:SHORT]}-") or not _OF_A_STUDY.match(draft.name):
                _remove_draft(draft)
        for inner in (parent / CHECKPOINTS, parent / MODELS, parent / "results", parent / LOGS, parent):
            _remove_empty(inner)
    delete_study(storage, info.ref)
    return [path for parent in folders if parent.is_dir() for path in sorted(parent.iterdir()) if path.name != MARK]


def _delete_files(storage: FencedStorage, info: StudyInfo, files: StudyFiles) -> None:
    """Remove a study's checkpoints and weights, by their names, from a folder of ours and what stands behind it."""
    stem = info.ref.key[:SHORT]
    trials = storage.get_all_trials(info.ref.id, deepcopy=False)
    belonging = Belonging(storage, info, list_tickets(storage, info.ref), trials)
    checkpoints, weights = Checkpoints.of(files, ""), Weights.of(files)
    paths = checkpoints.of_study(info.ref.key) if is_ours(files.checkpoints) else []
    for path in dict.fromkeys([*paths, *checkpoints.shared_of_study(info.ref.key)]):
        if belonging.of_checkpoint(path) != OTHER:
            checkpoints.discard(path)
    for name in weights.shared_names(stem):
        if belonging.of_weights(files.models / name) != OTHER:
            weights.remove(files.models / name)
    if not is_ours(files.models):
        return
    for path in files.models.glob(f"{stem}-trial-*"):
        if AGAIN.fullmatch(path.name) and is_model(path):
            remove_tree(path)
        elif AGAIN.fullmatch(path.name.removesuffix(".training")) and not path.is_dir():
            path.unlink(missing_ok=True)
        elif WEIGHTS.fullmatch(path.name) and belonging.of_weights(path) != OTHER:
            remove_weights(path)


def _delete_results(info: StudyInfo, folder: Path) -> None:
    """Remove result files and logs, where they are this study's."""
    if not is_ours(folder) or (mark_of(folder) or {}).get(RESULTS_OF, info.ref.key) != info.ref.key:
        return
    for name in RESULTS:
        (folder / name).unlink(missing_ok=True)
    if is_model(folder / MODEL):
        remove_tree(folder / MODEL)
    logs = folder / LOGS
    for path in [] if logs.is_symlink() else logs.glob("*.log"):
        if LOG.fullmatch(path.name):
            path.unlink(missing_ok=True)
    (folder / LOCK).unlink(missing_ok=True)


def _remove_draft(path: Path) -> None:
    """Remove what an interrupted removal, or a writer that died, has left: nobody works on the study."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
