"""The same on a real GPU: only where there is one (`python -m pytest -m gpu -n 0`)."""

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from lmsearch.config import RunConfig
from lmsearch.lm.device import open_device
from lmsearch.lm.events import Epoch, Step, TrainState
from lmsearch.lm.memory import begin_measuring, is_out_of_memory, peak_memory
from lmsearch.lm.model import LanguageModel
from lmsearch.lm.train import train
from lmsearch.lm.use.cache import cache_probabilities, read_text
from lmsearch.lm.use.generate import Sampling, generate
from lmsearch.lm.use.trained import TrainedModel
from lmsearch.search.measure import measure
from tests.factories import make_corpus, make_run

pytestmark = pytest.mark.gpu
CPU = torch.device("cpu")
REGULARISED: dict[str, Any] = {
    "train__activation_reg": 1.0,
    "train__temporal_activation_reg": 1.0,
    "train__weight_decay": 1e-4,
    "train__variable_bptt": True,
    "model__num_layers": 2,
    "model__embedding_dropout": 0.1,
    "model__input_dropout": 0.1,
    "model__hidden_dropout": 0.1,
    "model__output_dropout": 0.1,
    "model__weight_dropout": 0.3,
}


@pytest.fixture
def cuda() -> torch.device:
    return open_device("cuda")


def losses(config: RunConfig, device: torch.device, state: TrainState | None = None) -> list[float]:
    events = train(config, make_corpus(), device, state)
    return [event.valid_loss for event in events if isinstance(event, Epoch)]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "nt-asgd"])
def test_a_gpu_reaches_what_the_cpu_reaches(optimizer: str, cuda: torch.device) -> None:
    config = make_run(train__optimizer=optimizer, train__epochs=3, model__num_layers=2, train__nonmono=1)
    assert losses(config, cuda) == pytest.approx(losses(config, CPU), rel=1e-3)


@pytest.mark.parametrize("shuffle", [True, False])
def test_nothing_is_waited_for_and_nobody_is_warned_inside_an_epoch(shuffle: bool, cuda: torch.device) -> None:
    config = make_run(**REGULARISED, data__shuffle_articles=shuffle, train__epochs=1)
    kinds = [event.step for event in train(config, make_corpus(), CPU) if isinstance(event, Step)]
    trained = kinds[-1]  # the steps after these are blocks of the evaluation
    events = train(config, make_corpus(), cuda)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        for number in range(len(kinds)):
            begins = number in (0, trained)  # tokens are moved there, or the clock is read
            torch.cuda.set_sync_debug_mode("default" if begins else "error")
            try:
                assert isinstance(next(events), Step)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert isinstance(next(events), Epoch)


def test_a_training_goes_on_from_its_state(cuda: torch.device) -> None:
    config = make_run(**REGULARISED, train__epochs=3)
    for stop in (3, 9, 20):
        event = next(itertools.islice(train(config, make_corpus(), cuda), stop, None))
        state = TrainState.from_bytes(event.state().to_bytes())
        on_gpu, whole = losses(config, cuda, state), losses(config, cuda)
        assert on_gpu == pytest.approx(whole[-len(on_gpu) :], rel=1e-4)


@pytest.mark.parametrize("there", ["cpu", "cuda"])
def test_a_training_goes_on_on_another_kind_of_device(there: str, cuda: torch.device) -> None:
    """Its masks are other ones from there on, and the rest the same."""
    config = make_run(**REGULARISED, train__epochs=3)
    first_device, other = (CPU, cuda) if there == "cuda" else (cuda, CPU)
    event = next(itertools.islice(train(config, make_corpus(), first_device), 9, None))
    state = TrainState.from_bytes(event.state().to_bytes())
    found = losses(config, other, state)
    assert len(found) in (2, 3)
    assert found[-1] == pytest.approx(losses(config, first_device)[-1], rel=0.05)


def test_memory_that_runs_out_is_recognised_and_can_be_used_again(cuda: torch.device) -> None:
    config = make_run(model__hidden_size=4096, model__num_layers=2)
    begin_measuring(cuda)
    torch.cuda.set_per_process_memory_fraction(100 * 2**20 / torch.cuda.mem_get_info(cuda)[1], cuda)
    try:
        with pytest.raises(RuntimeError) as caught:
            losses(config, cuda)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, cuda)
    assert is_out_of_memory(caught.value)
    del caught
    begin_measuring(cuda)
    assert len(losses(make_run(), cuda)) == 2
    assert 0 < peak_memory(cuda) < 50 * 2**20


def test_what_is_measured_before_a_search_is_what_an_epoch_then_takes(cuda: torch.device) -> None:
    config, corpus = make_run(model__hidden_size=400, train__bptt=70, train__batch_size=20), make_corpus(200_000)
    found = measure(config, corpus, cuda)
    first, second = (event for event in train(config, corpus, cuda) if isinstance(event, Epoch))
    assert found["epoch_seconds"] == pytest.approx(second.seconds, rel=0.5), first.seconds
    assert peak_memory(cuda) < found["memory"] < found["free"]


def test_a_trained_model_says_there_what_it_says_here(cuda: torch.device) -> None:
    config, corpus = make_run(**REGULARISED), make_corpus(1_000)
    (*_, last) = train(config, corpus, cuda)
    assert isinstance(last, Epoch)
    here, there = (LanguageModel(config.model, len(corpus.vocabulary)) for _ in range(2))
    here.set_weights(last.weights())
    there.set_weights(last.weights())
    models = [TrainedModel(model, corpus.vocabulary, config, {}) for model in (here, there.to(cuda))]
    said = list(_said(models[0], corpus.valid.tokens)), list(_said(models[1], corpus.valid.tokens))
    for a, b in zip(*said, strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-3, atol=2e-3)
    greedy = [list(itertools.islice(_words(model), 20)) for model in models]
    assert greedy[0] == greedy[1]


def _said(trained: TrainedModel, tokens: Any) -> Iterator[Any]:
    yield trained.log_probabilities([f"w{n % 10}" for n in range(40)])
    yield trained.measure(tokens).loss
    yield next(trained.next_word(np.arange(10).reshape(2, 5)))
    yield cache_probabilities(read_text(trained, tokens), 20, 0.5).cpu().numpy()


def _words(trained: TrainedModel) -> Iterator[str]:
    return generate(trained.model, trained.vocabulary, 1, Sampling(temperature=0))
