"""Was the search worth it: what its second half gave, and its samplers against random search at twice the budget."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lmsearch.results.statistics import Draws
from lmsearch.store.records import StudyRecord, TrialRecord
from lmsearch.study.options import LEARNING_SAMPLERS

_LEAST_TRIALS = 4  # below that a half of a search says nothing
_SEED_NOISE = 0.01  # of a perplexity: about what one configuration differs by from seed to seed


@dataclass(frozen=True, kw_only=True)
class Half:
    """The second half of a search's trials."""

    first: int  # position of its first trial among those that have ended, from 1
    last: int
    gain: float  # in perplexity, of the best trial


@dataclass(frozen=True, kw_only=True)
class RandomTrials:
    """The random trials of a study as a search of their own."""

    count: int
    expected_of_half: float  # the mean best of half as many
    expected: float  # the mean best of all
    best: float


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The first trials of a sampler beside twice as many random ones."""

    trials: int  # of the sampler
    found: float  # the best of those
    random: float  # the mean best of twice as many random trials
    chance: float  # the share of all draws of so many random trials that are better
    all_drawn: bool  # there is only one draw of that size: all random trials
    known: int  # trials of other samplers from which it learned too

    @property
    def verdict(self) -> str:
        """Return how the sampler compares: `no better than`, `at least as good as` or `indistinguishable from`."""
        if abs(self.found / self.random - 1) < _SEED_NOISE:
            return "indistinguishable from"
        return "no better than" if self.chance > 0.5 else "at least as good as"


@dataclass(frozen=True, kw_only=True)
class AgainstRandom:
    """A sampler that learns, against random search at twice its budget."""

    sampler: str
    trials: int
    compared: Compared | None  # None where there are too few trials
    more: int  # random trials that are missing to compare all of its trials, or any


@dataclass(frozen=True, kw_only=True)
class FromPrior:
    """What the start design's points from the prior reached, beside those that were drawn evenly."""

    trials: int
    best: float
    evenly: int  # trials
    best_evenly: float | None  # None where there are none


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a search's trials were worth."""

    second_half: Half | None  # None for too few trials
    random: RandomTrials | None  # likewise
    samplers: tuple[AgainstRandom, ...]
    prior: FromPrior | None = None  # None where no trial started from one


def ended_in_order(record: StudyRecord, by: str | None = None) -> list[TrialRecord]:
    """List the measured trials that have ended, in the order of their start; `by` keeps those of one sampler."""
    ended = [t for t in record.trials if t.ended is not None and t.curve and not t.origin_trial]
    return sorted((t for t in ended if by is None or t.by == by), key=lambda trial: trial.number)


def random_draws(record: StudyRecord) -> Draws:
    """Return the study's random trials; a pruned one counts with what it had reached."""
    return Draws(tuple(trial.perplexity for trial in ended_in_order(record, "random")))


def best_so_far(trials: Sequence[TrialRecord]) -> list[float]:
    """Return the lowest perplexity of the complete trials after each of some trials, infinite before the first."""
    values = [trial.perplexity if trial.outcome == "complete" else math.inf for trial in trials]
    return list(itertools.accumulate(values, min))


def judge_budget(record: StudyRecord) -> Budget:
    """Return what the search's trials were worth, as far as there are enough of them."""
    trials, draws = ended_in_order(record), random_draws(record)
    samplers = sorted({trial.by for trial in trials if trial.by in LEARNING_SAMPLERS})
    return Budget(
        second_half=_second_half(best_so_far(trials)),
        random=_random_trials(draws),
        samplers=tuple(_against_random(trials, sampler, draws) for sampler in samplers),
        prior=_from_prior(record),
    )


def _from_prior(record: StudyRecord) -> FromPrior | None:
    spec = record.info.spec
    near, evenly = [], []
    for trial in record.trials:
        ticket = trial.ticket
        if ticket is None or ticket.fixed or not trial.curve:
            continue
        if spec.starts_from_prior(ticket.sampler, ticket.number):
            near.append(trial.perplexity)
        elif spec.is_of_start_design(ticket.sampler, ticket.number):
            evenly.append(trial.perplexity)
    if not spec.prior or not near:
        return None
    return FromPrior(trials=len(near), best=min(near), evenly=len(evenly), best_evenly=min(evenly, default=None))


def _second_half(path: Sequence[float]) -> Half | None:
    half = len(path) // 2
    if half < _LEAST_TRIALS or not math.isfinite(path[half - 1]):
        return None
    return Half(first=half + 1, last=len(path), gain=path[half - 1] - path[-1])


def _random_trials(draws: Draws) -> RandomTrials | None:
    count = len(draws.values)
    if count < 2 * _LEAST_TRIALS:
        return None
    return RandomTrials(
        count=count,
        expected_of_half=draws.expected_best(count // 2),
        expected=draws.expected_best(count),
        best=min(draws.values),
    )


def _against_random(trials: Sequence[TrialRecord], sampler: str, draws: Draws) -> AgainstRandom:
    own = [trial for trial in trials if trial.by == sampler]
    path = best_so_far(own)
    count = len(draws.values)
    first = min(len(own), count // 2)
    if first < _LEAST_TRIALS or not math.isfinite(path[first - 1]):
        more = 2 * max(_LEAST_TRIALS, len(own)) - count
        return AgainstRandom(sampler=sampler, trials=len(own), compared=None, more=more)
    found, last = path[first - 1], own[first - 1].started
    compared = Compared(
        trials=first,
        found=found,
        random=draws.expected_best(2 * first),
        chance=draws.chance_below(found, 2 * first),
        all_drawn=2 * first == count,
        known=sum(t.by != sampler and bool(t.ended and last and t.ended <= last) for t in trials),
    )
    return AgainstRandom(sampler=sampler, trials=len(own), compared=compared, more=2 * len(own) - count)


def budget_sentences(budget: Budget) -> Iterator[str]:
    """Say whether the search was worth it: what doubling it gave, and each sampler against random search at twice."""
    half, random = budget.second_half, budget.random
    if half is not None:
        worth = f"about {half.gain:.2f} perplexity" if half.gain > 0 else "nothing: the best trial was found before"
        ones = f"the last {1 + half.last - half.first} of {half.last} trials that ended"
        yield f"The second half of the budget ({ones}) was worth {worth}."
    if random is not None:
        yield (
            f"Of its random trials, {random.count // 2} reach {random.expected_of_half:.2f} on average; "
            f"all {random.count} reached {random.best:.2f}, {random.expected_of_half - random.expected:.2f} better. "
            "The gain of more random trials is not known."
        )
    if (prior := budget.prior) is not None:
        beside = "no others were drawn evenly beside them"
        if prior.best_evenly is not None:
            beside = f"the best of {prior.evenly} that were drawn evenly beside them reached {prior.best_evenly:.2f}"
        yield (
            f"The search started from a [prior]: the best of {prior.trials} trials near it reached {prior.best:.2f}, "
            f"{beside}. What a prior gives is knowledge, and not the search's merit."
        )
    for sampler in budget.samplers:
        yield from _sampler_sentences(sampler)


def _sampler_sentences(one: AgainstRandom) -> Iterator[str]:
    name, compared = one.sampler, one.compared
    if compared is None:
        yield (
            f"Whether {name} beats random search at twice its budget is unknown: that needs {one.more} more "
            f"random trials."
        )
        return
    average, share = "", "."
    if not compared.all_drawn:
        average = "on average "
        share = f" (the random trials are better in {compared.chance:.0%} of all draws of that size)."
    learned = ""
    if compared.known:
        learned = f" It also learned from {compared.known} trials of other samplers, which flatters it."
    yield (
        f"The first {compared.trials} trials of {name} found {compared.found:.2f}; {2 * compared.trials} random trials "
        f"find {average}{compared.random:.2f}, so {name} was {compared.verdict} random search at twice its budget"
        f"{share}{learned}"
    )
    if compared.trials < one.trials:
        yield f"To compare all {one.trials} trials of {name} needs {one.more} more random trials."
