"""A small run of benchmarks/claims.py: what the report says is wrong as seldom as the documentation tells."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def claims() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "claims.py"
    spec = importlib.util.spec_from_file_location("claims", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_winner_is_called_where_there_is_none_in_at_most_one_study_in_twenty(claims: ModuleType) -> None:
    for case, shares in claims.confirm_rates(1000).items():
        for seeds, share in shares.items():
            assert not case.startswith("no winner") or share <= 0.05, (case, seeds, share)
            assert not case.startswith("a winner, 8") or share >= 0.8, (case, seeds, share)


def test_a_range_is_warned_about_where_the_optimum_is_beyond_it_and_hardly_ever_else(claims: ModuleType) -> None:
    inside = sum(claims.simulate_range(seed, 0.3 + 0.02 * seed, 48.0, 1) for seed in range(20))
    beyond = sum(claims.simulate_range(seed, 1.25, 48.0, 1) for seed in range(10))
    below = sum(claims.simulate_range(seed, -0.25, 48.0, 3) for seed in range(10))
    assert inside <= 1 and beyond >= 8 and below >= 8


def test_the_band_covers_the_truth_within_five_points_of_its_level(claims: ModuleType) -> None:
    for case, share in claims.band_rates(1000).items():
        assert abs(share - claims.BAND_LEVEL) <= 0.05, (case, share)
