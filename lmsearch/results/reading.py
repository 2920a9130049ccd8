"""All that is known of a study, read from the store into frozen plain data."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import Any

from sqlalchemy.engine import URL

from lmsearch.results.importance import importances
from lmsearch.results.looks import study_looks
from lmsearch.results.statistics import Comparison, Interval, compare, mean_interval
from lmsearch.store.opening import open_storage
from lmsearch.store.records import (
    SEED,
    StudyRecord,
    TrialRecord,
    configurations,
    confirmation_name,
    find_study,
    open_study,
    without_seed,
)
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import DONE, Ticket
from lmsearch.store.trials import read_epochs, read_study
from lmsearch.store.url import parse_url


@dataclass(frozen=True, kw_only=True)
class Leader:
    """One of a study's best configurations, trained again on fresh seeds."""

    trial: TrialRecord  # the study's
    perplexities: dict[int, float]  # by seed, of those that ended well
    lost: dict[int, str]  # by seed, what became of the others
    interval: Interval | None  # of its mean, None before its second seed

    @property
    def mean(self) -> float:
        """Return the mean perplexity over its seeds, NaN where none ended well."""
        return mean(self.perplexities.values()) if self.perplexities else math.nan


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """A study's leaders on fresh seeds, as far as what was asked for at once has ended altogether.

    First come the leaders that are compared, the best mean first, then those with fewer seeds, then those that did not
    end well with a seed.
    """

    name: str  # of the study that holds its trials
    leaders: tuple[Leader, ...]
    compared: int  # leaders
    seeds: int  # over which they are compared
    top: int  # leaders that were asked for
    asked: int  # seeds that were asked for, of the leader with the most
    total: int  # pairs of leader and seed
    done: int
    is_answered: bool  # all that was asked for at first has ended
    comparison: Comparison | None  # of the leaders that are compared

    @property
    def winner(self) -> Leader | None:
        """Return the leader with the best mean once all that was asked for has ended; None where none ended well."""
        return self.leaders[0] if self.is_answered and self.compared else None

    @property
    def rivals(self) -> tuple[Leader, ...]:
        """List leaders with fewer seeds than are compared that are better than the winner over those."""
        if self.winner is None:
            return ()
        best = self.winner.perplexities
        return tuple(
            leader
            for leader in self.leaders[self.compared :]
            if not leader.lost and leader.mean < mean(best[seed] for seed in leader.perplexities)
        )

    @property
    def verdict(self) -> str:
        """Return `winner` or `tie`; `alone` where only one leader finished with its seeds.

        `open` before all that was asked for at first has ended, `none` where no leader ended well.
        """
        if not self.is_answered:
            return "open"
        if not self.compared:
            return "none"
        if self.compared == 1:
            return "alone"
        return "winner" if self.comparison is not None and self.comparison.is_called and not self.rivals else "tie"


@dataclass(frozen=True, kw_only=True)
class Results:
    """A study, the result of its confirmation, what mattered, and every test evaluation."""

    record: StudyRecord  # with the epochs of each trial
    confirmation: Confirmation | None = None
    importances: dict[str, float]  # the most important first; empty where too few trials are complete
    looks: tuple[dict[str, Any], ...] = ()
    figures: dict[str, Any] = field(default_factory=dict, init=False, compare=False, repr=False)  # made so far

    @property
    def winner(self) -> TrialRecord | None:
        """Return the confirmed winner, else the best trial; None where none is complete."""
        confirmed = self.confirmation and self.confirmation.winner
        return confirmed.trial if confirmed else self.record.best

    @property
    def name(self) -> str:
        """Return the study's name."""
        return self.record.info.ref.name


def read_best(study: str, storage: FencedStorage) -> Results:
    """Read a study's best trial, without its epochs and importances. Raises `StudyError`."""
    record = read_study(storage, open_study(storage, study))
    return Results(record=record, confirmation=read_confirmation(storage, record), importances={})


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
        importances=importances(record),
        looks=tuple(study_looks(storage, record.info.ref.id)),
    )


def with_epochs(storage: FencedStorage, results: Results) -> Results:
    """Add what each epoch gave to results that were read without."""
    epochs = read_epochs(storage, results.record.info.ref)
    trials = tuple(replace(trial, epochs=tuple(epochs.get(trial.number, ()))) for trial in results.record.trials)
    return replace(results, record=replace(results.record, trials=trials))


def read_confirmation(storage: FencedStorage, record: StudyRecord) -> Confirmation | None:
    """Read what came of a study's leaders on fresh seeds; None where nobody asked."""
    info = find_study(storage, confirmation_name(record.info.ref.name))
    return None if info is None or not info.is_of(record.info) else confirm(record, read_study(storage, info))


def confirm(record: StudyRecord, again: StudyRecord) -> Confirmation:
    """Gather a confirmation's results by leader.

    What was asked for last does not count before it has ended altogether, unless nothing was asked for before. Leaders
    are compared over the seeds that at least two of them have in common, as many as there are.
    """
    answered = _answered(again.tickets)
    originals = {without_seed(trial.params): trial for trial in configurations(record.trials)}
    groups: dict[int, list[TrialRecord]] = {}
    for trial in again.trials:
        original = originals.get(without_seed(trial.params))
        batch = trial.ticket.batch if trial.ticket else ""
        if original is not None and trial.ended is not None and (batch in answered or not answered):
            groups.setdefault(original.number, []).append(trial)
    by_number = {trial.number: trial for trial in originals.values()}
    leaders = [_leader(by_number[number], trials) for number, trials in groups.items()]
    well = [leader for leader in leaders if not leader.lost]
    counts = sorted((len(leader.perplexities) for leader in well), reverse=True)
    least = counts[min(1, len(counts) - 1)] if counts else 0
    compared = [leader for leader in well if len(leader.perplexities) >= least]
    seeds = sorted(set.intersection(*(set(leader.perplexities) for leader in compared))) if compared else []
    table = [[leader.perplexities[seed] for seed in seeds] for leader in compared]
    order = sorted(range(len(compared)), key=lambda row: mean(table[row]) if seeds else 0.0)
    rest = [leader for leader in leaders if leader not in compared]
    owed = Counter(without_seed(ticket.fixed) for ticket in again.tickets)
    return Confirmation(
        name=again.info.ref.name,
        leaders=(*(compared[row] for row in order), *sorted(rest, key=lambda one: (bool(one.lost), one.trial.number))),
        compared=len(compared),
        seeds=len(seeds),
        top=len(owed),
        asked=max(owed.values(), default=0),
        total=again.total,
        done=again.done,
        is_answered=bool(answered),
        comparison=compare([table[row] for row in order], looks=len(answered)) if answered else None,
    )


def _answered(tickets: Sequence[Ticket]) -> set[str]:
    """Return the batches that have ended altogether, up to the first that has not."""
    batches: dict[str, bool] = {}
    for ticket in sorted(tickets, key=lambda one: one.number):
        batches[ticket.batch] = batches.get(ticket.batch, True) and ticket.state == DONE
    return set(itertools.takewhile(lambda batch: batches[batch], batches))


def _leader(trial: TrialRecord, again: list[TrialRecord]) -> Leader:
    well = {int(one.params[SEED]): one.perplexity for one in again if one.outcome == "complete"}
    lost = {int(one.params[SEED]): one.outcome for one in again if int(one.params[SEED]) not in well}
    perplexities = dict(sorted(well.items()))
    return Leader(
        trial=trial, perplexities=perplexities, lost=lost, interval=mean_interval(list(perplexities.values()))
    )
