"""The continuous cache against its formula, written out for one position after the other."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from lmsearch.lm.model import LanguageModel
from lmsearch.lm.use.cache import (
    CacheConstants,
    ReadText,
    best_weight,
    cache_probabilities,
    mixed_loss,
    next_word_with_cache,
    read_text,
)
from lmsearch.lm.use.trained import TrainedModel
from lmsearch.search.tune import tune
from tests.factories import make_corpus, make_run


@pytest.fixture
def trained() -> TrainedModel:
    torch.manual_seed(1)
    config = make_run(model__init_range=0.8)
    return TrainedModel(LanguageModel(config.model, 12).eval(), make_corpus().vocabulary, config, {})


def by_hand(text: ReadText, position: int, window: int, theta: float) -> list[float]:
    """Give the cache's distribution at one position, word by word."""
    behind = range(max(0, position - window), position)
    scores = [math.exp(theta * float(text.features_NH[position] @ text.features_NH[i])) for i in behind]
    shares = [0.0] * 12
    for i, score in zip(behind, scores, strict=True):
        shares[int(text.targets_N[i])] += score / sum(scores)
    return shares


@pytest.mark.parametrize(("window", "theta"), [(1, 1.0), (7, 0.3), (100, 2.0), (10_000, 0.05)])
def test_the_cache_is_its_formula_and_the_mixture_sums_to_one(trained: TrainedModel, window: int, theta: float) -> None:
    text = read_text(trained, make_corpus(tokens=600).train.tokens)
    found = cache_probabilities(text, window, theta)
    constants = CacheConstants(window=window, theta=theta, weight=0.3)
    for position in (0, 1, 2, 50, 255, 256, 257, 598):
        shares = by_hand(text, position, window, theta) if position else [0.0] * 12
        target = int(text.targets_N[position])
        assert float(found[position]) == pytest.approx(shares[target], abs=1e-5)
        mixture = next_word_with_cache(trained, text, position, constants)
        assert float(mixture.sum()) == pytest.approx(1.0, abs=1e-5) and float(mixture.min()) >= 0
        weight = 0.3 if position else 0.0
        own = math.exp(-float(text.losses_N[position]))
        assert float(mixture[target]) == pytest.approx(weight * shares[target] + (1 - weight) * own, abs=1e-5)


def test_a_text_is_read_once_as_it_is_evaluated(trained: TrainedModel) -> None:
    tokens = make_corpus(tokens=1_500).train.tokens
    text = read_text(trained, tokens)
    assert len(text.targets_N) == 1_499 and text.features_NH.shape == (1_499, 6)
    loss = float(text.losses_N.mean())
    assert loss == pytest.approx(trained.measure(tokens).loss, rel=1e-6)
    assert mixed_loss(text, torch.zeros(1_499), 0.0) == pytest.approx(loss, rel=1e-6)


def test_the_best_weight_is_that_of_a_fine_grid(trained: TrainedModel) -> None:
    text = read_text(trained, make_corpus(tokens=800).train.tokens)
    cache = cache_probabilities(text, 200, 0.1)
    losses = [mixed_loss(text, cache, weight) for weight in np.linspace(0, 0.999, 1_000)]
    assert mixed_loss(text, cache, best_weight(text, cache)) <= min(losses) + 1e-9
    assert best_weight(text, torch.zeros_like(cache)) == pytest.approx(0, abs=1e-9)


def repeating(period: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    rng = np.random.default_rng(3)
    return np.tile(rng.integers(0, 12, period), 12).astype(np.int32)


@pytest.mark.parametrize("tokens", [repeating(60), make_corpus(tokens=700).train.tokens], ids=["repeating", "random"])
def test_tuning_finds_a_cache_where_the_text_repeats_itself_and_leaves_it_out_where_it_does_not(
    trained: TrainedModel, tokens: np.ndarray[tuple[int], np.dtype[np.int32]]
) -> None:
    losses: list[float] = []
    tell: Callable[[int, float], None] = lambda number, loss: losses.append(loss)  # noqa: E731
    found = tune(read_text(trained, tokens), trials=12, seed=0, tell=tell)
    assert len(losses) == 12 and found.loss == min(losses) and found.loss <= found.loss_without + 1e-9
    assert 20 <= found.constants.window < len(tokens)
    if len(tokens) == 720:
        assert found.loss < found.loss_without - 0.05 and found.constants.weight > 0.2
    again = tune(read_text(trained, tokens), trials=12, seed=0, tell=lambda number, loss: None)
    assert again == found
