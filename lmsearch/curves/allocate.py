"""Which trial a worker trains next: paused trials continue by the forecast of what they will reach.

Freeze-thaw allocation (Swersky et al., arXiv 1406.3896; with a probability of improvement a unit of cost as in
HyperDrive, Rasley et al., Middleware 2017). Everything here is a pure function of what the store has of each trial,
so that no worker's death can lose a decision. Losses are in nats per token.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmsearch.curves.forecast import Floats, Forecasts, backtest, forecast

RUNNING, PAUSED, COMPLETE, ENDED = "running", "paused", "complete", "ended"
CONTINUE, PAUSE, PRUNE, FINISH = "continue", "pause", "prune", "finish"

_GAIN = 0.003  # nats by which a trial must become better than the best to count
_KEEP = 0.9  # a running trial continues while its index is this share of the best other one
_HOPELESS = 0.01  # probability below which no paused trial is worth an epoch
_NEVER_BETTER = 0.02  # probability below which a trial that has passed its own lowest loss is over
_COSTS = 0.5  # of a whole trial's epochs, what a new one is expected to cost: most pause soon
_TRUSTED = 5  # complete trials before the forecast is tested against them
_LEAST_RANK = 0.3  # rank correlation with which it must order them


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One trial that has started, as the store has it."""

    ticket: int
    losses: tuple[float, ...]  # of its epochs so far
    state: str
    epochs_to_train: int | None = None  # until its end; None: those it lacks (more where its checkpoint is not here)


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """What each trial with an epoch may still become, and what a new one may."""

    standings: tuple[Standing, ...]
    forecasts: Forecasts
    chance_N: Floats  # that a trial becomes better than the best there is
    index_N: Floats  # the chance by the epochs that it would cost
    new: float  # the same index of a trial that has not started
    trusted: bool  # whether the forecast orders the complete trials

    def place_of(self, ticket: int) -> int | None:
        """Return the position of a trial; None where it has no epoch."""
        return next((place for place, one in enumerate(self.standings) if one.ticket == ticket), None)

    def best_other(self, waiting: int) -> float:
        """Return the highest index of what a worker could train instead: a paused trial, or a new one."""
        paused = [float(self.index_N[place]) for place, one in enumerate(self.standings) if one.state == PAUSED]
        return max(paused + [self.new] * bool(waiting), default=0.0)


@dataclass(frozen=True, kw_only=True)
class Thawing:
    """How a study allocates its epochs by forecasts."""

    epochs: int  # of a whole trial
    piece: int  # epochs between two decisions about a trial
    whole: int  # the first so many trials run to their end, whatever they look like

    def after_epoch(self, mine: int, standings: Sequence[Standing], waiting: int) -> str:
        """Decide about a running trial after an epoch that is not its last.

        `mine` is its ticket, `waiting` the number of tickets that have not started. The trial continues, pauses until
        its forecast is the best there is to train, is pruned (where it cannot become the best and nothing else is left;
        where the forecast cannot be trusted, by the median rule), or finishes early, since it will not become better
        than its own best.
        """
        ranking = rank(standings, self)
        place = None if ranking is None else ranking.place_of(mine)
        if ranking is None or place is None:
            return CONTINUE
        me = ranking.standings[place]
        if _is_first(mine, standings, self) or len(me.losses) % self.piece:
            return CONTINUE
        if not ranking.trusted:
            return PRUNE if _is_below_median(me, ranking, self) else CONTINUE
        if _is_over(me, place, ranking):
            return FINISH
        if not waiting and ranking.chance_N[place] < _HOPELESS:
            # Whoever else runs may still fail; at the very end there is nobody to wait for.
            return PAUSE if any(one.state == RUNNING and one is not me for one in ranking.standings) else PRUNE
        return CONTINUE if ranking.index_N[place] >= _KEEP * ranking.best_other(waiting) else PAUSE

    def next_paused(self, standings: Sequence[Standing], waiting: int) -> list[int]:
        """List the tickets of paused trials that are worth more than a new trial, best first.

        Where no ticket waits and nothing runs, those that can still become the best.
        """
        ranking = rank(standings, self)
        if ranking is None:
            return []
        floor = ranking.new if waiting else 0.0
        order = sorted(range(len(ranking.standings)), key=lambda place: -float(ranking.index_N[place]))
        return [
            ranking.standings[place].ticket
            for place in order
            if ranking.standings[place].state == PAUSED
            and float(ranking.index_N[place]) > floor
            and float(ranking.chance_N[place]) >= _HOPELESS
        ]


def default_rules(trials: int, epochs: int, noisy: bool) -> Thawing:
    """Return the rules for a budget; `noisy` where the learning rate is divided or weights are averaged.

    Such trainings have cliffs, which no early curve shows: more trials run to their end, and pieces are longer.
    """
    if trials < 12 or epochs < 6:
        return Thawing(epochs=epochs, piece=epochs, whole=trials)
    whole = 5 if trials < 40 else 6 if trials < 120 else 8
    return Thawing(epochs=epochs, piece=max(1, epochs // (4 if noisy else 8)), whole=whole + (2 if noisy else 0))


def rank(standings: Sequence[Standing], rules: Thawing) -> Ranking | None:
    """Rank all trials that have an epoch; None where none has."""
    known = tuple(one for one in standings if one.losses and all(map(math.isfinite, one.losses)))
    if not known:
        return None
    complete = [one.state == COMPLETE for one in known]
    curves = [one.losses for one in known]
    found = forecast(curves, rules.epochs, complete)
    best = min(min(curve) for curve in curves)
    alive = np.array([one.state in (RUNNING, PAUSED) for one in known])
    begun_N = np.array([_chance(best, *one) for one in zip(found.mean_N, found.deviation_N, strict=True)])
    chance_N = np.where(alive, begun_N, 0.0)
    left_N = np.array([max(1, _left(one, rules)) for one in known])
    # Of equally good proposals the next is the best of all once in so many; a sampler that learns does better.
    fresh = max(float(begun_N.mean()), 1 / (len(known) + 2))
    return Ranking(
        standings=known,
        forecasts=found,
        chance_N=chance_N,
        index_N=chance_N / left_N,
        new=fresh / (_COSTS * rules.epochs),
        trusted=_is_trusted([curve for curve, whole in zip(curves, complete, strict=True) if whole], rules),
    )


def _left(one: Standing, rules: Thawing) -> int:
    return rules.epochs - len(one.losses) if one.epochs_to_train is None else one.epochs_to_train


def _chance(best: float, mean: float, deviation: float) -> float:
    """Return how likely a loss that is forecast so is better than the best there is."""
    return 0.5 * math.erfc((mean - (best - _GAIN)) / (max(deviation, 1e-9) * math.sqrt(2)))


def _is_trusted(complete: list[tuple[float, ...]], rules: Thawing) -> bool:
    """Whether the forecast from half a training orders the complete trials, and no worse than the loss there does."""
    whole = [curve for curve in complete if len(curve) >= rules.epochs]
    if len(whole) < _TRUSTED:
        return True
    forecasts, losses = backtest(whole, rules.epochs, max(1, rules.epochs // 2))
    return forecasts >= _LEAST_RANK and forecasts >= losses - 1e-9


def _is_first(ticket: int, standings: Sequence[Standing], rules: Thawing) -> bool:
    """Whether a trial is among the first, which run to their end: what a forecast is tested and corrected by."""
    return ticket in sorted(one.ticket for one in standings)[: rules.whole]


def _is_below_median(me: Standing, ranking: Ranking, rules: Thawing) -> bool:
    known = len(me.losses)
    if 2 * known < rules.epochs:
        return False
    complete = [one for one in ranking.standings if one.state == COMPLETE and len(one.losses) >= known]
    return bool(complete) and min(me.losses) > float(np.median([min(one.losses[:known]) for one in complete]))


def _is_over(me: Standing, place: int, ranking: Ranking) -> bool:
    """Whether a trial has passed its own lowest loss for good, as one does that overfits."""
    lowest = min(me.losses)
    since = len(me.losses) - 1 - me.losses.index(lowest)
    if since < 3:
        return False
    # The forecast's mean is never above the lowest loss; what counts is the trend of the last epochs.
    rising = me.losses[-1] > me.losses[-2] > me.losses[-3] > lowest
    return rising and _chance(lowest, me.losses[-1], float(ranking.forecasts.deviation_N[place])) < _NEVER_BETTER
