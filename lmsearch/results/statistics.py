"""What a few numbers support saying: intervals, comparisons by seed, and the best of a budget."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

LEVEL = 0.95  # of intervals and comparisons over seeds
BAND_LEVEL = 0.5  # of the band around the typical best of a budget


def _special() -> Any:
    """Return SciPy's special functions, which take a tenth of a second to load."""
    import scipy.special

    return scipy.special


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean, and the ends between which the true one lies with some confidence."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Return Student's interval of a mean; None for fewer than two values, which have no spread."""
    if len(values) < 2:
        return None
    half = _quantile(len(values) - 1, level) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    mean = float(np.mean(values))
    return Interval(mean=mean, low=mean - half, high=mean + half)


def difference_interval(
    one: Sequence[float], other: Sequence[float], comparisons: int = 1, level: float = LEVEL
) -> Interval:
    """Return Welch's interval (1947) of the mean of `one` less that of `other`, two or more independent values each.

    The intervals of so many comparisons hold together (Bonferroni).
    """
    shares = [float(np.var(values, ddof=1)) / len(values) for values in (one, other)]
    mean, spread = float(np.mean(one) - np.mean(other)), math.sqrt(sum(shares))
    if not spread:
        return Interval(mean=mean, low=mean, high=mean)
    freedom = sum(shares) ** 2 / sum(s**2 / (len(v) - 1) for s, v in zip(shares, (one, other), strict=True))
    half = _quantile(freedom, 1 - (1 - level) / comparisons) * spread
    return Interval(mean=mean, low=mean - half, high=mean + half)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several configurations over the same seeds, and whether the best of them really is the best."""

    order: tuple[int, ...]  # rows by their mean, the lowest first
    differences: tuple[Interval, ...]  # of the others, in that order, less the best one's, paired by seed

    @property
    def is_called(self) -> bool:
        """Whether the best is better than each of the others beyond doubt."""
        return bool(self.differences) and all(difference.low > 0 for difference in self.differences)


def compare(values: Sequence[Sequence[float]], level: float = LEVEL, looks: int = 1) -> Comparison | None:
    """Compare configurations (rows) over the same seeds (columns); None for fewer than two of either.

    The spread of a difference is what an analysis of variance leaves when configurations and seeds are taken out: an
    effect that a seed has on all rows alike cancels, and all rows help to measure the rest. Where the two rows differ
    among themselves by more than that, it is their own: the calm ones do not speak for the noisy.

    The intervals hold together (Bonferroni), and so do those of every earlier look and every later: look after look
    with more seeds, each has half of the doubt that the one before had. So where all are equal, a winner is called in
    at most 1 - `level` of all cases, however often somebody asks again.
    """
    table = np.asarray(values, dtype=float)
    if table.ndim != 2 or min(table.shape) < 2:
        return None
    rows, seeds = table.shape
    means = table.mean(axis=1)
    first, *others = np.argsort(means, kind="stable")
    freedom = (rows - 1) * (seeds - 1)
    rest = table - means[:, None] - table.mean(axis=0) + table.mean()
    shared = 2 * float((rest**2).sum()) / freedom
    doubt = (1 - level) / 2**looks / (rows - 1)
    differences = []
    for other in others:
        gaps = table[other] - table[first]
        spread = math.sqrt(max(shared, float(gaps.var(ddof=1))) / seeds)
        mean, half = float(gaps.mean()), _quantile(freedom, 1 - doubt) * spread
        differences.append(Interval(mean=mean, low=mean - half, high=mean + half))
    return Comparison(order=(int(first), *map(int, others)), differences=tuple(differences))


def _quantile(freedom: float, level: float) -> float:
    """Return the number of standard errors on each side of a mean that hold `level` of Student's distribution."""
    return float(_special().stdtrit(freedom, (1 + level) / 2))


@dataclass(frozen=True)
class Draws:
    """Independent random trials, by what they reached: what a search with fewer of them would have found.

    After Bergstra and Bengio (2012, section 2.3) and Dodge et al. (2019, arXiv 1909.03004), without replacement, as
    Tang et al. (2020, arXiv 2004.14855) correct it.
    """

    values: tuple[float, ...]  # perplexities, in any order

    @cached_property
    def _sorted(self) -> list[float]:
        return sorted(self.values)

    def expected_best(self, budget: int) -> float:
        """Return the mean, over all choices of so many of the trials, of the lowest value among them."""
        count = len(self.values)
        if not 1 <= budget <= count:
            raise ValueError(f"a budget must be from 1 to {count}, got {budget}")
        return math.fsum(
            value * math.comb(count - rank, budget - 1) / math.comb(count, budget)
            for rank, value in enumerate(self._sorted, 1)
        )

    def chance_below(self, value: float, budget: int) -> float:
        """Return the share of the choices of so many of the trials whose lowest value is below `value`."""
        above = sum(one >= value for one in self.values)
        return 1 - math.comb(above, budget) / math.comb(len(self.values), budget)

    def typical_best(self, budget: int) -> float:
        """Estimate the value that the best of so many new trials is below in half of all cases."""
        at = len(self.values) * _share(budget) + 0.5
        whole = min(len(self.values) - 1, max(1, math.floor(at)))
        low, high = self._sorted[whole - 1 : whole + 1]
        return low + (high - low) * min(1.0, max(0.0, at - whole))

    def band(self, budget: int) -> tuple[float, float] | None:
        """Return the ends between which the true typical best lies in half of all cases; None where nobody can say.

        It is the middle half of the bootstrap distribution of that quantile, in closed form: an order statistic of a
        sample is below the true quantile with a probability that does not depend on what is sampled. Between two of
        them it interpolates as Nyblom (1992, Statistics and Probability Letters 14) does. Up to half of the trials
        that were run it covers the truth in half of all cases; beyond, its lower end would lie below them all.
        """
        if not 1 <= budget <= len(self.values) // 2:
            return None
        side = (1 + BAND_LEVEL) / 2
        low = self._limit(_share(budget), 1 - side)
        high = self._limit(_share(budget), side)
        return None if low is None or high is None else (low, high)

    def _limit(self, share: float, side: float) -> float | None:
        """Return the value that is above the quantile at `share` with probability `side`; None where none is."""
        count = len(self.values)

        def is_above(rank: int) -> float:
            """Return the probability that the value of this rank is above the quantile."""
            return 1 - float(_special().betainc(rank, count - rank + 1, share))

        if is_above(1) > side + 1e-9:
            return None
        rank = next((rank for rank in range(1, count) if is_above(rank + 1) > side), None)
        if rank is None:
            return None
        here, there = is_above(rank), is_above(rank + 1)
        if side <= here:
            return self._sorted[rank - 1]
        ratio = rank * (1 - share) * (there - side) / ((count - rank) * share * (side - here))
        weight = 1 / (1 + ratio)
        return (1 - weight) * self._sorted[rank - 1] + weight * self._sorted[rank]


def _share(budget: int) -> float:
    """Return the quantile that the best of so many is below in half of all cases."""
    return float(1 - 0.5 ** (1 / budget))
