"""Is the winner real: a study's leaders on fresh seeds, compared and judged."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from lmsearch.results.statistics import Comparison, Interval, compare, mean_interval
from lmsearch.store.records import SEED, StudyRecord, TrialRecord, configurations, without_seed
from lmsearch.store.tables import Ticket


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
    requested_seeds: int  # seeds that were asked for, of the leader with the most
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
    requested = Counter(without_seed(ticket.fixed) for ticket in again.tickets)
    return Confirmation(
        name=again.info.ref.name,
        leaders=(*(compared[row] for row in order), *sorted(rest, key=lambda one: (bool(one.lost), one.trial.number))),
        compared=len(compared),
        seeds=len(seeds),
        top=len(requested),
        requested_seeds=max(requested.values(), default=0),
        total=again.total,
        done=again.done,
        is_answered=bool(answered),
        comparison=compare([table[row] for row in order], looks=len(answered)) if answered else None,
    )


def _answered(tickets: Sequence[Ticket]) -> set[str]:
    """Return the batches that have ended altogether, up to the first that has not."""
    batches: dict[str, bool] = {}
    for ticket in sorted(tickets, key=lambda one: one.number):
        batches[ticket.batch] = batches.get(ticket.batch, True) and ticket.is_done
    return set(itertools.takewhile(lambda batch: batches[batch], batches))


def _leader(trial: TrialRecord, again: list[TrialRecord]) -> Leader:
    well = {int(one.params[SEED]): one.perplexity for one in again if one.outcome == "complete"}
    lost = {int(one.params[SEED]): one.outcome for one in again if int(one.params[SEED]) not in well}
    perplexities = dict(sorted(well.items()))
    return Leader(
        trial=trial, perplexities=perplexities, lost=lost, interval=mean_interval(list(perplexities.values()))
    )


def confirmation_document(confirmation: Confirmation) -> dict[str, Any]:
    """Return the fresh seeds' results of the winner and of all others; of all leaders where there is no winner."""
    winner, comparison = confirmation.winner, confirmation.comparison
    others = confirmation.leaders if winner is None else confirmation.leaders[1:]
    differences = [*(comparison.differences if comparison else ()), *[None] * len(others)]
    return {
        "verdict": confirmation.verdict,
        "mean": None if winner is None else winner.mean,
        "interval": None if winner is None else _ends(winner.interval),
        "seeds": {} if winner is None else {str(seed): value for seed, value in winner.perplexities.items()},
        "confirmation": confirmation.name,
        "others": [
            {
                "trial": other.trial.number,
                "seeds": {str(seed): value for seed, value in other.perplexities.items()},
                "lost": {str(seed): outcome for seed, outcome in other.lost.items()},
                "difference": None if difference is None else difference.mean,
                "interval": _ends(difference),
            }
            for other, difference in zip(others, differences, strict=False)
        ],
    }


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def confirm_words(study: str) -> list[str]:
    """Return the advised command to confirm that a study's best is really the best."""
    return ["lmsearch", "confirm", study, "--top", "3", "--seeds", "3"]


def confirmation_sentence(confirmation: Confirmation) -> str:
    """Return in words whether the winner is real."""
    more = ""
    if confirmation.done < confirmation.total:
        more = f"{confirmation.done} of {confirmation.total} trainings are done"
    if confirmation.verdict == "open":
        return f"The confirmation is not finished: {more}. Until then the best trial may only be the luckiest."
    sentence = _leaders_sentence(confirmation)
    return (
        f"{sentence} More trainings were requested since: {more}; they count once all have ended." if more else sentence
    )


def _leaders_sentence(confirmation: Confirmation) -> str:
    leaders, winner, comparison = confirmation.leaders, confirmation.winner, confirmation.comparison
    if winner is None:
        return "No leader completed with every fresh seed: the best result of the search does not hold."
    count = len(winner.perplexities)
    seeds = "one fresh seed" if count == 1 else f"{count} fresh seeds"
    sentence = f"Trial {winner.trial.number} has a mean perplexity of {winner.mean:.2f} over {seeds}"
    if winner.interval is not None:
        sentence += f" (95 % interval {winner.interval.low:.2f} to {winner.interval.high:.2f})"
    tail = "".join(_left_out(leader, confirmation) for leader in leaders[confirmation.compared :])
    if confirmation.verdict == "alone":
        return f"{sentence}; no other leader {'completed' if tail else 'was run'}.{tail}"
    if comparison is None:
        return f"{sentence}. One seed says nothing about the spread: treat it as a tie.{tail}"
    gap = comparison.differences[0]
    second = leaders[1].trial.number
    paired = "paired by seed" + (f", over the {confirmation.seeds} that all have" if confirmation.seeds < count else "")
    interval = f"(between {gap.low:.2f} and {gap.high:.2f}, {paired})"
    if confirmation.verdict == "winner":
        return f"{sentence} and is the winner: {gap.mean:.2f} better than the next, trial {second} {interval}.{tail}"
    tied = [
        str(leader.trial.number)
        for leader, difference in zip(leaders[1:], comparison.differences, strict=False)
        if difference.low <= 0
    ]
    if not tied:  # it is called among those that have as many seeds
        return f"{sentence}, {gap.mean:.2f} better than the next, trial {second} {interval}; treat it as a tie.{tail}"
    return (
        f"{sentence}. No clear winner: it is tied with {'trial' if len(tied) == 1 else 'trials'} {', '.join(tied)}. "
        f"The difference to trial {second} is {gap.mean:.2f} {interval}.{tail}"
    )


def _left_out(leader: Leader, confirmation: Confirmation) -> str:
    """Return why a leader is not compared."""
    if leader.lost:
        seed, outcome = next(iter(leader.lost.items()))
        return f" Trial {leader.trial.number} did not complete with seed {seed} ({outcome}) and is not compared."
    better = " and was better over those" if leader in confirmation.rivals else ""
    return f" Trial {leader.trial.number} has only {len(leader.perplexities)} seeds{better}; it is not compared."
