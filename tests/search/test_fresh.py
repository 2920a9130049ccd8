"""A small space is gone through without repetitions, and what repeats is reported."""

import json
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from lmsearch.search.fresh import FreshPoints, draws_fresh_points, values_of
from lmsearch.search.plan import points_remark
from lmsearch.search.strategies import make_sampler, suggest
from lmsearch.space import Choice, FloatRange, IntRange
from lmsearch.study.reading import parse_study
from lmsearch.study.spec import StudySpec
from tests.conftest import Cli
from tests.factories import TINY_STUDY, write_corpus

SMALL = """
format = 1
[study]
trials = 14
[data]
corpus = "python-docs"
[model]
output_dropout = { low = 0.1, high = 0.5, step = 0.1 }
tie_weights = { choices = [true, false] }
[train]
batch_size = { low = 10, high = 20, step = 10 }
"""


def searched(spec: StudySpec, sampler: str, trials: int, seed: int = 0) -> list[tuple[object, ...]]:
    study = optuna.create_study()
    found: list[tuple[object, ...]] = []
    for ticket in range(trials):
        study.sampler = make_sampler(spec, sampler, ticket)
        trial = study.ask()
        params = suggest(trial, spec)
        assert spec.check_point(params) == params
        found.append(tuple(params.values()))
        study.tell(trial, 1.0 + len(found) % 7 + seed)
    return found


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_no_point_is_tried_twice_while_others_are_left(sampler: str, tmp_path: Path) -> None:
    spec = parse_study(SMALL, tmp_path)
    assert spec.count_points() == 20 and draws_fresh_points(spec)
    found = searched(spec, sampler, 23)
    assert len(set(found[:20])) == 20
    assert set(found[20:]) <= set(found[:20])
    assert searched(spec, sampler, 12) == found[:12]  # with one worker the same trials each time


def test_values_that_running_and_stopped_trials_have_count_and_those_of_failed_ones_do_not(tmp_path: Path) -> None:
    spec = parse_study(SMALL.replace("step = 10 }", "step = 10 }\n[[manual]]\n'model.tie_weights' = true\n"), tmp_path)
    study = optuna.create_study()
    for state in (TrialState.PRUNED, TrialState.FAIL, None):
        study.sampler = make_sampler(spec, "random", 0)  # the same draw each time
        trial = study.ask()
        point = tuple(suggest(trial, spec).values())
        if state is TrialState.PRUNED:
            first = point
        assert (point == first) == (state is TrialState.PRUNED)
        if state is not None:
            study.tell(trial, state=state)


def test_fixed_values_and_open_ranges_are_left_to_the_sampler(tmp_path: Path) -> None:
    spec = parse_study(SMALL, tmp_path)
    assert isinstance(make_sampler(spec, "tpe", 0), FreshPoints)
    assert not isinstance(make_sampler(spec, "tpe", 0, {"model.tie_weights": True}), FreshPoints)
    wide = parse_study(SMALL.replace(", step = 0.1", ""), tmp_path)
    assert wide.count_points() is None and not isinstance(make_sampler(wide, "tpe", 0), FreshPoints)


def test_the_points_of_a_value_are_counted_and_listed() -> None:
    for value, count in (
        (IntRange(low=1, high=9, step=4), 3),
        (FloatRange(low=0.0, high=0.5, step=0.1), 6),
        (Choice(choices=("adam", "sgd")), 2),
    ):
        assert value.count() == count == len(values_of(value))
        assert all(value.contains(one) for one in values_of(value))
    assert FloatRange(low=0.0, high=0.5).count() is None


def test_plan_says_how_many_points_there_are(tmp_path: Path) -> None:
    spec = parse_study(SMALL, tmp_path)
    assert "the space has 20; none is tried twice" in points_remark(spec, 14)
    assert "10 of 30 trials will repeat one" in points_remark(spec, 30)
    assert points_remark(parse_study(SMALL.replace(", step = 0.1", ""), tmp_path), 30) == ""


@pytest.mark.slow
def test_repetitions_are_counted_in_the_report_and_failed_trials_can_all_be_tried_again(
    tmp_path: Path, cli: Cli
) -> None:
    write_corpus(tmp_path / "corpus")
    text = TINY_STUDY.replace("{ low = 0.0, high = 0.5, grid = [0.1, 0.2] }", "0.1")
    text = text.replace("{ low = 1e-3, high = 1e-1, log = true, grid = [0.01] }", "0.01").replace(
        "trials = 3", "trials = 4"
    )
    (tmp_path / "tiny.toml").write_text(text)
    ran = cli("run", "tiny.toml", "--workers", "1", "--json")
    assert ran.returncode == 0, ran.stderr
    assert cli("report", "tiny").returncode == 0
    assert "2 of 4 trials repeat the values of another" in (tmp_path / "runs/tiny/report.html").read_text()
    none = cli("retry", "tiny", "--failed")
    assert none.returncode == 2 and "no failed trial" in none.stderr
    assert cli("retry", "tiny").returncode == 2 and cli("retry", "tiny", "0", "--failed").returncode == 2


@pytest.mark.slow
def test_failed_trials_are_tried_again_once_each(tmp_path: Path, cli: Cli) -> None:
    write_corpus(tmp_path / "corpus")
    (tmp_path / "tiny.toml").write_text(TINY_STUDY)
    assert cli("run", "tiny.toml", "--workers", "1").returncode == 0
    for value in ("0.1", "0.2"):
        assert cli("enqueue", "tiny", f"model.output_dropout={value}").returncode == 0
    # Both end as failed by hand, before a worker has them: they are started by another program's means.
    import sqlite3

    with sqlite3.connect(tmp_path / "runs/lmsearch.db") as store:
        store.execute("UPDATE trials SET state = 'FAIL' WHERE number IN (0, 2)")
    again = cli("retry", "tiny", "--failed")
    assert again.returncode == 0 and "2 trials added to " in again.stdout, again.stderr
    assert cli("retry", "tiny", "--failed").returncode == 2
    ran = cli("worker", "tiny")
    assert ran.returncode == 0, ran.stdout
    listed = json.loads(cli("trials", "tiny", "--sort", "trial", "--json").stdout)
    assert [trial["from"] for trial in listed if trial["from"]] == ["tiny/0", "tiny/2"]
    by_number = {trial["trial"]: trial for trial in listed}
    for trial in listed:
        if trial["from"]:
            assert trial["params"] == by_number[int(trial["from"].partition("/")[2])]["params"]


@pytest.mark.slow
def test_doctor_names_trials_that_optunas_own_queue_has(tmp_path: Path, cli: Cli) -> None:
    write_corpus(tmp_path / "corpus")
    (tmp_path / "tiny.toml").write_text(TINY_STUDY.replace("trials = 3", "trials = 1"))
    assert cli("run", "tiny.toml", "--workers", "1").returncode == 0
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{tmp_path}/runs/lmsearch.db")
    study.enqueue_trial({"model.output_dropout": 0.25})
    said = cli("doctor")
    assert said.returncode == 1 and "lmsearch enqueue tiny model.output_dropout=0.25" in said.stdout, said.stdout
    assert cli("enqueue", "tiny", "model.output_dropout=0.25").returncode == 0
    assert cli("fail", "tiny", "1").returncode == 0
    assert "study.enqueue_trial" not in cli("doctor").stdout
