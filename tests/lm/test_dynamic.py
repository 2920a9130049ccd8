"""Dynamic evaluation: its update written out, no word predicted with weights that have seen it, the model unchanged."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lmsearch.lm.model import LanguageModel
from lmsearch.lm.use.cache import losses_with, read_text
from lmsearch.lm.use.dynamic import DynamicConstants, GradientScales, gradient_scales, read_text_dynamically
from lmsearch.lm.use.trained import TrainedModel
from lmsearch.search.tune import tune, tune_dynamic
from tests.factories import make_corpus, make_run

CONSTANTS = DynamicConstants(learning_rate=2e-3, decay=0.05, segment=5)


@pytest.fixture(params=[{}, {"model__decoder": "adaptive"}, {"model__cell": "mogrifier", "model__mogrifier_rank": 0}])
def trained(request: Any) -> TrainedModel:
    torch.manual_seed(1)
    config = make_run(model__init_range=0.8, **request.param)
    return TrainedModel(LanguageModel(config.model, 12).eval(), make_corpus().vocabulary, config, {})


@pytest.fixture
def scales(trained: TrainedModel) -> GradientScales:
    return gradient_scales(trained, make_corpus(tokens=400).train.tokens, 5)


def test_the_update_is_the_papers(trained: TrainedModel, scales: GradientScales) -> None:
    tokens = make_corpus(tokens=40, seed=3).train.tokens
    found = read_text_dynamically(trained, tokens, CONSTANTS, scales)
    model = copy.deepcopy(trained.model)
    first = [parameter.detach().clone() for parameter in model.parameters()]
    mean = sum(root.sum() for root in scales.root_mean_squares) / sum(r.numel() for r in scales.root_mean_squares)
    states, losses = model.initial_states(1), []
    tokens_N = torch.from_numpy(tokens.astype(np.int64))
    for start in range(0, 39, 5):
        block = tokens_N[start : start + 6][:, None]
        features = model.features(block[:-1], states)
        states = [(hidden.detach(), cell.detach()) for hidden, cell in features.states]
        loss_N = nn.functional.cross_entropy(model.decoder(features.raw_TBH)[:, 0], block[1:, 0], reduction="none")
        losses += loss_N.tolist()
        gradients = torch.autograd.grad(loss_N.mean(), list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient, root, began in zip(
                model.parameters(), gradients, scales.root_mean_squares, first, strict=True
            ):
                back = (0.05 * root / mean).clamp(max=1)
                parameter.add_(back * (began - parameter) - 2e-3 * gradient / (root + 1e-3))
    assert found.losses_N.tolist() == pytest.approx(losses, abs=2e-4)


def test_the_scales_are_root_mean_squares_of_gradients_over_the_training_text(trained: TrainedModel) -> None:
    tokens = make_corpus(tokens=60).train.tokens  # 6 columns of 10 rows, of which one block of 5 has its next words
    scales = gradient_scales(trained, tokens, 5)
    columns = torch.from_numpy(tokens.astype(np.int64)).view(6, 10).t()
    features = trained.model.features(columns[:5], trained.model.initial_states(6))
    gradients = torch.autograd.grad(
        trained.model.loss(features.raw_TBH, columns[1:6]), list(trained.model.parameters())
    )
    for root, gradient in zip(scales.root_mean_squares, gradients, strict=True):
        torch.testing.assert_close(root, gradient.abs())


def test_later_words_change_no_earlier_probability(trained: TrainedModel, scales: GradientScales) -> None:
    tokens = make_corpus(tokens=60, seed=3).train.tokens
    before = read_text_dynamically(trained, tokens, CONSTANTS, scales).losses_N
    for place in (33, 34, 36):
        changed = tokens.copy()
        changed[place:] = (changed[place:] + 1) % 12
        after = read_text_dynamically(trained, changed, CONSTANTS, scales).losses_N
        assert torch.equal(after[: place - 1], before[: place - 1])
        assert not torch.equal(after[place - 1 :], before[place - 1 :])


def test_it_is_deterministic_leaves_the_model_and_is_the_plain_evaluation_where_nothing_is_learnt(
    trained: TrainedModel, scales: GradientScales
) -> None:
    tokens = make_corpus(tokens=200, seed=3).train.tokens
    weights = {name: weight.clone() for name, weight in trained.model.weights().items()}
    once, again = (read_text_dynamically(trained, tokens, CONSTANTS, scales).losses_N for _ in range(2))
    assert torch.equal(once, again)
    assert all(torch.equal(weights[name], weight) for name, weight in trained.model.weights().items())
    nothing = DynamicConstants(learning_rate=0.0, decay=0.05, segment=7)
    plain = read_text(trained, tokens).losses_N
    found = read_text_dynamically(trained, tokens, nothing, scales).losses_N
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)


def test_it_gains_where_a_text_repeats_itself_alone_and_with_a_cache(
    trained: TrainedModel, scales: GradientScales
) -> None:
    tokens = np.tile(np.random.default_rng(3).integers(0, 12, 40), 15).astype(np.int32)
    heard: list[float] = []
    constants = tune_dynamic(
        lambda tried: float(read_text_dynamically(trained, tokens, tried, scales).losses_N.mean()),
        5,
        8,
        0,
        lambda number, loss: heard.append(loss),
    )
    read = read_text_dynamically(trained, tokens, constants, scales)
    plain = float(read_text(trained, tokens).losses_N.mean())
    assert float(read.losses_N.mean()) == min(heard) < plain - 0.05
    cache = tune(read, 8, 0, lambda number, loss: None).constants
    assert losses_with(cache, read)[0] < min(heard)
