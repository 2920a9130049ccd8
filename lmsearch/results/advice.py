"""What the data supports saying, in words: how sure the winner is, whether its range is right, what a budget gave."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, median

import tomlkit
from tomlkit.items import InlineTable

from lmsearch.config import RunConfig, Value
from lmsearch.errors import ConfigError
from lmsearch.results.reading import Confirmation, Leader, Results
from lmsearch.results.statistics import Draws
from lmsearch.space import Choice, FloatRange, IntRange
from lmsearch.spelling import spell_duration
from lmsearch.store.records import SEED, StudyRecord, TrialRecord, without_seed
from lmsearch.study.options import MEDIAN_STARTUP, median_warmup

Command = Callable[[Sequence[str]], str]
"""Writes a command of lmsearch so that a person can copy it, with how it finds the store."""

_BEST = 5  # trials whose place in a range is looked at
_CROWD = 4  # of these near one end are a crowd
_NEAR = 0.1  # of the searched scale
_DIVERGED_NEAR = 0.2  # the same, for trials that diverged
_LEAST_COMPLETE = 10
_SEED_NOISE = 0.01  # of a perplexity: about what one configuration differs by from seed to seed
_LEAST_POINTS = 5  # of a range in steps: with fewer, its ends hold too many by chance


@dataclass(frozen=True, kw_only=True)
class Edge:
    """An end of a range that the best trials crowd."""

    path: str
    end: str  # low or high
    value: Value  # at that end
    log: bool  # whether the exponent is searched
    crowd: int
    best: int
    diverged: int  # trials that diverged near it
    wider: Value | None  # what it could be instead; None beside diverged trials

    def __str__(self) -> str:
        end = "upper" if self.end == "high" else "lower"
        return (
            f"{self.crowd} of the {self.best} best have {self.path} within {_NEAR:.0%} of its {end} end {self.value:g}"
            + (" on its logarithmic scale" if self.log else "")
        )


def edges(record: StudyRecord) -> list[Edge]:
    """List the ends of ranges that the best trials crowd, where the setting itself allows more.

    Four of the five best in the outer tenth: `benchmarks/claims.py range` says how often that misleads. Seeds have no
    better end, and the ends of a grid were chosen.
    """
    complete = sorted((t for t in record.trials if t.outcome == "complete"), key=lambda trial: trial.perplexity)
    if len(complete) < _LEAST_COMPLETE or all(trial.by == "grid" for trial in complete[:_BEST]):
        return []
    found = []
    for path, value in record.info.spec.open.items():
        if path == SEED or isinstance(value, Choice):
            continue
        if value.step and (value.high - value.low) / value.step < _LEAST_POINTS - 1:
            continue
        places = [place(value, trial.params[path]) for trial in complete[:_BEST] if path in trial.params]
        diverged = [place(value, t.params[path]) for t in record.trials if t.outcome == "diverged" and path in t.params]
        for end, flipped in (("low", False), ("high", True)):
            crowd = sum(_distance(one, flipped) <= _NEAR for one in places)
            wider = _wider(path, value, end)
            if crowd >= _CROWD and wider is not None:
                beside = sum(_distance(one, flipped) <= _DIVERGED_NEAR for one in diverged)
                found.append(
                    Edge(
                        path=path,
                        end=end,
                        value=getattr(value, end),
                        log=value.log,
                        crowd=crowd,
                        best=len(places),
                        diverged=beside,
                        wider=None if beside else wider,
                    )
                )
    return found


def place(value: FloatRange | IntRange, number: Value) -> float:
    """Return where a number lies between the ends of its range, from 0 to 1 in the scale that is searched."""
    low, high, at = float(value.low), float(value.high), float(number)
    if value.log:
        low, high, at = math.log(low), math.log(high), math.log(at)
    return (at - low) / (high - low)


def _distance(at: float, flipped: bool) -> float:
    return 1 - at if flipped else at


def _wider(path: str, value: FloatRange | IntRange, end: str) -> Value | None:
    """Return the end of a wider range, None where the setting allows nothing beyond."""
    for share in (0.5, 0.25, 0.125):
        if value.log:
            factor = min(10.0, (value.high / value.low) ** share)
            raw = value.high * factor if end == "high" else value.low / factor
        else:
            width = share * (value.high - value.low)
            raw = value.high + width if end == "high" else value.low - width
        wider = _rounded(value, raw)
        if wider in (value.low, value.high):
            continue
        try:
            RunConfig.from_paths({"data.corpus": "python-docs", path: wider})
        except ConfigError:
            continue
        return wider
    return None


def _rounded(value: FloatRange | IntRange, raw: float) -> Value:
    if isinstance(value, IntRange):
        return round((raw - value.low) / value.step) * value.step + value.low
    if value.step:
        return value.low + round((raw - value.low) / value.step) * value.step
    return float(f"{raw:.2g}")


def edge_line(record: StudyRecord, edge: Edge) -> str:
    """Return the line of the study file with the range made wider."""
    section, _, name = edge.path.partition(".")
    document = tomlkit.parse(record.info.spec.text)
    table = document[section][name]
    if not isinstance(table, InlineTable):  # written with dotted keys, or as a table of its own
        inline = tomlkit.inline_table()
        inline.update(table.unwrap())
        table = inline
    table[edge.end] = edge.wider
    return f"{name} = {table.as_string().strip()}"


def edge_sentence(edge: Edge) -> str:
    """Say what a crowded end means."""
    if edge.diverged:
        beside = "a trial" if edge.diverged == 1 else f"{edge.diverged} trials"
        return (
            f"{edge}; {beside} diverged near it, so training breaks down at this end: "
            "do not widen the range, find what keeps training stable there"
        )
    return f"{edge}: the best value may lie beyond it"


def confirm_words(study: str) -> list[str]:
    """Return the advised command to confirm that a study's best is really the best."""
    return ["lmsearch", "confirm", study, "--top", "3", "--seeds", "3"]


def confirmation_sentence(confirmation: Confirmation) -> str:
    """Say in words whether the winner is real."""
    more = ""
    if confirmation.done < confirmation.total:
        more = f"{confirmation.done} of {confirmation.total} trainings are done"
    if confirmation.verdict == "open":
        return f"The confirmation is not finished: {more}. Until then the best trial may only be the luckiest."
    told = _told_of_leaders(confirmation)
    return f"{told} More trainings were requested since: {more}; they count once all have ended." if more else told


def _told_of_leaders(confirmation: Confirmation) -> str:
    leaders, winner, comparison = confirmation.leaders, confirmation.winner, confirmation.comparison
    if winner is None:
        return "No leader completed with every fresh seed: the best result of the search does not hold."
    count = len(winner.perplexities)
    seeds = "one fresh seed" if count == 1 else f"{count} fresh seeds"
    told = f"Trial {winner.trial.number} has a mean perplexity of {winner.mean:.2f} over {seeds}"
    if winner.interval is not None:
        told += f" (95 % interval {winner.interval.low:.2f} to {winner.interval.high:.2f})"
    tail = "".join(_left_out(leader, confirmation) for leader in leaders[confirmation.compared :])
    if confirmation.verdict == "alone":
        return f"{told}; no other leader {'completed' if tail else 'was run'}.{tail}"
    if comparison is None:
        return f"{told}. One seed says nothing about the spread: treat it as a tie.{tail}"
    gap = comparison.differences[0]
    second = leaders[1].trial.number
    paired = "paired by seed" + (f", over the {confirmation.seeds} that all have" if confirmation.seeds < count else "")
    interval = f"(between {gap.low:.2f} and {gap.high:.2f}, {paired})"
    if confirmation.verdict == "winner":
        return f"{told} and is the winner: {gap.mean:.2f} better than the next, trial {second} {interval}.{tail}"
    tied = [
        str(leader.trial.number)
        for leader, difference in zip(leaders[1:], comparison.differences, strict=False)
        if difference.low <= 0
    ]
    if not tied:  # it is called among those that have as many seeds
        return f"{told}, {gap.mean:.2f} better than the next, trial {second} {interval}; treat it as a tie.{tail}"
    return (
        f"{told}. No clear winner: it is tied with {'trial' if len(tied) == 1 else 'trials'} {', '.join(tied)}. "
        f"The difference to trial {second} is {gap.mean:.2f} {interval}.{tail}"
    )


def _left_out(leader: Leader, confirmation: Confirmation) -> str:
    """Say why a leader is not compared."""
    if leader.lost:
        seed, outcome = next(iter(leader.lost.items()))
        return f" Trial {leader.trial.number} did not complete with seed {seed} ({outcome}) and is not compared."
    better = " and was better over those" if leader in confirmation.rivals else ""
    return f" Trial {leader.trial.number} has only {len(leader.perplexities)} seeds{better}; it is not compared."


def verdict(results: Results) -> list[str]:
    """Say what is best and how sure that is, a sentence each."""
    record, winner = results.record, results.winner
    if winner is None:
        return [f"No trial of {results.name} is complete yet."]
    parameters = f" ({winner.parameters:,} parameters)" if winner.parameters else ""
    told = [
        f"Trial {winner.number} (by {winner.by or 'another program'}) has the best validation perplexity, "
        f"{winner.perplexity:.2f} in epoch {winner.best_epoch}{parameters}."
    ]
    if winner.known_perplexity is not None:
        told[0] += f" Of the known words alone, without <unk>, it is {winner.known_perplexity:.2f}."
    if results.confirmation is None:
        rivals = sum(
            trial.outcome == "complete" and trial.perplexity < 1.01 * winner.perplexity for trial in record.trials
        )
        more = "One other trial is" if rivals == 2 else f"{rivals - 1} other trials are"
        close = f" {more} within 1 %." if rivals > 1 else ""
        told.append(f"That is one training with one seed, the luckiest of {record.count('complete')}.{close}")
        return told
    if results.confirmation.winner is not None:
        tied = results.confirmation.verdict == "tie"
        words = "has the best mean, but it is a tie" if tied else "is the confirmed winner"
        told = [f"Trial {winner.number}{parameters} {words}."]
    told.append(confirmation_sentence(results.confirmation))
    confirmed = {without_seed(leader.trial.params) for leader in results.confirmation.leaders}
    if record.best is not None and without_seed(record.best.params) not in confirmed and results.confirmation.winner:
        told.append(
            f"Since then trial {record.best.number} reached {record.best.perplexity:.2f} in the search; "
            "it has not been confirmed."
        )
    return told


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


def budget_sentences(record: StudyRecord, more_command: Callable[[int], str]) -> Iterator[str]:
    """Say whether the search was worth it: what doubling it gave, and each sampler against random search at twice.

    `more_command` returns the command that adds a number of random trials.
    """
    trials = ended_in_order(record)
    half = len(trials) // 2
    if half >= 4:
        path = best_so_far(trials)
        if math.isfinite(path[half - 1]):
            gain = path[half - 1] - path[-1]
            worth = f"about {gain:.2f} perplexity" if gain > 0 else "nothing: the best trial was found before"
            yield f"The second half of the budget (trials {half + 1} to {len(trials)}) was worth {worth}."
    draws = random_draws(record)
    count = len(draws.values)
    if count >= 8:
        gain = draws.expected_best(count // 2) - draws.expected_best(count)
        yield (
            f"Of its random trials, {count // 2} reach {draws.expected_best(count // 2):.2f} on average; "
            f"all {count} reached {min(draws.values):.2f}, {gain:.2f} better. "
            "The gain of more random trials is not known."
        )
    for sampler in sorted({trial.by for trial in trials if trial.by == "tpe"}):
        own = best_so_far(ended_in_order(record, sampler))
        budget = min(len(own), count // 2)
        if budget < 4 or not math.isfinite(own[budget - 1]):
            more = 2 * max(4, len(own)) - count
            yield (
                f"Whether {sampler} beats random search at twice its budget is unknown: that needs {more} more "
                f"random trials. Add them with: {more_command(more)}"
            )
            continue
        found, twice = own[budget - 1], draws.expected_best(2 * budget)
        last = ended_in_order(record, sampler)[budget - 1].started
        known = sum(t.by != sampler and bool(t.ended and last and t.ended <= last) for t in trials)
        chance = draws.chance_below(found, 2 * budget)
        average = "on average " if 2 * budget < count else ""
        words = "no better than" if chance > 0.5 else "at least as good as"
        if abs(found / twice - 1) < _SEED_NOISE:
            words = "indistinguishable from"
        flattered = f" It also learned from {known} trials of other samplers, which flatters it." if known else ""
        yield (
            f"The first {budget} trials of {sampler} found {found:.2f}; {2 * budget} random trials find {average}"
            f"{twice:.2f}, so {sampler} was {words} random search at twice its budget"
            + (f" (the random trials are better in {chance:.0%} of all draws of that size)." if average else ".")
            + flattered
        )
        if budget < len(own):
            more = 2 * len(own) - count
            yield (f"To compare all {len(own)} trials of {sampler}, add {more} random ones with: {more_command(more)}")


@dataclass(frozen=True, kw_only=True)
class Closeness:
    """How near the winner came to being pruned, at the epoch where it was nearest."""

    epoch: int
    perplexity: float  # of the winner, its lowest by then
    median: float  # over the other complete trials, of theirs
    rank: int  # among all that reached the epoch
    reached: int

    @property
    def is_stopped(self) -> bool:
        """Whether a median pruner would have stopped it there."""
        return self.perplexity > self.median


def closeness(results: Results) -> list[Closeness]:
    """Compare the winner, epoch by epoch, with what a median pruner would have held it against.

    From the epoch on at which ours prunes by default, and where as many complete trials are there as it waits for.
    """
    winner, trials = results.winner, results.record.trials
    if winner is None:
        return []
    found = []
    first = median_warmup(results.record.info.spec.epochs)
    for epoch in [epoch for epoch in list(winner.curve)[:-1] if epoch >= first]:
        here = lowest_by(winner, epoch)
        others = [lowest_by(t, epoch) for t in trials if t.number != winner.number and epoch in t.curve]
        complete = [
            lowest_by(t, epoch)
            for t in trials
            if t.number != winner.number and epoch in t.curve and t.outcome == "complete"
        ]
        if len(complete) >= MEDIAN_STARTUP:
            found.append(
                Closeness(
                    epoch=epoch,
                    perplexity=here,
                    median=median(complete),
                    rank=1 + sum(other < here for other in others),
                    reached=len(others) + 1,
                )
            )
    return found


def lowest_by(trial: TrialRecord, epoch: int) -> float:
    """Return the lowest perplexity that a trial had reached by an epoch."""
    return min(value for number, value in trial.curve.items() if number <= epoch)


def pruning_sentences(results: Results) -> Iterator[str]:
    """Say how close the winner came to being pruned, and what pruning saved."""
    found = closeness(results)
    if results.winner is not None and found:
        nearest = max(found, key=lambda one: one.perplexity / one.median)
        words = "would have stopped" if nearest.is_stopped else "would not have stopped"
        yield (
            f"In hindsight, a median pruner that knew all other complete trials {words} the winner, trial "
            f"{results.winner.number}. It came "
            f"closest in epoch {nearest.epoch}: {nearest.perplexity:.2f} against a median of {nearest.median:.2f}, "
            f"place {nearest.rank} of {nearest.reached}."
        )
    record = results.record
    own = [trial for trial in record.trials if trial.epochs and not trial.origin_trial]
    pruned = [trial for trial in own if trial.outcome == "pruned"]
    seconds = [row.seconds for trial in own for row in trial.epochs]
    if pruned and seconds:
        left_out = sum(record.info.spec.epochs - len(trial.curve) for trial in pruned)
        yield (
            f"Pruning saved {left_out:,} of {left_out + len(seconds):,} epochs in {len(pruned)} trials, about "
            f"{spell_duration(left_out * mean(seconds))} of training."
        )


def time_sentences(record: StudyRecord) -> Iterator[str]:
    """Say where the time went: training, idle workers, tokens per second."""
    trials = [trial for trial in record.trials if trial.epochs and not trial.origin_trial]
    trained = sum(trial.seconds for trial in trials)
    tokens = sum(row.tokens for trial in trials for row in trial.epochs)
    if not trained:
        return
    yield (
        f"{len(trials)} trials trained and evaluated for {spell_duration(trained)}, {tokens:,} tokens, "
        f"{tokens / trained:,.0f} tokens/s per worker."
    )
    busy, there = _idle(trials)
    if there > busy:
        yield f"Workers were idle for {1 - busy / there:.1%} of the time while the search ran."


def _idle(trials: Sequence[TrialRecord]) -> tuple[float, float]:
    """Return the seconds in which places for workers were taken, and in which they were there to be taken.

    As many places as ever were taken at once; time in which nothing ran, such as a night between two runs, does not
    count.
    """
    spans = [(trial.started, trial.ended) for trial in trials if trial.started and trial.ended]
    moments = sorted([(started, 1) for started, _ in spans] + [(ended, -1) for _, ended in spans])
    running = busy = open_seconds = 0.0
    most = 0
    for (moment, change), (following, _) in itertools.pairwise(moments):
        running += change
        most = max(most, int(running))
        seconds = (following - moment).total_seconds()
        busy += running * seconds
        open_seconds += seconds if running else 0.0
    return busy, most * open_seconds
