"""Studies created in the store, and read from it as frozen plain data."""

import json
import math
import secrets
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.exceptions import DuplicatedStudyError
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from lmsearch.config import Value
from lmsearch.errors import StudyError, nearest
from lmsearch.spec import StudySpec, parse_study
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import DONE, EPOCH, FROM, OPEN, EpochRow, StudyRef, Ticket
from lmsearch.store.tickets import list_tickets

_ATTRIBUTE = "lmsearch"  # a user attribute: optuna-dashboard's rename copies no others
_METRIC_NAMES = "study:metric_names"

_CONFIRMATION = ".confirm"  # ends the name of a confirmation

SEED = "train.seed"  # what is open in a confirmation beside what is open in its study

OUTCOMES = ("complete", "pruned", "diverged", "infeasible", "failed", "running", "waiting")


@dataclass(frozen=True, kw_only=True)
class StudyInfo:
    """What the store holds of a study beside its trials: enough for a worker on any host to join."""

    ref: StudyRef
    spec: StudySpec
    folder: str  # where the study file's relative paths begin
    corpus: str  # what the corpus was when the study began, in words
    fingerprint: str
    vocabulary_size: int
    home_id: int  # the study's id when this was written; another one than `ref.id` in a copy

    @property
    def confirms(self) -> str:
        """Give the name of the study whose leaders this one trains once more, "" for any other study."""
        name = self.ref.name.removesuffix(_CONFIRMATION)
        return name if name != self.ref.name and SEED in self.spec.open else ""

    def is_of(self, study: "StudyInfo") -> bool:
        """Tell whether this confirmation is of that study, and not of an earlier one of the same name."""
        own, theirs = (
            {path: value for path, value in {**spec.fixed, **spec.open}.items() if path not in (SEED, "data.corpus")}
            for spec in (self.spec, study.spec)
        )
        return self.fingerprint == study.fingerprint and own == theirs

    def require_search(self) -> None:
        """Raise `StudyError` for a confirmation: it has no best of its own, and its numbers are told of its study."""
        if self.confirms:
            raise StudyError(
                f"{self.ref.name} trains the leaders of {self.confirms} on fresh seeds and is not a search; ask for "
                f"{self.confirms}, which tells both: lmsearch report {shlex.quote(self.confirms)}"
            )


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial. Perplexities are of the validation split."""

    number: int
    outcome: str  # one of OUTCOMES
    params: dict[str, Value]
    curve: dict[int, float]  # perplexity by epoch
    origin: str  # manual, grid, search, enqueued, or "" for a trial of another program
    sampler: str
    reason: str
    traceback: str
    sample: str  # what its model wrote at its end, "" where it has none
    parameters: int | None
    model: str  # host and folder of its best epoch's weights, "" where they are gone
    origin_trial: str  # STUDY/number of the trial that it was taken over from, or that it tries again
    started: datetime | None
    ended: datetime | None
    ticket: Ticket | None
    epochs: tuple[EpochRow, ...] = ()

    @property
    def perplexity(self) -> float:
        """Give the lowest perplexity over the epochs so far, infinite before the first."""
        return min(self.curve.values(), default=math.inf)

    @property
    def best_epoch(self) -> int | None:
        """Give the epoch of the lowest perplexity, the first of equals."""
        return min(sorted(self.curve), key=lambda epoch: self.curve[epoch], default=None)

    @property
    def seconds(self) -> float:
        """Give the seconds of all its epochs, 0 where they were not read."""
        return sum(row.seconds for row in self.epochs)

    @property
    def by(self) -> str:
        """Name what proposed it: a person, the grid, or a sampler."""
        return self.sampler if self.origin == "search" else self.origin


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """A study with its trials and tickets at one moment."""

    info: StudyInfo
    trials: tuple[TrialRecord, ...]
    tickets: tuple[Ticket, ...]

    @property
    def best(self) -> TrialRecord | None:
        """Give the complete trial with the lowest perplexity, the first of equals; None for a confirmation.

        A trial that another program added without the searched values cannot be it.
        """
        if self.info.confirms:
            return None
        searched = self.info.spec.open.keys()
        complete = [trial for trial in self.trials if trial.outcome == "complete" and searched <= trial.params.keys()]
        return min(complete, key=lambda trial: trial.perplexity, default=None)

    @property
    def total(self) -> int:
        """Count the trials that the study owes altogether."""
        return len(self.tickets)

    @property
    def done(self) -> int:
        """Count the tickets that are answered."""
        return sum(ticket.state == DONE for ticket in self.tickets)

    def count(self, outcome: str) -> int:
        """Count the trials with an outcome."""
        return sum(trial.outcome == outcome for trial in self.trials)


def confirmation_name(study: str) -> str:
    """Give the name of the study that runs another one's leaders once more, on fresh seeds."""
    return study + _CONFIRMATION


def without_seed(params: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
    """Give a configuration apart from its seed, as a key."""
    return tuple(sorted((path, value) for path, value in params.items() if path != SEED))


def configurations(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Give the best complete trial of each configuration, seeds apart: the lowest perplexity first."""
    complete = sorted((t for t in trials if t.outcome == "complete"), key=lambda t: (t.perplexity, t.number))
    found: dict[tuple[tuple[str, Value], ...], TrialRecord] = {}
    for trial in complete:
        found.setdefault(without_seed(trial.params), trial)
    return list(found.values())


def lmsearch_studies(storage: FencedStorage) -> list[str]:
    """List the names of the studies that lmsearch made."""
    return [study.study_name for study in storage.get_all_studies() if _stored(study)]


def _stored(study: FrozenStudy) -> dict[str, Any] | None:
    """Give what lmsearch keeps of a study; its first version kept it as a system attribute."""
    stored: dict[str, Any] | None = study.user_attrs.get(_ATTRIBUTE) or study.system_attrs.get(_ATTRIBUTE)
    return stored


def study_keys(storage: FencedStorage) -> set[str]:
    """Give the keys of all studies that lmsearch made; a copy has that of its original until it is adopted."""
    return {stored["key"] for study in storage.get_all_studies() if (stored := _stored(study))}


def find_study(storage: FencedStorage, name: str) -> StudyInfo | None:
    """Open a study; None where there is none of that name. Raises `StudyError` for another program's."""
    found = [study for study in storage.get_all_studies() if study.study_name == name]
    if not found:
        return None
    study = found[0]
    stored: dict[str, Any] | None = _stored(study)
    if stored is None:
        if storage.get_all_trials(study._study_id):
            raise StudyError(f"the study {name!r} was not made by lmsearch; give this search another --name")
        if study.directions != [StudyDirection.MINIMIZE]:
            raise StudyError(f"the study {name!r} does not minimise one value; give this search another --name")
        return None  # its creation was cut short: it has nothing yet
    return StudyInfo(
        ref=StudyRef(name=name, id=study._study_id, key=stored["key"]),
        spec=parse_study(stored["text"], Path(stored["folder"]), f"the stored file of {name}"),
        folder=stored["folder"],
        corpus=stored["corpus"],
        fingerprint=stored["fingerprint"],
        vocabulary_size=stored["vocabulary_size"],
        home_id=stored["study_id"],
    )


def open_study(storage: FencedStorage, name: str) -> StudyInfo:
    """Open a study; raises `StudyError` where there is none of that name, with the nearest."""
    info = find_study(storage, name)
    if info is None:
        known = lmsearch_studies(storage)
        hint = nearest(name, known) if known else "; the store has none yet"
        raise StudyError(f"there is no study {name!r} in the store{hint}")
    return info


def create_study(
    storage: FencedStorage,
    name: str,
    spec: StudySpec,
    folder: str,
    corpus: str,
    fingerprint: str,
    vocabulary_size: int,
) -> StudyInfo:
    """Create a study, or finish a creation that was cut short. The caller holds the creation lock."""
    try:
        study_id = storage.create_new_study([StudyDirection.MINIMIZE], name)
    except DuplicatedStudyError:
        study_id = storage.get_study_id_from_name(name)
    ref = StudyRef(name=name, id=study_id, key=secrets.token_hex(16))
    info = StudyInfo(
        ref=ref,
        spec=spec,
        folder=folder,
        corpus=corpus,
        fingerprint=fingerprint,
        vocabulary_size=vocabulary_size,
        home_id=study_id,
    )
    store_info(storage, info)
    return info


def store_info(storage: FencedStorage, info: StudyInfo) -> None:
    """Write what the store holds of a study: its file's text, and that text parsed for other programs."""
    stored = {
        "key": info.ref.key,
        "study_id": info.ref.id,
        "text": info.spec.text,
        "parsed": tomllib.loads(info.spec.text),
        "folder": info.folder,
        "corpus": info.corpus,
        "fingerprint": info.fingerprint,
        "vocabulary_size": info.vocabulary_size,
    }
    storage.set_study_system_attr(info.ref.id, _METRIC_NAMES, ["validation perplexity"])
    storage.set_study_user_attr(info.ref.id, _ATTRIBUTE, json.loads(json.dumps(stored, default=str)))


def optuna_study(storage: FencedStorage, name: str) -> optuna.Study:
    """Open the study as Optuna's, over a cache that reads ended trials once."""
    return optuna.load_study(study_name=name, storage=storage)


def read_study(
    storage: FencedStorage, info: StudyInfo, study: optuna.Study | None = None, epochs: bool = False
) -> StudyRecord:
    """Read a study's trials and tickets; `epochs` adds what each epoch gave. `study` keeps a cache."""
    study = study or optuna_study(storage, info.ref.name)
    tickets = list_tickets(storage, info.ref)
    by_trial = {ticket.trial_id: ticket for ticket in tickets if ticket.trial_id is not None}
    rows = read_epochs(storage, info.ref) if epochs else {}
    trials = tuple(
        trial_record(frozen, by_trial.get(frozen._trial_id), rows.get(frozen.number, ()))
        for frozen in study.get_trials(deepcopy=False)
    )
    return StudyRecord(info=info, trials=trials, tickets=tuple(tickets))


def trial_record(trial: FrozenTrial, ticket: Ticket | None, epochs: Sequence[EpochRow] = ()) -> TrialRecord:
    """Give Optuna's trial as plain data."""
    attrs = trial.user_attrs
    return TrialRecord(
        number=trial.number,
        outcome=_outcome(trial, ticket),
        params=dict(trial.params),
        curve=dict(sorted(trial.intermediate_values.items())),
        origin=attrs.get("origin", ""),
        sampler=attrs.get("sampler", ""),
        reason=attrs.get("reason", ""),
        traceback=attrs.get("traceback", ""),
        sample=attrs.get("sample", ""),
        parameters=attrs.get("parameters"),
        model=attrs.get("model", ""),
        origin_trial=attrs.get(FROM, ""),
        started=trial.datetime_start,
        ended=trial.datetime_complete,
        ticket=ticket,
        epochs=tuple(epochs),
    )


def _outcome(trial: FrozenTrial, ticket: Ticket | None) -> str:
    match trial.state:
        case TrialState.COMPLETE:
            return "complete"
        case TrialState.FAIL:
            return "failed"
        case TrialState.PRUNED:
            reason = trial.user_attrs.get("reason", "")
            return reason if reason in ("diverged", "infeasible") else "pruned"
        case TrialState.RUNNING:
            return "waiting" if ticket is not None and ticket.state == OPEN else "running"
        case _:
            return "waiting"


def read_epochs(storage: FencedStorage, study: StudyRef) -> dict[int, list[EpochRow]]:
    """Give the epochs of a study's trials, by trial number."""

    def call(again: bool) -> dict[int, list[EpochRow]]:
        query = (
            sa.select(*EPOCH.c)
            .where(EPOCH.c.study_key == study.key, EPOCH.c.study_id == study.id)
            .order_by(EPOCH.c.trial_number, EPOCH.c.epoch)
        )
        found: dict[int, list[EpochRow]] = {}
        with storage.transaction() as session:
            for row in session.execute(query).mappings():
                found.setdefault(row["trial_number"], []).append(
                    EpochRow(
                        epoch=row["epoch"],
                        train_loss=math.nan if row["train_loss"] is None else row["train_loss"],
                        valid_loss=math.nan if row["valid_loss"] is None else row["valid_loss"],
                        seconds=row["seconds"],
                        tokens=row["tokens"],
                        learning_rate=row["learning_rate"],
                    )
                )
        return found

    return storage.persist(call)
