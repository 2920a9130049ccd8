"""The invariants of AWD-LSTM's model and training, each against an independent computation."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lmsearch.config import DataConfig, RunConfig
from lmsearch.errors import ConfigError
from lmsearch.lm.batches import batchify, draw_windows, evaluation_blocks
from lmsearch.lm.evaluate import evaluate
from lmsearch.lm.events import Epoch, Step, TrainState
from lmsearch.lm.layers import dropout, embed, run_lstm
from lmsearch.lm.model import LanguageModel
from lmsearch.lm.optimizers import PlateauRate, WeightAverage, improves, should_average
from lmsearch.lm.train import _Run, train
from lmsearch.text.readers import TextFolder
from tests.factories import make_corpus, make_run, write_corpus

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_model(words: int = 12, **changes: Any) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(make_run(**changes).model, words)


def run_epochs(config: RunConfig, state: TrainState | None = None, **corpus: Any) -> list[Epoch]:
    events = train(config, make_corpus(**corpus), CPU, state)
    return [event for event in events if isinstance(event, Epoch)]


def steps_of(config: RunConfig, **corpus: Any) -> Iterator[Step]:
    return (event for event in train(config, make_corpus(**corpus), CPU, None) if isinstance(event, Step))


# I1: columns, targets, <eos> after every line.


def test_i1_batchify_lays_contiguous_parts_side_by_side_and_drops_the_tail() -> None:
    tokens = torch.arange(23)
    x = batchify(tokens, 4)
    for t in range(5):
        for b in range(4):
            assert x[t, b] == tokens[b * 5 + t]
    assert x.shape == (5, 4)


def test_i1_every_line_ends_in_eos_blank_ones_too(tmp_path: Any) -> None:
    folder = write_corpus(tmp_path)
    (folder / "train.txt").write_text("a b\n\na\n")
    assert [words for _, words, *_ in TextFolder(folder, DataConfig(corpus="x")).lines("train")] == [
        ["a", "b", "<eos>"],
        ["<eos>"],
        ["a", "<eos>"],
    ]


@pytest.mark.parametrize(("tokens", "batch_size"), [(23, 4), (24, 4), (9, 10), (2, 1), (50, 7)])
def test_i1_evaluation_gives_each_of_n_minus_1_predictions_once(tokens: int, batch_size: int) -> None:
    blocks = evaluation_blocks(torch.arange(tokens), batch_size, bptt=3)
    seen = []
    for number in range(len(blocks)):
        inputs, targets, weights = blocks.block(number)
        for x, y, weight in zip(inputs.flatten(), targets.flatten(), weights.flatten(), strict=True):
            if weight:
                seen.append((int(x), int(y)))
    assert sorted(seen) == [(i, i + 1) for i in range(tokens - 1)]


# I2: variable windows.


def test_i2_windows_follow_the_papers_draw_and_end_as_the_code_does() -> None:
    rng = np.random.default_rng(3)
    windows = draw_windows(rows=5_000, bptt=70, variable=True, rng=rng)
    again = np.random.default_rng(3)
    start = 0
    for window in windows:
        mean = 70 if again.random() < 0.95 else 35
        drawn = max(5, int(again.normal(mean, 5)))
        assert (window.start, window.drawn) == (start, drawn)
        assert window.length == min(drawn, 5_000 - 1 - start) >= 2
        start += drawn
    assert start >= 5_000 - 2


def test_i2_the_mean_length_is_that_measured_on_the_official_code() -> None:
    windows = draw_windows(rows=2_000_000, bptt=70, variable=True, rng=np.random.default_rng(0))
    lengths = np.array([window.drawn for window in windows])
    assert lengths.mean() == pytest.approx(67.74, abs=0.2)
    assert lengths.std() == pytest.approx(9.16, abs=0.3)


@pytest.mark.parametrize("rows", range(3, 40))
def test_i2_no_window_is_too_short_for_a_difference_in_time(rows: int) -> None:
    windows = draw_windows(rows, bptt=5, variable=False, rng=np.random.default_rng(0))
    assert windows and all(window.length >= 2 for window in windows)


# I3: the learning rate follows the drawn length.


def test_i3_the_step_is_scaled_by_the_drawn_length_not_by_the_rows_it_has() -> None:
    changes = {"train.optimizer": "sgd", "train.clip_norm": 0, "train.learning_rate": 0.5, "train.epochs": 1}
    config = make_run(**changes, train__variable_bptt=True, train__bptt=9)
    rng = np.random.default_rng([1, 1])
    window = draw_windows(50, 9, True, rng)[0]
    model = LanguageModel(config.model, 12)
    first = first_step(config, model)
    scale = 0.5 * window.drawn / 9
    for name, parameter in model.named_parameters():
        expected = parameter.detach() - scale * first.gradients[name]
        torch.testing.assert_close(first.after[f"model.{name}"], expected)


class FirstStep:
    """The first step of a training run, and the gradients an independent pass gives for it."""

    def __init__(self, after: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
        self.after = after
        self.gradients = gradients


def first_step(config: RunConfig, model: LanguageModel) -> FirstStep:
    """Take one step; fill `model` with the weights before it, and compute the plain loss's gradients there."""
    corpus = make_corpus()
    torch.manual_seed(config.train.seed)
    model.set_weights(LanguageModel(config.model, len(corpus.vocabulary)).weights())
    after = next(steps_of(config)).state().tensors
    rng = np.random.default_rng([config.train.seed, 1])
    x = batchify(torch.from_numpy(corpus.train.tokens.astype(np.int64)), config.train.batch_size)
    window = draw_windows(len(x), config.train.bptt, config.train.variable_bptt, rng)[0]
    features = model.features(x[: window.length], model.initial_states(config.train.batch_size))
    logits = model.decoder(features.raw_TBH)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), x[1 : window.length + 1].flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    return FirstStep(after, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


# I4: AR on the dropped output, TAR on the raw one, neither in the reported loss.


def test_i4_regularisers_enter_the_gradient_and_not_the_reported_loss() -> None:
    plain = make_run(train__epochs=1, train__learning_rate=1e-12)
    heavy = make_run(train__epochs=1, train__learning_rate=1e-12, train__activation_reg=2.0)
    assert run_epochs(plain)[0].train_loss == pytest.approx(run_epochs(heavy)[0].train_loss, rel=1e-9)


def test_i4_the_objective_is_cross_entropy_plus_ar_plus_tar_as_written() -> None:
    alpha, beta = 2.0, 1.5
    changes = {"train.optimizer": "sgd", "train.clip_norm": 0, "train.learning_rate": 0.1}
    config = make_run(
        **changes,
        model__output_dropout=0.4,
        train__activation_reg=alpha,
        train__temporal_activation_reg=beta,
    )
    corpus = make_corpus()
    torch.manual_seed(config.train.seed)
    model = LanguageModel(config.model, len(corpus.vocabulary)).train()
    x = batchify(torch.from_numpy(corpus.train.tokens.astype(np.int64)), 4)
    masks = generator(config.train.seed)
    features = model.features(x[:7], model.initial_states(4), masks)
    h, dropped = features.raw_TBH, features.dropped_TBH
    changes_in_time = torch.stack([h[t + 1] - h[t] for t in range(6)])
    loss = nn.functional.cross_entropy(model.decoder(dropped).flatten(0, 1), x[1:8].flatten())
    loss = loss + alpha * (dropped**2).mean() + beta * (changes_in_time**2).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    after = next(steps_of(config)).state().tensors
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(after[f"model.{name}"], parameter.detach() - 0.1 * parameter.grad)


# I5: one global norm, weight decay outside it.


def test_i5_sgd_clips_by_one_norm_over_all_weights_and_decays_outside_the_clip() -> None:
    changes = {"train.optimizer": "sgd", "train.clip_norm": 0.01, "train.learning_rate": 0.5}
    config = make_run(**changes, train__weight_decay=0.1)
    model = LanguageModel(config.model, 12)
    first = first_step(config, model)
    norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in first.gradients.values()))
    assert norm > 0.01
    for name, parameter in model.named_parameters():
        before = parameter.detach()
        expected = before - 0.5 * (first.gradients[name] * 0.01 / (norm + 1e-6) + 0.1 * before)
        torch.testing.assert_close(first.after[f"model.{name}"], expected)


# I6: embedding dropout.


def test_i6_embedding_dropout_drops_whole_words_and_rescales_the_others() -> None:
    weight = torch.randn(50, 6)
    tokens = torch.randint(0, 50, (9, 4))
    dropped = embed(tokens, weight, 0.4, generator(5))
    mask = torch.empty(50, 1).bernoulli_(0.6, generator=generator(5))
    torch.testing.assert_close(dropped, (weight * mask / 0.6)[tokens])
    assert 0 < int((mask == 0).sum()) < 50


def test_i6_the_tied_decoder_reads_the_undropped_matrix() -> None:
    model = make_model(model__embedding_dropout=0.9).train()
    features = torch.randn(3, 2, 6)
    targets = torch.randint(0, 12, (3, 2))
    logits = features @ model.embedding.weight.t() + model.decoder.bias
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(model.loss(features, targets), expected)


# I7: locked masks.


def test_i7_a_locked_mask_is_one_for_all_times_and_another_for_each_column_and_window() -> None:
    x = torch.ones(5, 3, 40)
    masks = generator()
    first, second = dropout(x, 0.5, True, masks), dropout(x, 0.5, True, masks)
    assert all(torch.equal(first[t], first[0]) for t in range(5))
    assert not torch.equal(first[:, 0], first[:, 1])
    assert not torch.equal(first, second)
    assert set(first.unique().tolist()) == {0.0, 2.0}


def test_i7_ordinary_dropout_draws_for_each_time() -> None:
    dropped = dropout(torch.ones(5, 3, 40), 0.5, False, generator())
    assert not torch.equal(dropped[0], dropped[1])


@pytest.mark.parametrize("place", ["input", "hidden", "output"])
def test_i7_dropout_acts_at_each_of_its_three_positions_in_training_only(place: str) -> None:
    changes: dict[str, Any] = {f"model.{place}_dropout": 0.5, "model.num_layers": 2}
    model, plain = make_model(**changes), make_model(model__num_layers=2)
    tokens = torch.randint(0, 12, (5, 3))
    kept = plain.features(tokens, plain.initial_states(3)).dropped_TBH
    torch.testing.assert_close(model.eval().features(tokens, model.initial_states(3)).dropped_TBH, kept)
    dropped = model.train().features(tokens, model.initial_states(3), generator()).dropped_TBH
    assert not torch.allclose(dropped, kept)


# I8: DropConnect.


def reference_lstm(lstm: Any, x: Tensor, hidden_weights: Tensor) -> Tensor:
    """An LSTM by the book, gate by gate, one time step after another."""
    size = lstm.hidden_size
    h, c = torch.zeros(x.shape[1], size), torch.zeros(x.shape[1], size)
    outputs = []
    for x_t in x:
        gates = x_t @ lstm.weight_ih_l0.t() + lstm.bias_ih_l0 + h @ hidden_weights.t() + lstm.bias_hh_l0
        i, f, g, o = gates.split(size, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs)


def test_i8_one_mask_on_the_hidden_matrix_serves_all_steps_and_reaches_the_raw_weights() -> None:
    lstm: Any = nn.LSTM(4, 5)
    x = torch.randn(6, 3, 4)
    zeros = (torch.zeros(1, 3, 5), torch.zeros(1, 3, 5))
    output, _ = run_lstm(lstm, x, zeros, 0.5, None, generator(2))
    mask = torch.empty(20, 5).bernoulli_(0.5, generator=generator(2)) / 0.5
    raw = lstm.weight_hh_l0.detach().clone().requires_grad_()
    expected = reference_lstm(lstm, x, raw * mask)
    torch.testing.assert_close(output, expected)
    output.sum().backward()  # type: ignore[no-untyped-call]
    expected.sum().backward()  # type: ignore[no-untyped-call]
    assert raw.grad is not None and lstm.weight_hh_l0.grad is not None
    torch.testing.assert_close(lstm.weight_hh_l0.grad, raw.grad)
    assert bool((lstm.weight_hh_l0.grad[mask == 0] == 0).all()) and bool(lstm.weight_hh_l0.grad.any())


def test_i8_the_first_step_is_unaffected_later_ones_differ_and_evaluation_is_raw() -> None:
    model, plain = make_model(model__weight_dropout=0.5), make_model()
    tokens = torch.randint(0, 12, (5, 3))
    raw = plain.features(tokens, plain.initial_states(3)).raw_TBH
    dropped = model.train().features(tokens, model.initial_states(3), generator()).raw_TBH
    torch.testing.assert_close(dropped[0], raw[0])
    assert not torch.allclose(dropped[1:], raw[1:])
    torch.testing.assert_close(model.eval().features(tokens, model.initial_states(3)).raw_TBH, raw)


# I9: tying and sizes.


def test_i9_a_tied_model_shares_one_matrix_ends_as_wide_as_its_embedding_and_keeps_a_bias() -> None:
    model = make_model(model__num_layers=3)
    assert model.decoder.weight is model.embedding.weight
    assert [layer.hidden_size for layer in model.layers] == [8, 8, 6]  # type: ignore[union-attr]
    assert model.decoder.bias.shape == (12,)


@pytest.mark.parametrize(("words", "millions"), [(10_000, 24.22), (33_278, 33.56), (18_328, 27.56)])
def test_i9_the_papers_models_have_the_papers_number_of_parameters(words: int, millions: float) -> None:
    config = make_run(model__embedding_size=400, model__hidden_size=1150, model__num_layers=3).model
    assert round(config.count_parameters(words) / 1e6, 2) == millions


@pytest.mark.parametrize("tied", [True, False])
def test_i9_the_count_is_that_of_the_built_model(tied: bool) -> None:
    model = make_model(model__tie_weights=tied, model__num_layers=3)
    assert model.config.count_parameters(12) == sum(p.numel() for p in model.parameters())


# I10: initial weights.


def test_i10_initial_weights_are_those_of_the_paper() -> None:
    model = make_model(words=500, model__tie_weights=False, model__hidden_size=50, model__embedding_size=50)
    for matrix in (model.embedding.weight, model.decoder.weight):
        assert float(matrix.detach().abs().max()) <= 0.1
        assert float(matrix.detach().std()) == pytest.approx(0.2 / math.sqrt(12), rel=0.02)
    assert not model.decoder.bias.any()
    bound = 1 / math.sqrt(50)
    lstm = model.layers[0].get_parameter("weight_hh_l0")
    assert bound * 0.9 < float(lstm.detach().abs().max()) <= bound


# I11: states.


def test_i11_states_start_at_zero_are_carried_within_an_epoch_and_detached() -> None:
    config = make_run(train__learning_rate=1e-12, train__epochs=1)
    corpus = make_corpus()
    torch.manual_seed(config.train.seed)
    model = LanguageModel(config.model, 12)
    x = batchify(torch.from_numpy(corpus.train.tokens.astype(np.int64)), 4)
    states = model.initial_states(4)
    assert not states[0][0].any()
    for number, step in enumerate(steps_of(config)):
        tensors = step.state().tensors
        states = model.features(x[number * 7 : number * 7 + 7], states).states
        torch.testing.assert_close(tensors["states.0.0"], states[0][0].detach())
        assert not tensors["states.0.0"].requires_grad
        if number == 3:
            break


def test_i11_each_epoch_and_each_evaluation_begins_at_zero() -> None:
    config = make_run(train__learning_rate=1e-300, train__epochs=3)
    losses = run_epochs(config)
    assert losses[0].train_loss == losses[1].train_loss == losses[2].train_loss
    assert losses[0].valid_loss == losses[2].valid_loss


# I12 and I13: NT-ASGD.


@pytest.mark.parametrize("n", [1, 2, 5])
def test_i12_the_trigger_is_the_released_codes_rule(n: int) -> None:
    rng = np.random.default_rng(n)
    history: list[float] = []
    for _ in range(40):
        value = float(rng.normal())
        expected = len(history) > n and value > min(history[: len(history) - n])
        assert should_average(history, value, n) == expected
        history.append(value)


def test_i13_the_average_is_the_mean_of_every_step_since_the_switch() -> None:
    model = make_model()
    average = WeightAverage(model)
    seen = []
    for step in range(7):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(step + 1.0)
        seen.append(model.embedding.weight.detach().clone())
        average.update(model)
    torch.testing.assert_close(average.model.embedding.weight.detach(), sum(seen) / 7)


def test_i13_after_the_switch_averages_are_evaluated_and_training_goes_on_raw_at_the_full_rate() -> None:
    changes = {"train.optimizer": "nt-asgd", "train.nonmono": 1, "train.learning_rate": 30.0}
    config = make_run(**changes, train__epochs=12, train__anneal_factor=4.0)
    weights: list[Tensor] = []
    switched_at: int | None = None
    for event in train(config, make_corpus(tokens=400), CPU, None):
        state = event.state()
        averaging = state.progress["average_steps"]
        if isinstance(event, Step) and averaging and state.progress["evaluation_block"] is None:
            weights.append(state.tensors["model.embedding.weight"])
            assert averaging == len(weights)
            mean = sum(weights[1:], weights[0]) / len(weights)
            torch.testing.assert_close(state.tensors["average.embedding.weight"], mean, rtol=1e-6, atol=1e-9)
        if isinstance(event, Epoch) and weights:
            switched_at = switched_at or event.number
            assert event.learning_rate == 30.0
            assert torch.equal(event.weights()["embedding.weight"], state.tensors["average.embedding.weight"])
            assert not torch.equal(event.weights()["embedding.weight"], state.tensors["model.embedding.weight"])
    assert switched_at is not None


# I14: perplexity.


@pytest.mark.parametrize("batch_size", [1, 3, 10])
@pytest.mark.parametrize("bptt", [2, 7, 70])
def test_i14_evaluation_at_batch_size_1_is_the_plain_loop(batch_size: int, bptt: int) -> None:
    model = make_model(model__num_layers=2, model__input_dropout=0.5).eval()
    tokens = torch.randint(0, 12, (60,))
    columns = -(-59 // batch_size)
    total = 0.0
    for begin in range(0, 59, columns):
        states = model.initial_states(1)
        for t in range(begin, min(begin + columns, 59)):
            features = model.features(tokens[t].view(1, 1), states)
            states = features.states
            log_probabilities = model.decoder(features.raw_TBH[0, 0]).log_softmax(0)
            total -= log_probabilities[tokens[t + 1]].item()
    assert evaluate(model, tokens, batch_size, bptt).loss == pytest.approx(total / 59, rel=1e-12)


def test_i14_the_mean_is_over_the_predictions_not_over_the_rows() -> None:
    model = make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    tokens = torch.randint(0, 12, (37,))
    assert evaluate(model, tokens, 5, 4).loss == pytest.approx(math.log(12), rel=1e-14)


# I15: going on.


OPTIMIZERS = ["adam", "adamw", "sgd", "nt-asgd"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_i15_going_on_from_any_step_is_the_uninterrupted_run_bit_for_bit(optimizer: str) -> None:
    config = make_run(
        train__optimizer=optimizer,
        train__learning_rate=5.0 if "sgd" in optimizer else 0.02,
        train__epochs=4,
        train__nonmono=1,
        train__anneal_factor=2.0,
        train__variable_bptt=True,
        train__weight_decay=1e-3,
        model__num_layers=2,
        model__weight_dropout=0.3,
        model__embedding_dropout=0.2,
        model__output_dropout=0.3,
        data__shuffle_articles=True,
    )
    corpus: dict[str, Any] = {"tokens": 160, "article_starts": (0, 30, 70, 110)}
    whole = list(train(config, make_corpus(**corpus), CPU, None))
    expected = [event.valid_loss for event in whole if isinstance(event, Epoch)]
    count = sum(isinstance(event, Step) for event in whole)
    assert count > 20
    for stop_at in range(0, count + 4, 5):
        losses = []
        events = train(config, make_corpus(**corpus), CPU, None)
        for number, event in enumerate(events):
            if isinstance(event, Epoch):
                losses.append(event.valid_loss)
            if number == stop_at:
                saved = TrainState.from_bytes(event.state().to_bytes())
                break
        losses += [epoch.valid_loss for epoch in run_epochs(config, saved, **corpus)]
        assert losses == expected, f"stopped at event {stop_at}"


# I16: the plateau.


def test_i16_the_rate_is_divided_after_epochs_without_a_new_best() -> None:
    rate = PlateauRate(make_run(train__anneal_factor=4.0, train__anneal_patience=2, train__learning_rate=8.0).train)
    rates = []
    for improved in (True, False, False, True, False, False, False, False):
        rate.see(improved)
        rates.append(rate.learning_rate)
    assert rates == [8, 8, 2, 2, 2, 0.5, 0.5, 0.125]


def test_i16_the_division_reaches_adam() -> None:
    """The tutorial divides a variable that its Adam never reads."""
    config = make_run(train__anneal_factor=4.0, train__learning_rate=0.5, train__epochs=6)
    epochs = run_epochs(config)
    best, rate = math.inf, 0.5
    for epoch in epochs:
        assert epoch.learning_rate == rate
        rate = rate if epoch.valid_loss < best else rate / 4
        best = min(best, epoch.valid_loss)
    assert epochs[-1].learning_rate < 0.5


# I17: the best.


def test_i17_a_loss_that_is_not_finite_never_is_the_best() -> None:
    assert improves([], 5.0) and improves([math.nan, 6.0], 5.0)
    assert not improves([], math.nan) and not improves([], math.inf) and not improves([5.0], 5.0)


def test_i17_patience_stops_after_epochs_without_a_new_best() -> None:
    config = make_run(train__patience=2, train__learning_rate=3.0, train__epochs=40)
    losses = [epoch.valid_loss for epoch in run_epochs(config)]
    assert len(losses) < 40
    assert min(losses[-2:]) >= min(losses[:-2]) and losses[-3] == min(losses)


# The second stage of NT-ASGD.


def nt_asgd(finetune: bool) -> RunConfig:
    return make_run(
        train__optimizer="nt-asgd",
        train__learning_rate=20.0,
        train__nonmono=1,
        train__epochs=8,
        train__finetune=finetune,
    )


def epochs_of(finetune: bool, state: TrainState | None = None) -> tuple[list[float], list[TrainState]]:
    """Train; give each epoch's loss and the state behind it."""
    losses, states = [], []
    for event in train(nt_asgd(finetune), make_corpus(400), torch.device("cpu"), state):
        if isinstance(event, Epoch):
            losses.append(event.valid_loss)
            states.append(TrainState.from_bytes(event.state().to_bytes()))
    return losses, states


def test_finetuning_begins_from_the_averages_and_ends_when_its_trigger_fires() -> None:
    losses, states = epochs_of(finetune=True)
    assert losses[:8] == epochs_of(finetune=False)[0]
    second = losses[8:]
    assert 2 <= len(second) <= 8
    fires = [should_average(second[:number], second[number], nonmono=1) for number in range(len(second))]
    assert fires[-1] or len(second) == 8
    assert not any(fires[:-1])
    assert [state.progress["finetune_from"] for state in states] == [None] * 8 + [8] * len(second)
    # It stands where the averages were, not where the last step was.
    run = _Run(nt_asgd(finetune=True), make_corpus(400), torch.device("cpu"))
    run.restore(states[7])
    assert run.finished() and run.begin_finetuning() and not run.begin_finetuning()
    for name, tensor in run.model.weights().items():
        assert torch.equal(tensor, states[7].tensors[f"average.{name}"])
    assert any(not torch.equal(states[7].tensors[f"model.{name}"], t) for name, t in run.model.weights().items())


@pytest.mark.parametrize("number", [7, 8])
def test_finetuning_goes_on_from_any_state_as_if_it_had_not_been_stopped(number: int) -> None:
    """From the end of the first stage, and from the first epoch of the second."""
    losses, states = epochs_of(finetune=True)
    after, ends = epochs_of(finetune=True, state=states[number])
    assert after == losses[number + 1 :] and len(after) > 0
    assert all(torch.equal(tensor, states[-1].tensors[name]) for name, tensor in ends[-1].tensors.items())


def test_a_state_of_another_kind_of_device_continues_with_masks_of_its_own_always_the_same() -> None:
    """A GPU's generator has 16 bytes of state, which a CPU's cannot take over."""
    config = make_run(model__output_dropout=0.5, train__epochs=2)
    whole = run_epochs(config)
    state = next(event for event in train(config, make_corpus(), CPU) if isinstance(event, Epoch)).state()
    other = TrainState(state.progress, state.tensors | {"generator": torch.zeros(16, dtype=torch.uint8)})
    ends = [run_epochs(config, other)[-1] for _ in range(2)]
    assert ends[0].valid_loss == ends[1].valid_loss != whole[-1].valid_loss
    assert ends[0].valid_loss == pytest.approx(whole[-1].valid_loss, rel=0.05)
    later = replace(other, progress=other.progress | {"steps": 99})  # a later place draws other masks
    assert run_epochs(config, later)[-1].valid_loss != ends[0].valid_loss


def test_finetuning_without_averages_is_refused() -> None:
    with pytest.raises(ConfigError, match="train.finetune continues from the averages of nt-asgd; adam has none"):
        make_run(train__finetune=True)
