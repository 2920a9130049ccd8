"""All that is known of a study, read from the store into frozen plain data."""

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.engine import URL

from lmsearch.config import Value
from lmsearch.results.importance import importances
from lmsearch.results.looks import study_looks
from lmsearch.results.statistics import Comparison, Interval, compare, mean_interval
from lmsearch.store.opening import open_storage
from lmsearch.store.records import (
    SEED,
    StudyRecord,
    TrialRecord,
    confirmation_name,
    find_study,
    open_study,
    read_epochs,
    read_study,
    without_seed,
)
from lmsearch.store.storage import FencedStorage
from lmsearch.store.url import parse_url


@dataclass(frozen=True, kw_only=True)
class Leader:
    """One of a study's best configurations, trained once more on fresh seeds."""

    trial: TrialRecord  # the study's
    perplexities: dict[int, float]  # by seed, of those that ended well
    lost: dict[int, str]  # by seed, what became of the others
    interval: Interval | None  # of its mean, None before its second seed

    @property
    def mean(self) -> float:
        """Give the mean perplexity over its seeds."""
        return sum(self.perplexities.values()) / len(self.perplexities)


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """A study's leaders on fresh seeds, the best mean first; those that did not end well with a seed come last."""

    name: str  # of the study that holds its trials
    leaders: tuple[Leader, ...]
    total: int  # pairs of leader and seed
    done: int
    comparison: Comparison | None  # of the leaders that ended well, over the seeds that all of them have

    @property
    def winner(self) -> Leader | None:
        """Give the leader with the best mean once all pairs have ended; None where none ended well."""
        if self.done < self.total or not self.leaders or self.leaders[0].lost:
            return None
        return self.leaders[0]

    @property
    def verdict(self) -> str:
        """Give `winner`, or `tie` where the data says no more; `alone` of one leader, `open` before the end."""
        if self.winner is None:
            return "open"
        if self.comparison is None:
            return "alone" if len(self.leaders) == 1 else "tie"
        return "winner" if self.comparison.is_called else "tie"


@dataclass(frozen=True, kw_only=True)
class Results:
    """A study, what came of its confirmation, what mattered, and every look at the test split."""

    record: StudyRecord  # with the epochs of each trial
    confirmation: Confirmation | None = None
    importances: dict[str, float]  # the most important first; empty where too few trials are complete
    looks: tuple[dict[str, Any], ...] = ()

    @property
    def winner(self) -> TrialRecord | None:
        """Give the confirmed winner, else the best trial; None where none is complete."""
        confirmed = self.confirmation and self.confirmation.winner
        return confirmed.trial if confirmed else self.record.best

    @property
    def name(self) -> str:
        """Give the study's name."""
        return self.record.info.ref.name


def read(study: str, storage: str | URL | FencedStorage) -> Results:
    """Read a study by name; `storage` is a URL such as `sqlite:///runs/lmsearch.db`. Raises `StudyError`."""
    if isinstance(storage, str):
        storage = parse_url(storage)
    if isinstance(storage, URL):
        storage = open_storage(storage)
    return complete(storage, read_study(storage, open_study(storage, study), epochs=True))


def complete(storage: FencedStorage, record: StudyRecord) -> Results:
    """Add to a study's record what else is known of it."""
    return Results(
        record=record,
        confirmation=read_confirmation(storage, record),
        importances=importances(storage, record),
        looks=tuple(study_looks(storage, record.info.ref.id)),
    )


def with_epochs(storage: FencedStorage, results: Results) -> Results:
    """Add what each epoch gave to results that were read without."""
    epochs = read_epochs(storage, results.record.info.ref)
    trials = tuple(replace(trial, epochs=tuple(epochs.get(trial.number, ()))) for trial in results.record.trials)
    return replace(results, record=replace(results.record, trials=trials))


def read_confirmation(storage: FencedStorage, record: StudyRecord) -> Confirmation | None:
    """Read what came of a study's leaders on fresh seeds; None where nobody asked."""
    name = confirmation_name(record.info.ref.name)
    info = find_study(storage, name)
    return None if info is None else confirm(record, read_study(storage, info))


def confirm(record: StudyRecord, again: StudyRecord) -> Confirmation:
    """Say what a confirmation's trials tell of the study's leaders."""
    originals: dict[tuple[tuple[str, Value], ...], TrialRecord] = {}
    for trial in record.trials:
        if trial.outcome == "complete":
            originals.setdefault(without_seed(trial.params), trial)
    groups: dict[int, list[TrialRecord]] = {}
    for trial in again.trials:
        if (original := originals.get(without_seed(trial.params))) is not None and trial.ended is not None:
            groups.setdefault(original.number, []).append(trial)
    by_number = {trial.number: trial for trial in originals.values()}
    leaders = sorted(
        (_leader(by_number[number], trials) for number, trials in groups.items()),
        key=lambda leader: (bool(leader.lost), leader.mean if leader.perplexities else 0.0),
    )
    looks = max(1, len({ticket.batch for ticket in again.tickets}))  # each time that more was asked for
    whole = [leader for leader in leaders if not leader.lost]
    seeds = sorted(set.intersection(*(set(leader.perplexities) for leader in whole))) if whole else []
    return Confirmation(
        name=again.info.ref.name,
        leaders=tuple(leaders),
        total=again.total,
        done=again.done,
        comparison=compare([[one.perplexities[seed] for seed in seeds] for one in whole], looks=looks),
    )


def _leader(trial: TrialRecord, again: list[TrialRecord]) -> Leader:
    well = {int(one.params[SEED]): one.perplexity for one in again if one.outcome == "complete"}
    lost = {int(one.params[SEED]): one.outcome for one in again if int(one.params[SEED]) not in well}
    perplexities = dict(sorted(well.items()))
    return Leader(
        trial=trial, perplexities=perplexities, lost=lost, interval=mean_interval(list(perplexities.values()))
    )
