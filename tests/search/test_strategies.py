"""Samplers and pruners as the design sets them."""

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import RandomSampler, TPESampler

from lmsearch.search.gaussian import propose
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


def learned(spec: StudySpec, ticket: int, curves: dict[float, list[float]], running: Any = None) -> Any:
    """Draw a ticket's point by `gp` after trials whose `model.output_dropout` had such curves of perplexity."""
    study = optuna.create_study()
    space = {path: distribution(value) for path, value in spec.open.items()}
    base: dict[str, Any] = {"model.tie_weights": True, "train.learning_rate": 0.01}

    def add(point: dict[str, Any], **rest: Any) -> None:
        params = base | point
        study.add_trial(optuna.trial.create_trial(params=params, distributions=space, **rest))

    for dropout, curve in curves.items():
        values = dict(enumerate(curve, 1))
        whole = len(curve) == spec.epochs
        state = optuna.trial.TrialState.COMPLETE if whole else optuna.trial.TrialState.RUNNING
        add(
            {"model.output_dropout": dropout},
            state=state,
            intermediate_values=values,
            value=min(curve) if whole else None,
        )
    if running is not None:
        add(running, state=optuna.trial.TrialState.RUNNING)
    study.sampler = make_sampler(spec, "gp", ticket)
    return suggest(study.ask(), spec)


def falling(worth: float, epochs: int) -> list[float]:
    return [worth * (1 + 0.5 / (epoch + 1)) for epoch in range(epochs)]


def test_gp_starts_on_the_sobol_sequence_and_then_goes_where_curves_promise_most(tmp_path: Path) -> None:
    spec = spec_with(tmp_path, "gp", epochs=8)
    low, high = map(float, spec.open["model.output_dropout"].ends())
    assert draw(spec, 3, "gp") == draw(spec, 3, "qmc")
    dropouts = [low + (high - low) * place / 10 for place in range(11)]
    best = dropouts[7]
    # Half of the trials are complete, the others have run for three epochs: all of them tell.
    curves = {d: falling(20 + 40 * (d - best) ** 2, 8 if place % 2 else 3) for place, d in enumerate(dropouts)}
    proposed = [learned(spec, ticket, curves) for ticket in range(20, 28)]
    assert learned(spec, 20, curves) == proposed[0]
    assert sum(abs(point["model.output_dropout"] - best) < 0.15 * (high - low) for point in proposed) >= 6
    assert learned(spec, 31, curves) == draw(spec, 31, "qmc")  # one in sixteen looks anywhere
    # A trial that is just starting there sends the next one elsewhere.
    assert learned(spec, 20, curves, running=proposed[0]) != proposed[0]


def test_gp_takes_as_long_with_thousands_of_trials_as_with_hundreds(tmp_path: Path) -> None:
    spec = spec_with(tmp_path, "gp", epochs=8)
    rng = np.random.default_rng(0)
    points = [{path: value.from_share(float(rng.random())) for path, value in spec.open.items()} for _ in range(3000)]
    values = np.array([(float(point["model.output_dropout"]) - 0.4) ** 2 for point in points])  # type: ignore[arg-type]
    proposed = propose(spec, points, values, np.full(3000, 0.01), [], rng)
    assert abs(float(proposed["model.output_dropout"]) - 0.4) < 0.05  # type: ignore[arg-type]


def test_gp_takes_what_it_is_given(tmp_path: Path) -> None:
    spec = spec_with(tmp_path, "gp", extra="[sampler]\nn_startup_trials = 0\n", epochs=8)
    one = {0.1: falling(20.0, 8)}
    assert spec.check_point(learned(spec, 1, one)) and spec.check_point(learned(spec, 1, {}))
    odd = {0.1: falling(20.0, 8), 0.2: [0.0, -1.0, float("inf")], 0.15: falling(20.0, 8), 0.12: [3.0]}
    assert spec.check_point(learned(spec, 5, odd))
    closed = spec_with(tmp_path, "gp").text
    for path in ("output_dropout", "tie_weights", "learning_rate"):
        closed = "\n".join(line for line in closed.splitlines() if not line.startswith(path + " ="))
    assert draw(make_spec(tmp_path, closed), 9, "gp") == {}


PRIOR = """
[prior]
"model.output_dropout" = { at = 0.15, spread = 0.05 }
"train.learning_rate" = 0.012
"model.tie_weights" = { at = true, spread = 0.1 }
"""


@pytest.mark.parametrize("sampler", ["gp", "tpe"])
def test_half_of_a_start_design_is_around_the_prior(tmp_path: Path, sampler: str) -> None:
    spec = spec_with(tmp_path, sampler, extra=PRIOR + "[sampler]\nn_startup_trials = 40\n")
    first = draw(spec, 0, sampler)
    assert first == {"model.tie_weights": True, "model.output_dropout": 0.15, "train.learning_rate": 0.012}
    value = spec.open["model.output_dropout"]
    near = [value.share_of(draw(spec, ticket, sampler)["model.output_dropout"]) for ticket in range(2, 40, 2)]
    assert len(set(near)) == len(near) and all(abs(share - value.share_of(0.15)) < 0.2 for share in near)
    ties = [draw(spec, ticket, sampler)["model.tie_weights"] for ticket in range(2, 40, 2)]
    assert 14 <= sum(ties) <= 19
    without = spec_with(tmp_path, sampler, extra="[sampler]\nn_startup_trials = 40\n")
    for ticket in [*range(1, 40, 2), 40, 42]:
        assert draw(spec, ticket, sampler) == draw(without, ticket, sampler)
    for other in ("random", "qmc", "grid"):
        assert draw(spec, 2, other) == draw(without, 2, other)


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
    assert (asha._min_resource, asha._reduction_factor) == (4, 2)
    stopping = make_pruner(spec_with(tmp_path, pruner="asha", extra="[pruner]\npromote = false\n"), "asha")
    assert isinstance(stopping, SuccessiveHalvingPruner) and stopping._reduction_factor == 3
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
