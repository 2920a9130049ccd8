"""What a search would cost: which points are looked at, what is measured, and what is refused."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lmsearch.lm.events import Event
from lmsearch.lm.train import train
from lmsearch.search import measure as measuring
from lmsearch.search.measure import measure
from lmsearch.search.plan import space_points
from tests.conftest import Cli
from tests.factories import TINY_STUDY, make_corpus, make_run, make_spec, write_study

SIZES = TINY_STUDY.replace("hidden_size = 6", "hidden_size = { low = 4, high = 64, log = true }").replace(
    "num_layers = 1", "num_layers = 2"
)


def test_each_end_that_costs_otherwise_is_a_point_and_no_other(tmp_path: Path) -> None:
    points = {point.what: point.parameters for point in space_points(make_spec(tmp_path, SIZES), 14)}
    # Rates and dropout cost nothing; a middle choice is the second of two.
    assert set(points) == {"smallest", "model.hidden_size = 4", "model.tie_weights = true", "middle", "largest"}
    assert sorted(points.values()) == list(points.values())
    spec = make_spec(tmp_path, SIZES)
    smallest = spec.close({"model.hidden_size": 4, "model.tie_weights": True, "model.output_dropout": 0.0,
                           "train.learning_rate": 0.01}, 14)  # fmt: skip
    assert points["smallest"] == smallest.model.count_parameters(14)


@pytest.mark.slow
def test_the_plan_is_measured_and_says_how_long(cli: Cli, tmp_path: Path) -> None:
    write_study(tmp_path)
    said = cli("plan", "tiny.toml", "--workers", "2", "--trials", "10", "--json")
    assert said.returncode == 0, said.stderr
    document = json.loads(said.stdout)
    assert (document["trials"], document["epochs"], document["workers"]) == (10, 3, 2)
    for point in document["points"]:
        assert point["tokens_per_second"] > 0 and point["memory"] > 50e6
        assert point["checkpoint"] >= 3 * point["weights"] > 3 * 4 * point["parameters"] * 0.9  # Adam keeps two more
    middle = next(point for point in document["points"] if point["what"] == "middle")
    assert document["hours"] == 10 / 2 * 3 * middle["epoch_seconds"] / 3600
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_space_with_a_point_that_cannot_run_is_refused(cli: Cli, tmp_path: Path) -> None:
    write_study(tmp_path, TINY_STUDY.replace("hidden_size = 6", "hidden_size = { low = 6, high = 900000 }").replace(
        "num_layers = 1", "num_layers = 2"))  # fmt: skip
    said = cli("plan", "tiny.toml", "--workers", "1")
    assert said.returncode == 2
    assert "hidden_size 450003" in said.stderr or "hidden_size 900000" in said.stderr
    assert "cannot run here" in said.stderr
    said = cli("plan", "tiny.toml", "--sampler", "grid")
    assert (said.returncode, "model.hidden_size is open without a grid" in said.stderr) == (2, True)


def test_steps_that_only_warm_up_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow_to_begin(*args: Any) -> Iterator[Event]:
        for number, event in enumerate(train(*args)):
            time.sleep(0.3 if number < 2 else 0)  # as on a GPU, longer than all that is measured
            yield event

    monkeypatch.setattr(measuring, "train", slow_to_begin)
    monkeypatch.setattr(measuring, "_SECONDS", (0.0, 0.2))
    corpus = make_corpus(4_000)
    found = measure(make_run(), corpus, torch.device("cpu"))
    assert found["tokens_per_second"] > 300 and found["free"] is None
    # A text of fewer steps than are awaited is measured with all its steps.
    assert measure(make_run(), make_corpus(30), torch.device("cpu"))["tokens_per_second"] < 1000
