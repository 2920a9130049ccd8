"""The adaptive softmax against its definition: normalised, exact gradients, the words' order from train alone."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lmsearch.clusters import cut
from lmsearch.errors import ConfigError
from lmsearch.lm.adaptive import AdaptiveDecoder, ranks_of
from lmsearch.lm.events import Epoch, Step, TrainState
from lmsearch.lm.model import LanguageModel
from lmsearch.lm.train import train
from lmsearch.lm.use.model_folder import load_model
from lmsearch.lm.use.trained import TrainedModel
from tests.factories import make_corpus, make_run

CPU = torch.device("cpu")
WORDS = 12
TIED = pytest.mark.parametrize("tied", [True, False])


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def adaptive(tied: bool, cutoffs: Any = (3, 7), **changes: Any) -> Any:
    return make_run(
        model__decoder="adaptive", model__cutoffs=cutoffs, model__tie_weights=tied, model__init_range=1.0, **changes
    )


def make_decoder(tied: bool) -> tuple[AdaptiveDecoder, Tensor, Tensor]:
    """Return a decoder whose every weight is random, features and targets."""
    torch.manual_seed(1)
    ranks = torch.randperm(WORDS)
    decoder = LanguageModel(adaptive(tied).model, WORDS, ranks).decoder
    assert isinstance(decoder, AdaptiveDecoder)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter)
    features = decoder.tail_weight.shape[1]
    return decoder, torch.randn(9, features, requires_grad=True), torch.randint(0, WORDS, (9,))


@TIED
def test_the_probabilities_of_all_words_sum_to_one(tied: bool) -> None:
    decoder, x, _ = make_decoder(tied)
    torch.testing.assert_close(decoder(x).exp().sum(-1), torch.ones(9))


@TIED
def test_loss_and_gradients_are_those_of_the_log_probabilities(tied: bool) -> None:
    decoder, x, targets = make_decoder(tied)
    tensors = [x, *decoder.parameters()]
    (2 * decoder.loss(x, targets, targets)).backward()  # type: ignore[no-untyped-call]
    found = [tensor.grad for tensor in tensors]
    for tensor in tensors:
        tensor.grad = None
    own = -decoder(x)[torch.arange(9), targets]
    torch.testing.assert_close(decoder.losses(x, targets, targets), own.detach())
    torch.testing.assert_close(decoder.loss(x, targets, targets), own.mean())
    (2 * own.mean()).backward()  # type: ignore[no-untyped-call]
    for gradient, tensor in zip(found, tensors, strict=True):
        torch.testing.assert_close(gradient, tensor.grad)


@TIED
def test_a_tail_that_no_row_needs_has_gradients_of_zero(tied: bool) -> None:
    decoder, x, _ = make_decoder(tied)
    common = int((decoder.ranks == 0).nonzero())
    targets = torch.full((9,), common)
    decoder.loss(x, targets, targets).backward()  # type: ignore[no-untyped-call]
    for projection in decoder.projections:
        assert projection.grad is not None and not projection.grad.any()


def test_a_word_in_no_tail_is_told_from_one_in_each() -> None:
    decoder, _, _ = make_decoder(True)
    words = torch.arange(WORDS)
    shortlist, *tails = 3, *decoder.rows_of_tails(words)
    assert [sorted(decoder.ranks[rows].tolist()) for rows in tails] == [[3, 4, 5, 6], [7, 8, 9, 10, 11]]
    assert shortlist == decoder.clusters.shortlist


def test_words_are_ordered_by_their_number_in_the_train_split_alone() -> None:
    assert ranks_of(np.array([2, 2, 0, 3, 3, 2], dtype=np.int32), 5).tolist() == [2, 3, 0, 1, 4]
    corpus = make_corpus()
    for event in train(adaptive(True), corpus, CPU, None):
        if isinstance(event, Epoch):
            assert torch.equal(event.weights()["decoder.ranks"], ranks_of(corpus.train.tokens, WORDS))
            break


@TIED
def test_it_learns_its_text(tied: bool) -> None:
    config = adaptive(tied, train__learning_rate=0.05, train__epochs=3)
    losses = [event.train_loss for event in train(config, make_corpus(), CPU, None) if isinstance(event, Epoch)]
    assert losses[-1] < losses[0] - 0.1 and losses[-1] < np.log(WORDS)


@TIED
def test_a_resumed_training_is_the_uninterrupted_one(tied: bool) -> None:
    config = adaptive(tied, model__weight_dropout=0.2, model__output_dropout=0.2)
    whole = [event for event in train(config, make_corpus(), CPU, None) if isinstance(event, Epoch)]
    stopped = next(itertools.islice(train(config, make_corpus(), CPU, None), 8, None))
    state = TrainState.from_bytes(stopped.state().to_bytes())
    resumed = [event for event in train(config, make_corpus(), CPU, state) if isinstance(event, Epoch)]
    assert [event.valid_loss for event in resumed] == [event.valid_loss for event in whole][-len(resumed) :]
    for name, weight in whole[-1].weights().items():
        assert torch.equal(resumed[-1].weights()[name], weight), name


@TIED
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_it_runs_on_meta_up_to_the_epochs_end(tied: bool, optimizer: str) -> None:
    torch.set_default_dtype(torch.float32)
    config = adaptive(tied, train__optimizer=optimizer)
    steps = 0
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        for event in train(config, make_corpus(), torch.device("meta"), None):
            assert isinstance(event, Step)
            steps += 1
    on_cpu = train(config, make_corpus(), CPU, None)
    assert steps == sum(1 for _ in itertools.takewhile(lambda event: not isinstance(event, Epoch), on_cpu))


@TIED
@pytest.mark.parametrize("cutoffs", [(3,), (3, 7), (1, 2, 3), None])
def test_parameters_are_counted_as_the_model_has_them(tied: bool, cutoffs: Any) -> None:
    config = (
        adaptive(tied, **({} if cutoffs is None else {"cutoffs": cutoffs}))
        if cutoffs
        else make_run(model__decoder="adaptive", model__tie_weights=tied)
    )
    model = LanguageModel(config.model, WORDS)
    assert sum(p.numel() for p in model.parameters()) == config.model.count_parameters(WORDS)


def test_the_cut_with_the_least_work_has_a_fraction_of_the_products_of_a_full_softmax() -> None:
    clusters = cut(33_278, 400, True, None)
    assert clusters.ends[-1] == 33_278 and 100 < clusters.shortlist < 5_000 and 1 <= clusters.tails <= 3
    assert cut(2, 4, True, None).ends == (1, 2)
    with pytest.raises(ConfigError, match="must be below the vocabulary's 12 words"):
        LanguageModel(adaptive(True, cutoffs=(3, 12)).model, WORDS)
    for wrong in ((), (0, 3), (5, 5), (7, 3), (2.5,)):
        with pytest.raises(ConfigError, match=r"model\.cutoffs must be"):
            adaptive(True, cutoffs=wrong)
    with pytest.raises(ConfigError, match="cut an adaptive decoder"):
        make_run(model__cutoffs=(3,))


def saved(folder: Path, tied: bool) -> TrainedModel:
    """Save a trained model and load it again."""
    from lmsearch.lm.lstm import LstmTrainer

    config, corpus = adaptive(tied), make_corpus()
    last = [event for event in train(config, corpus, CPU, None) if isinstance(event, Epoch)][-1]
    LstmTrainer("cpu").save_model(folder, last, config, corpus, {"perplexity": last.valid_perplexity})
    return load_model(folder)


@TIED
def test_a_saved_model_gives_the_same_perplexity_and_predicts_as_it_scores(tied: bool, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    trained = saved(tmp_path / "model", tied)
    corpus = make_corpus()
    found = trained.measure(corpus.valid.tokens).perplexity
    assert found == pytest.approx(trained.metrics["perplexity"], rel=0.05)  # there with columns and a context
    words = [corpus.vocabulary.words[token] for token in (3, 4, 5)]
    after = next(trained.next_word(np.array([[1, 3, 4]])))[0, 5]
    assert trained.log_probabilities(words)[-1] == pytest.approx(after, abs=1e-5)
    assert len(list(trained.generate("", words=5))) == 5


def test_a_model_whose_order_of_words_is_damaged_is_refused(tmp_path: Path) -> None:
    import safetensors.torch

    torch.set_default_dtype(torch.float32)
    saved(tmp_path / "model", True)
    path = tmp_path / "model" / "model.safetensors"
    weights = safetensors.torch.load(path.read_bytes())
    weights["decoder.ranks"][0] = weights["decoder.ranks"][1]
    path.write_bytes(safetensors.torch.save(weights))
    with pytest.raises(ConfigError, match=r"decoder\.ranks is not an order of the words"):
        load_model(tmp_path / "model")
