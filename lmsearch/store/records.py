"""Studies created in the store, and read from it as frozen plain data."""

import functools
import json
import math
import re
import secrets
import shlex
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from sqlalchemy.orm import Session

from lmsearch.config import Value
from lmsearch.errors import ConfigError, LmsearchError, StudyError
from lmsearch.folders import KEY
from lmsearch.formats import FIRST, NewerFormatError, check_stamp, known_version, stamp
from lmsearch.spelling import listed, nearest
from lmsearch.store.distributions import open_value
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import EpochRow, StudyRef, Ticket
from lmsearch.study.reading import parse_study
from lmsearch.study.spec import StudySettings, StudySpec
from lmsearch.version import __version__

_ATTRIBUTE = "lmsearch"  # a user attribute: optuna-dashboard's rename copies no others
_METRIC_NAMES = "study:metric_names"
_METRICS = ["validation perplexity"]

_CONFIRMATION = ".confirm"  # ends the name of a confirmation

SEED = "train.seed"  # what is open in a confirmation beside what is open in its study

OUTCOMES = ("complete", "pruned", "diverged", "infeasible", "failed", "running", "paused", "waiting")


@dataclass(frozen=True, kw_only=True)
class Source:
    """The study whose ended trials another one takes over."""

    name: str
    key: str  # "" before the study was first found
    taken: bool  # all that there was is taken over; until then each `lmsearch run` continues it


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
    defaults: str = __version__  # the lmsearch version whose defaults hold for settings that the file does not give
    source: Source | None = None
    remarks: tuple[str, ...] = ()  # what was to be said of the text when the study began
    confirms: str = ""  # the study whose leaders this one trains again
    shuffles: bool | None = None  # whether articles are, where the file does not say; None: before lmsearch 0.3.0
    train_tokens: int | None = None  # of the train split; None where it was not kept, as before lmsearch 0.4.0
    is_plain: bool = False  # a study of plain Optuna, to be looked at alone

    def is_of(self, study: "StudyInfo") -> bool:
        """Whether this confirmation is of that study, and not of an earlier one of the same name."""
        own, theirs = (
            {path: value for path, value in {**spec.fixed, **spec.open}.items() if path not in (SEED, "data.corpus")}
            for spec in (self.spec, study.spec)
        )
        return self.fingerprint == study.fingerprint and own == theirs

    def require_search(self) -> None:
        """Raise `StudyError` for a confirmation: it has no best of its own, its numbers are reported with its study."""
        if self.confirms:
            raise StudyError(
                f"{self.ref.name} trains the leaders of {self.confirms} on fresh seeds and is not a search; use "
                f"{self.confirms}, which covers both: lmsearch report {shlex.quote(self.confirms)}"
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
    known_perplexity: float | None = None  # of the words that are not <unk>, in the best epoch
    id: int = 0  # Optuna's

    @functools.cached_property
    def perplexity(self) -> float:
        """Return the lowest perplexity over the epochs so far, infinite before the first."""
        return min(self.curve.values(), default=math.inf)

    @property
    def is_taken_over(self) -> bool:
        """Whether another study trained it; one that tries a trial again was trained here."""
        return bool(self.origin_trial) and self.ticket is None

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.outcome in ("running", "paused", "waiting")

    def with_epochs(self, rows: Sequence[EpochRow]) -> "TrialRecord":
        """Return the same trial with its epochs' results."""
        return replace(self, epochs=tuple(rows)) if rows else self

    @property
    def best_epoch(self) -> int | None:
        """Return the epoch of the lowest perplexity, the first of equals."""
        return min(sorted(self.curve), key=lambda epoch: self.curve[epoch], default=None)

    @property
    def seconds(self) -> float:
        """Return the seconds of all its epochs, 0 where they were not read."""
        return sum(row.seconds for row in self.epochs)

    @property
    def by(self) -> str:
        """Return what proposed it: a person, the grid, or a sampler."""
        return self.sampler if self.origin == "search" else self.origin


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """A study with its trials and tickets at one moment."""

    info: StudyInfo
    trials: tuple[TrialRecord, ...]
    tickets: tuple[Ticket, ...]

    @functools.cached_property
    def best(self) -> TrialRecord | None:
        """Return the complete trial with the lowest perplexity, the first of equals; None for a confirmation.

        A trial that another program added without the searched values cannot be it.
        """
        if self.info.confirms:
            return None
        searched = self.info.spec.open.keys()
        complete = [trial for trial in self.trials if trial.outcome == "complete" and searched <= trial.params.keys()]
        return min(complete, key=lambda trial: trial.perplexity, default=None)

    @property
    def total(self) -> int:
        """Return the number of trials in the budget of the study."""
        return len(self.tickets)

    @functools.cached_property
    def done(self) -> int:
        """Return the number of tickets that are answered."""
        return sum(ticket.is_done for ticket in self.tickets)

    def count(self, outcome: str) -> int:
        """Return the number of trials with an outcome."""
        return self._counts[outcome]

    @functools.cached_property
    def _counts(self) -> Counter[str]:
        return Counter(trial.outcome for trial in self.trials)


def confirmation_name(study: str) -> str:
    """Return the name of the study that retrains another one's leaders on fresh seeds."""
    return study + _CONFIRMATION


def without_seed(params: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
    """Return a configuration apart from its seed, as a key."""
    return tuple(sorted((path, value) for path, value in params.items() if path != SEED))


def configurations(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the best complete trial of each configuration, seeds apart: the lowest perplexity first."""
    complete = sorted((t for t in trials if t.outcome == "complete"), key=lambda t: (t.perplexity, t.number))
    found: dict[tuple[tuple[str, Value], ...], TrialRecord] = {}
    for trial in complete:
        found.setdefault(without_seed(trial.params), trial)
    return list(found.values())


def lmsearch_studies(storage: FencedStorage) -> list[str]:
    """List the names of the studies that lmsearch made; not each of them need be readable."""
    return [study.study_name for study in storage.get_all_studies() if _stored(study) is not None]


def readable_studies(storage: FencedStorage) -> tuple[list[StudyInfo], dict[str, str]]:
    """Return the studies that lmsearch made, and of those that cannot be read why, by name."""
    found: list[StudyInfo] = []
    unreadable: dict[str, str] = {}
    for study in storage.get_all_studies():
        try:
            info = _read(storage, study)
        except LmsearchError as error:
            if _stored(study) is not None:
                unreadable[study.study_name] = str(error)
            continue
        if info is not None:
            found.append(info)
    return found, unreadable


def plain_studies(storage: FencedStorage) -> list[str]:
    """List the studies that another program made with Optuna to minimise one value."""
    return [
        study.study_name
        for study in storage.get_all_studies()
        if _stored(study) is None
        and study.directions == [StudyDirection.MINIMIZE]
        and storage.get_all_trials(study._study_id, deepcopy=False)
    ]


def _stored(study: FrozenStudy) -> object:
    """Return what lmsearch keeps of a study, None for another program's; early commits kept a system attribute."""
    return study.user_attrs.get(_ATTRIBUTE) or study.system_attrs.get(_ATTRIBUTE)


def only_study(storage: FencedStorage) -> str:
    """Return the name of the only study in a store, confirmations apart.

    Raises `StudyError` where there is none, and with their names where there are more.
    """
    infos, unreadable = readable_studies(storage)
    names = [info.ref.name for info in infos if not info.confirms] + list(unreadable) + plain_studies(storage)
    if not names:
        raise StudyError("the store has no study yet; start one with: lmsearch run")
    if len(names) > 1:
        raise StudyError(f"name one of the studies in the store: {listed(names, 12)}")
    return names[0]


def study_keys(storage: FencedStorage) -> set[str]:
    """Return the keys of all studies that lmsearch made; a copy has that of its original until it is adopted.

    Raises `StudyError` where one cannot be read: what belongs to it is then not known.
    """
    keys = set()
    for study in storage.get_all_studies():
        stored = _stored(study)
        if stored is not None:
            keys.add(str(_field(stored, "key", study.study_name)))
    return keys


def find_study(storage: FencedStorage, name: str) -> StudyInfo | None:
    """Open a study; None where there is none of that name.

    Raises `StudyError` for another program's, and for one that cannot be read.
    """
    for study in storage.get_all_studies():
        if study.study_name == name:
            return _read(storage, study)
    return None


def _read(storage: FencedStorage, study: FrozenStudy) -> StudyInfo | None:
    name, stored = study.study_name, _stored(study)
    if stored is None:
        if storage.get_all_trials(study._study_id):
            raise StudyError(
                f"the study {name!r} was not made by lmsearch: `lmsearch status`, `trials` and `report` show it, and a "
                "search needs another --name"
            )
        if study.directions != [StudyDirection.MINIMIZE]:
            raise StudyError(f"the study {name!r} does not minimise one value; give this search another --name")
        return None  # its creation was cut short: it has nothing yet
    if not isinstance(stored, dict):
        raise StudyError(f"what the store keeps of the study {name!r} cannot be read: it is no object")
    try:
        number = check_stamp("study", f"the study {name!r}", stored)
    except NewerFormatError:
        raise
    except LmsearchError as error:
        raise StudyError(str(error)) from error
    defaults = FIRST if number == 1 else known_version(stored.get("defaults"))
    folder = _field(stored, "folder", name)
    text = _field(stored, "text", name)
    try:
        spec = parse_study(text, Path(folder), f"the stored file of {name}", defaults)
    except ConfigError as error:
        raise StudyError(f"what the store keeps of the study {name!r} cannot be read: {error}") from error
    return StudyInfo(
        ref=StudyRef(name=name, id=study._study_id, key=_field(stored, "key", name)),
        spec=spec,
        folder=folder,
        corpus=_field(stored, "corpus", name),
        fingerprint=_field(stored, "fingerprint", name),
        vocabulary_size=_field(stored, "vocabulary_size", name),
        home_id=_field(stored, "study_id", name) if "study_id" in stored else study._study_id,
        defaults=defaults,
        source=_source(stored, name),
        remarks=_remarks(stored),
        confirms=_confirms(stored, name, spec),
        shuffles=shuffles if isinstance(shuffles := stored.get("shuffles"), bool) else None,
        train_tokens=tokens if type(tokens := stored.get("train_tokens")) is int and tokens > 0 else None,
    )


_FIELDS: dict[str, tuple[type, Callable[[Any], object]]] = {
    "key": (str, KEY.fullmatch),
    "text": (str, bool),
    "folder": (str, lambda text: "\0" not in text),
    "corpus": (str, lambda text: True),
    "fingerprint": (str, re.compile(r"[0-9a-f]{1,64}").fullmatch),
    "vocabulary_size": (int, lambda size: 0 < size < 1 << 31),
    "study_id": (int, lambda number: True),
}
"""What the store keeps of a study: the type of each field, and what it must be. It is checked whenever it is read."""


def _field(stored: object, field: str, name: str) -> Any:
    value = stored.get(field) if isinstance(stored, dict) else None
    wanted, fits = _FIELDS[field]
    if not isinstance(value, wanted) or isinstance(value, bool) or not fits(value):
        raise StudyError(
            f"what the store keeps of the study {name!r} cannot be read: its {field} is {str(value)[:60]!r}"
        )
    return value


def _source(stored: Mapping[str, Any], name: str) -> Source | None:
    kept = stored.get("source")
    if kept is None:
        return None
    if not isinstance(kept, dict) or not isinstance(kept.get("name"), str):
        raise StudyError(f"what the store keeps of the study {name!r} cannot be read: its source is {str(kept)[:60]!r}")
    key = kept.get("key")
    key = key if isinstance(key, str) and KEY.fullmatch(key) else ""
    return Source(name=kept["name"], key=key, taken=kept.get("taken") is True)


def _confirms(stored: Mapping[str, Any], name: str, spec: StudySpec) -> str:
    """Return the study that a confirmation is of; before lmsearch 0.3.0 its name and its open seed said so."""
    kept = stored.get("confirms")
    if isinstance(kept, str):
        return kept
    of = name.removesuffix(_CONFIRMATION)
    return of if of != name and SEED in spec.open else ""


def _remarks(stored: Mapping[str, Any]) -> tuple[str, ...]:
    kept = stored.get("remarks")
    return tuple(remark for remark in kept if isinstance(remark, str)) if isinstance(kept, list) else ()


def open_study(storage: FencedStorage, name: str) -> StudyInfo:
    """Open a study; raises `StudyError` where there is none of that name, with the nearest."""
    info = find_study(storage, name)
    if info is None:
        known = lmsearch_studies(storage)
        hint = nearest(name, known) if known else "; the store has none yet"
        raise StudyError(f"there is no study {name!r} in the store{hint}")
    return info


def open_to_look(storage: FencedStorage, name: str) -> StudyInfo:
    """Open a study to look at its trials: one of ours, or one that plain Optuna made to minimise one value.

    Raises `StudyError`.
    """
    for study in storage.get_all_studies():
        if study.study_name == name and _stored(study) is None and storage.get_all_trials(study._study_id):
            return _plain_info(storage, study)
    return open_study(storage, name)


def _plain_info(storage: FencedStorage, study: FrozenStudy) -> StudyInfo:
    if study.directions != [StudyDirection.MINIMIZE]:
        raise StudyError(f"the study {study.study_name!r} of another program does not minimise one value")
    spaces = {
        path: space
        for trial in storage.get_all_trials(study._study_id, deepcopy=False)
        for path, space in trial.distributions.items()
    }
    opened = {path: value for path, space in spaces.items() if (value := open_value(space)) is not None}
    spec = StudySpec(text="", settings=StudySettings(), fixed={}, open=opened)
    return StudyInfo(
        ref=StudyRef(name=study.study_name, id=study._study_id, key=""),
        spec=spec,
        folder="",
        corpus="",
        fingerprint="",
        vocabulary_size=1,
        home_id=study._study_id,
        is_plain=True,
    )


def create_study(
    storage: FencedStorage,
    name: str,
    spec: StudySpec,
    folder: str,
    corpus: str,
    fingerprint: str,
    vocabulary_size: int,
    source: Source | None = None,
    defaults: str = __version__,
    remarks: tuple[str, ...] = (),
    confirms: str = "",
    shuffles: bool | None = None,
    train_tokens: int | None = None,
) -> StudyInfo:
    """Create a study, or finish a creation that was cut short. The caller holds the creation lock.

    A study and what lmsearch keeps of it are written in one transaction.
    """
    key = secrets.token_hex(16)

    def work(session: Session) -> StudyInfo:
        study: Any = models.StudyModel.find_by_name(name, session)
        if study is None:
            direction = models.StudyDirectionModel(direction=StudyDirection.MINIMIZE, objective=0)
            study = models.StudyModel(study_name=name, directions=[direction])
            session.add(study)
            session.flush()
        ref = StudyRef(name=name, id=study.study_id, key=key)
        info = StudyInfo(
            ref=ref,
            spec=spec,
            folder=folder,
            corpus=corpus,
            fingerprint=fingerprint,
            vocabulary_size=vocabulary_size,
            home_id=ref.id,
            defaults=defaults,
            source=source,
            remarks=remarks,
            confirms=confirms,
            shuffles=shuffles,
            train_tokens=train_tokens,
        )
        for model, attribute, value in (
            (models.StudySystemAttributeModel, _METRIC_NAMES, _METRICS),
            (models.StudyUserAttributeModel, _ATTRIBUTE, _kept(info)),
        ):
            session.execute(sa.delete(model).where(model.study_id == ref.id, model.key == attribute))
            session.add(model(study_id=ref.id, key=attribute, value_json=json.dumps(value)))
        return info

    return storage.do(work)


def store_info(storage: FencedStorage, info: StudyInfo) -> None:
    """Write what the store holds of a study: its file's text, and that text parsed for other programs."""
    storage.set_study_system_attr(info.ref.id, _METRIC_NAMES, _METRICS)
    storage.set_study_user_attr(info.ref.id, _ATTRIBUTE, _kept(info))


def _kept(info: StudyInfo) -> dict[str, Any]:
    stored = stamp("study") | {
        "defaults": info.defaults,
        "source": None if info.source is None else asdict(info.source),
        "key": info.ref.key,
        "study_id": info.ref.id,
        "text": info.spec.text,
        "parsed": tomllib.loads(info.spec.text),
        "folder": info.folder,
        "corpus": info.corpus,
        "fingerprint": info.fingerprint,
        "vocabulary_size": info.vocabulary_size,
        "remarks": list(info.remarks),
        "confirms": info.confirms,
        "shuffles": info.shuffles,
        "train_tokens": info.train_tokens,
    }
    found: dict[str, Any] = json.loads(json.dumps(stored, default=str))
    return found


def optuna_study(storage: FencedStorage, name: str) -> optuna.Study:
    """Open the study as Optuna's, over a cache that reads ended trials once.

    Its `ask` takes no trial that another program enqueued, since tickets say what is to be run, and so need not read
    all running trials to look for one.
    """
    study = optuna.load_study(study_name=name, storage=storage)
    study._pop_waiting_trial_id = lambda: None  # type: ignore[method-assign]
    return study
