"""Statistics against known answers; benchmarks/claims.py has them on a thousand studies each."""

import math

import numpy as np
import pytest
import scipy.stats

from lmsearch.results.statistics import Draws, compare, difference_interval, mean_interval


def test_the_interval_of_a_mean_is_students() -> None:
    interval = mean_interval([10.0, 12.0, 14.0])
    assert interval is not None
    # t(2 degrees, 0.975) = 4.3027, standard error 2 / sqrt(3): tables of Student's distribution.
    assert interval.mean == 12
    assert interval.high - 12 == pytest.approx(4.3027 * 2 / math.sqrt(3), rel=1e-4)
    assert mean_interval([10.0]) is None


def test_an_effect_of_the_seed_on_all_configurations_cancels() -> None:
    seeds = np.array([0.0, 5.0, -3.0])
    noise = np.array([[0.1, -0.1, 0.0], [0.0, 0.1, -0.1], [-0.1, 0.0, 0.1]])
    comparison = compare((np.array([[90.0], [93.0], [95.0]]) + seeds + noise).tolist())
    assert comparison is not None
    assert comparison.order == (0, 1, 2)
    assert comparison.is_called
    assert [difference.mean for difference in comparison.differences] == pytest.approx([3, 5])


def test_two_configurations_are_compared_as_by_a_paired_t_test() -> None:
    comparison = compare([[10.0, 11.0, 12.0, 13.0], [10.5, 12.0, 12.1, 14.0]])
    assert comparison is not None
    gaps = np.array([0.5, 1.0, 0.1, 1.0])
    half = 4.1765 * gaps.std(ddof=1) / 2  # t(3 degrees, 0.9875): half of the doubt is kept for later looks
    assert comparison.differences[0].low == pytest.approx(gaps.mean() - half, abs=1e-4)


def test_a_noisy_leader_is_not_judged_by_the_calm_ones() -> None:
    calm = [20.0, 20.1, 19.9, 20.0]
    table = np.array([[10.0, 14.0, 12.0, 8.0], [12.0, 9.0, 14.0, 10.0], calm, calm])
    comparison = compare(table.tolist())
    assert comparison is not None
    own = comparison.differences[0]
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    pooled = 2 * float((rest**2).sum()) / 9
    variance = float((table[1] - table[0]).var(ddof=1))
    assert variance > 1.2 * pooled
    # t(9 degrees) at 1 - 0.025 / 3 / 2
    assert own.high - own.mean == pytest.approx(3.3642 * math.sqrt(variance / 4), rel=1e-3)


def test_each_further_look_has_half_of_the_doubt() -> None:
    values = [[10.0, 11.0, 12.0, 13.0], [10.5, 12.0, 12.1, 14.0]]
    halves = []
    for looks in (1, 2, 3):
        comparison = compare(values, looks=looks)
        assert comparison is not None
        halves.append(comparison.differences[0].high - comparison.differences[0].mean)
    # t(3 degrees) at 1 - 0.05 / 4, 1 - 0.05 / 8 and 1 - 0.05 / 16.
    assert np.array(halves) / halves[0] == pytest.approx(np.array([4.1765, 5.3920, 6.8952]) / 4.1765, rel=1e-3)


@pytest.mark.parametrize("values", [[[1.0, 2.0]], [[1.0], [2.0]], []])
def test_one_seed_or_one_configuration_says_nothing(values: list[list[float]]) -> None:
    assert compare(values) is None


def test_the_expected_best_is_the_mean_over_all_choices() -> None:
    draws = Draws((4.0, 1.0, 2.0))
    assert draws.expected_best(1) == pytest.approx(7 / 3)
    assert draws.expected_best(2) == pytest.approx((1 + 2 + 1) / 3)
    assert draws.expected_best(3) == 1.0
    assert draws.chance_below(2.0, 2) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="from 1 to 3"):
        draws.expected_best(4)


@pytest.mark.parametrize("budget", [1, 6, 12])
def test_the_band_covers_the_truth_in_half_of_all_cases_up_to_half_of_the_trials(budget: int) -> None:
    rng = np.random.default_rng(budget)
    truth = -math.log(1 - (1 - 0.5 ** (1 / budget)))  # of an exponential distribution
    bands = [Draws(tuple(rng.exponential(size=24))).band(budget) for _ in range(1500)]
    covered = sum(band is not None and band[0] <= truth <= band[1] for band in bands)
    assert abs(covered / 1500 - 0.5) < 0.05


@pytest.mark.parametrize("budget", [0, 13, 24])
def test_no_band_is_drawn_beyond_half_of_the_trials(budget: int) -> None:
    assert Draws(tuple(float(n) for n in range(24))).band(budget) is None


def test_the_interval_of_a_difference_is_welchs() -> None:
    one, other = [21.0, 22.5, 23.0], [20.0, 20.1, 20.4, 19.8, 20.2]
    found = difference_interval(one, other)
    wanted = scipy.stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    apart = difference_interval(one, other, comparisons=2)
    wanted = scipy.stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.975)
    assert (apart.low, apart.high) == pytest.approx((wanted.low, wanted.high))
