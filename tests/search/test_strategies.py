"""Samplers and pruners as the design sets them."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import RandomSampler, TPESampler

from lmsearch.search.strategies import make_pruner, make_sampler, suggest
from lmsearch.space import Choice, FloatRange, IntRange
from lmsearch.store.distributions import distribution
from lmsearch.study.spec import StudySpec
from tests.factories import TINY_STUDY, make_spec


def spec_with(
    tmp_path: Path, sampler: str = "tpe", pruner: str = "median", extra: str = "", epochs: int = 40
) -> StudySpec:
    text = TINY_STUDY.replace('"random"', f'"{sampler}"').replace('"none"', f'"{pruner}"')
    return make_spec(tmp_path, text.replace("epochs = 3", f"epochs = {epochs}") + extra)


def test_open_values_are_optunas_distributions() -> None:
    assert distribution(FloatRange(low=1e-3, high=1.0, log=True)) == FloatDistribution(1e-3, 1.0, log=True)
    assert distribution(IntRange(low=35, high=70, step=5)) == IntDistribution(35, 70, step=5)
    assert distribution(Choice(choices=(True, False))) == CategoricalDistribution((True, False))


def draw(spec: StudySpec, ticket: int, sampler: str = "random") -> dict[str, Any]:
    study = optuna.create_study(sampler=make_sampler(spec, sampler, ticket))
    return suggest(study.ask(), spec)


def test_a_tickets_number_decides_its_draw_and_no_two_are_alike(tmp_path: Path) -> None:
    spec = spec_with(tmp_path)
    drawn = [draw(spec, ticket) for ticket in range(40)]
    assert drawn[7] == draw(spec, 7)
    assert len({str(point) for point in drawn}) == 40
    assert all(spec.check_point(point) == point for point in drawn)


def test_another_seed_of_the_study_gives_other_draws(tmp_path: Path) -> None:
    other = make_spec(tmp_path, TINY_STUDY.replace("trials = 3", "trials = 3\nseed = 2"))
    assert draw(make_spec(tmp_path), 0) != draw(other, 0)


def test_tpe_starts_up_with_8_trials_and_grid_and_manual_fill_at_random(tmp_path: Path) -> None:
    spec = spec_with(tmp_path)
    tpe = make_sampler(spec, "tpe", 0)
    assert isinstance(tpe, TPESampler) and tpe._n_startup_trials == 8
    for name in ("grid", "manual", "random"):
        assert isinstance(make_sampler(spec, name, 0), RandomSampler)


def test_a_sobol_sequence_fills_the_space_by_ticket_without_reading_the_store(tmp_path: Path) -> None:
    spec = spec_with(tmp_path)
    drawn = [draw(spec, ticket, "qmc") for ticket in range(64)]
    assert drawn[7] == draw(spec, 7, "qmc") != draw(spec, 8, "qmc")
    assert all(spec.check_point(point) == point for point in drawn)
    for path, value in spec.open.items():
        shares = sorted(value.share_of(point[path]) for point in drawn)
        quarters = [sum(low <= share < low + 0.25 for share in shares) for low in (0.0, 0.25, 0.5, 0.75)]
        assert sum(quarters) == 64 and (max(quarters) <= 17 or value.count() is not None)
    other = make_spec(tmp_path, TINY_STUDY.replace("trials = 3", "trials = 3\nseed = 2"))
    assert draw(other, 7, "qmc") != drawn[7]


def test_the_files_options_go_to_the_strategy_it_names_and_to_no_other(tmp_path: Path) -> None:
    extra = "[sampler]\nn_startup_trials = 3\n[pruner]\nn_warmup_steps = 7\n"
    spec = spec_with(tmp_path, extra=extra)
    tpe, median = make_sampler(spec, "tpe", 0), make_pruner(spec, "median")
    assert isinstance(tpe, TPESampler) and tpe._n_startup_trials == 3
    assert isinstance(median, MedianPruner) and median._n_warmup_steps == 7
    other = make_pruner(spec, "asha")
    assert isinstance(other, SuccessiveHalvingPruner) and other._min_resource == 4


@pytest.mark.parametrize(("epochs", "first"), [(1, 2), (8, 2), (40, 9)])
def test_the_median_waits_for_6_trials_and_a_fifth_of_the_epochs(tmp_path: Path, epochs: int, first: int) -> None:
    pruner = make_pruner(spec_with(tmp_path, epochs=epochs), "median")
    assert isinstance(pruner, MedianPruner)
    assert (pruner._n_startup_trials, pruner._n_warmup_steps) == (6, first)


def test_the_other_pruners_have_the_designs_defaults(tmp_path: Path) -> None:
    spec = spec_with(tmp_path)
    asha, hyperband = make_pruner(spec, "asha"), make_pruner(spec, "hyperband")
    assert isinstance(asha, SuccessiveHalvingPruner) and isinstance(hyperband, HyperbandPruner)
    assert (asha._min_resource, asha._reduction_factor) == (4, 3)
    assert (hyperband._min_resource, hyperband._max_resource, hyperband._reduction_factor) == (1, 40, 3)
    assert isinstance(make_pruner(spec, "none"), NopPruner)


@pytest.mark.parametrize("pruner", ["asha", "hyperband"])
def test_options_of_every_pruner_are_taken(tmp_path: Path, pruner: str) -> None:
    extra = "[pruner]\nmin_resource = 2\nreduction_factor = 4\n"
    made: Any = make_pruner(spec_with(tmp_path, pruner=pruner, extra=extra), pruner)
    assert (made._min_resource, made._reduction_factor) == (2, 4)


def test_after_8_grid_trials_tpes_first_draw_is_no_start_up_draw(tmp_path: Path) -> None:
    spec = spec_with(tmp_path)
    study = optuna.create_study()
    for number, point in enumerate([*spec.grid_points(), *spec.grid_points()]):
        distributions = {path: distribution(spec.open[path]) for path in point}
        value = 1.0 + 10 * point["model.output_dropout"]  # type: ignore[operator]
        trial = optuna.trial.create_trial(params=point, distributions=distributions, value=value + number / 100)
        study.add_trial(trial)
    study.sampler = make_sampler(spec, "tpe", 8)
    proposed = study.ask()
    startup = RandomSampler(seed=0)
    assert startup.infer_relative_search_space(study, study.trials[0]) == {}
    # A start-up draw has no joint model; this one was drawn from one over all open values.
    assert set(proposed.relative_params) == set(spec.open)
