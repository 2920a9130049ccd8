"""Learning-rate schedules, the moving average of the weights, and lines that are independent."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from lmsearch.config import TrainConfig
from lmsearch.errors import ConfigError
from lmsearch.lm.events import Epoch, Step, TrainState
from lmsearch.lm.model import LanguageModel
from lmsearch.lm.optimizers import scheduled
from lmsearch.lm.train import _Run, train
from lmsearch.lm.use.trained import TrainedModel
from tests.factories import make_corpus, make_run

CPU = torch.device("cpu")


def test_the_rate_rises_in_a_line_and_falls_along_a_cosine_to_zero() -> None:
    constant = TrainConfig(epochs=4)
    assert [scheduled(constant, epochs) for epochs in (0.1, 2, 4)] == [1, 1, 1]
    warm = TrainConfig(epochs=4, warmup_epochs=2)
    assert [scheduled(warm, epochs) for epochs in (0.5, 1, 2, 3)] == [0.25, 0.5, 1, 1]
    cosine = TrainConfig(epochs=4, schedule="cosine")
    assert [scheduled(cosine, epochs) for epochs in (0, 1, 2, 4, 9)] == pytest.approx(
        [1, (1 + math.cos(math.pi / 4)) / 2, 0.5, 0, 0]
    )
    both = TrainConfig(epochs=4, schedule="cosine", warmup_epochs=2)
    assert scheduled(both, 1) == pytest.approx(scheduled(cosine, 1) / 2)


def rates_of(**changes: Any) -> list[float]:
    """Return the learning rate of each step."""
    run = _Run(make_run(**changes), make_corpus(), CPU)
    rates = []
    while not run.finished():
        for _ in run.train_epoch():
            rates.append(run.optimizer.learning_rate)
        list(run.evaluate_epoch())
        run.end_epoch()
    return rates


def test_every_step_has_the_rate_of_its_place_in_the_whole_training() -> None:
    rates = rates_of(train__schedule="cosine", train__warmup_epochs=0.5, train__learning_rate=0.1)
    steps = len(rates)
    expected = [
        0.1 * min(1, 2 * epoch / 0.5 / steps) * (1 + math.cos(math.pi * epoch / steps)) / 2
        for epoch in range(1, steps + 1)
    ]
    assert rates == pytest.approx(expected) and rates[-1] == 0


def test_what_averages_itself_has_neither_schedule_nor_average() -> None:
    for changes in ({"train__ema": 0.9}, {"train__schedule": "cosine"}):
        with pytest.raises(ConfigError, match="does not go with nt-asgd"):
            make_run(train__optimizer="nt-asgd", **changes)


def test_the_moving_average_is_that_of_the_weights_and_is_what_is_evaluated_and_kept() -> None:
    config = make_run(train__ema=0.8, train__epochs=2, train__learning_rate=0.1)
    run = _Run(config, make_corpus(), CPU)
    mean = None
    for steps, _ in enumerate(run.train_epoch(), 1):
        weights = run.model.weights()["embedding.weight"].clone()
        mean = weights if mean is None else mean + max(0.2, 1 / steps) * (weights - mean)
    list(run.evaluate_epoch())
    epoch = run.end_epoch()
    assert mean is not None
    torch.testing.assert_close(epoch.weights()["embedding.weight"], mean)
    assert not torch.allclose(run.model.weights()["embedding.weight"], mean)


@pytest.mark.parametrize(
    "changes",
    [
        {"train__ema": 0.8},
        {"train__schedule": "cosine", "train__warmup_epochs": 0.5},
        {"model__reset_states": True, "train__ema": 0.5, "train__anneal_factor": 4.0},
    ],
)
def test_a_resumed_training_is_the_uninterrupted_one(changes: dict[str, Any]) -> None:
    config = make_run(train__epochs=3, **changes)
    whole = [event for event in train(config, make_corpus(), CPU, None) if isinstance(event, Epoch)]
    stopped = next(itertools.islice(train(config, make_corpus(), CPU, None), 8, None))
    assert isinstance(stopped, Step)
    state = TrainState.from_bytes(stopped.state().to_bytes())
    resumed = [event for event in train(config, make_corpus(), CPU, state) if isinstance(event, Epoch)]
    for name, weight in whole[-1].weights().items():
        assert torch.equal(resumed[-1].weights()[name], weight), name
    assert [e.learning_rate for e in resumed] == [e.learning_rate for e in whole][-len(resumed) :]


@pytest.mark.parametrize("cell", ["lstm", "mogrifier"])
def test_independent_lines_have_the_probabilities_of_each_line_alone(cell: str) -> None:
    torch.manual_seed(1)
    corpus = make_corpus()
    config = make_run(model__reset_states=True, model__cell=cell, model__init_range=0.8, model__num_layers=2)
    model = LanguageModel(config.model, 12, line_end=corpus.vocabulary.index["<eos>"]).eval()
    trained = TrainedModel(model, corpus.vocabulary, config, {})
    lines = [["w1", "w2", "<eos>"], ["w3", "<eos>"], ["<eos>"], ["w1", "w2", "<eos>"]]
    together = trained.log_probabilities([word for line in lines for word in line])
    alone = np.concatenate([trained.log_probabilities(line) for line in lines])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert together[:3].tolist() == pytest.approx(together[-3:].tolist(), abs=1e-6)
