"""The Mogrifier and state dropout against plain loops over time, in double precision."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from lmsearch.lm.events import Epoch, Step, TrainState
from lmsearch.lm.layers import MogrifierLSTM, dropout_mask, run_lstm
from lmsearch.lm.model import LanguageModel
from lmsearch.lm.train import train
from tests.factories import make_corpus, make_run

CPU = torch.device("cpu")
Floats = npt.NDArray[np.float64]


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-x)))


def by_hand(lstm: nn.LSTM, x_TBI: Floats, weight_hh: Floats, mask: Floats | None, steps: int) -> Floats:
    """Give the outputs of one layer, step after step, from states of zero."""
    weights = {name: parameter.detach().numpy() for name, parameter in lstm.named_parameters()}
    batch, size = x_TBI.shape[1], weight_hh.shape[1]
    h, c, outputs = np.zeros((batch, size)), np.zeros((batch, size)), []
    for t in range(steps):
        x = x_TBI[t]
        if mask is not None:
            h = h * mask[t % len(mask)]
        for i in range(1, 1 + (len(lstm.rounds) if isinstance(lstm, MogrifierLSTM) else 0)):
            matrix = np.eye((h if i % 2 else x).shape[1])
            for name, weight in weights.items():
                if name.startswith(f"rounds.{i - 1}."):
                    matrix = weight @ matrix
            if i % 2:
                x = 2 * sigmoid(h @ matrix.T) * x
            else:
                h = 2 * sigmoid(x @ matrix.T) * h
        gates = x @ weights["weight_ih_l0"].T + h @ weight_hh.T + weights["bias_ih_l0"] + weights["bias_hh_l0"]
        into, keep, new, out = np.split(gates, 4, axis=1)
        c = sigmoid(keep) * c + sigmoid(into) * np.tanh(new)
        h = sigmoid(out) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs)


@pytest.mark.parametrize(("rounds", "rank"), [(1, 0), (4, 0), (5, 2), (6, 3)])
@pytest.mark.parametrize("dropped", [0.0, 0.5])
def test_a_layer_is_its_equations(rounds: int, rank: int, dropped: float) -> None:
    torch.manual_seed(0)
    lstm = MogrifierLSTM(5, 7, rounds, rank)
    x = torch.randn(6, 3, 5)
    raw = lstm.get_parameter("weight_hh_l0")
    mask = dropout_mask(tuple(raw.shape), dropped, raw, torch.Generator().manual_seed(2)) if dropped else torch.ones(1)
    state = (torch.zeros(1, 3, 7), torch.zeros(1, 3, 7))
    output, after = run_lstm(lstm, x, state, dropped, None, torch.Generator().manual_seed(2))
    expected = by_hand(lstm, x.numpy(), (raw * mask).detach().numpy(), None, 6)
    np.testing.assert_allclose(output.detach().numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(after[0][0].detach().numpy(), expected[-1], atol=1e-12)


@pytest.mark.parametrize("locked", [True, False])
@pytest.mark.parametrize("mogrifier", [True, False])
def test_state_dropout_is_one_mask_of_a_window_or_one_of_each_step(locked: bool, mogrifier: bool) -> None:
    torch.manual_seed(0)
    lstm = MogrifierLSTM(5, 7, 3, 2) if mogrifier else nn.LSTM(5, 7)
    x = torch.randn(6, 3, 5)
    mask = dropout_mask((1 if locked else 6, 3, 7), 0.4, x, torch.Generator().manual_seed(1))
    output, _ = run_lstm(lstm, x, (torch.zeros(1, 3, 7), torch.zeros(1, 3, 7)), 0, mask, None)
    raw = lstm.get_parameter("weight_hh_l0").detach().numpy()
    np.testing.assert_allclose(output.detach().numpy(), by_hand(lstm, x.numpy(), raw, mask.numpy(), 6), atol=1e-12)


def test_steps_one_by_one_are_pytorchs_own() -> None:
    torch.manual_seed(0)
    lstm, x = nn.LSTM(5, 7), torch.randn(6, 3, 5)
    state = (torch.randn(1, 3, 7), torch.randn(1, 3, 7))
    own, (hidden, cell) = run_lstm(lstm, x, state, 0, torch.ones(1, 3, 7), None)
    theirs, (their_hidden, their_cell) = lstm(x, state)
    for one, other in ((own, theirs), (hidden, their_hidden), (cell, their_cell)):
        torch.testing.assert_close(one, other)


def test_state_dropout_is_absent_in_evaluation() -> None:
    model = LanguageModel(make_run(model__state_dropout=0.9).model, 12)
    plain = LanguageModel(make_run().model, 12)
    plain.set_weights(model.weights())
    tokens = torch.arange(12).view(6, 2)
    states = model.initial_states(2)
    found, expected = (one.eval().features(tokens, states).raw_TBH for one in (model, plain))
    assert torch.equal(found, expected)
    dropped = model.train().features(tokens, states, torch.Generator().manual_seed(0)).raw_TBH
    assert not torch.equal(dropped, expected)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rank", [0, 3])
def test_parameters_are_counted_as_the_model_has_them(tied: bool, rank: int) -> None:
    config = make_run(
        model__cell="mogrifier", model__mogrifier_rank=rank, model__tie_weights=tied, model__num_layers=3
    ).model
    assert sum(p.numel() for p in LanguageModel(config, 12).parameters()) == config.count_parameters(12)


SETTINGS: dict[str, Any] = {
    "model__cell": "mogrifier",
    "model__mogrifier_rank": 3,
    "model__state_dropout": 0.2,
    "model__weight_dropout": 0.2,
}


def test_a_resumed_training_is_the_uninterrupted_one() -> None:
    config = make_run(**SETTINGS)
    whole = [event for event in train(config, make_corpus(), CPU, None) if isinstance(event, Epoch)]
    stopped = next(itertools.islice(train(config, make_corpus(), CPU, None), 8, None))
    state = TrainState.from_bytes(stopped.state().to_bytes())
    resumed = [event for event in train(config, make_corpus(), CPU, state) if isinstance(event, Epoch)]
    for name, weight in whole[-1].weights().items():
        assert torch.equal(resumed[-1].weights()[name], weight), name


def test_it_runs_on_meta_up_to_the_epochs_end() -> None:
    torch.set_default_dtype(torch.float32)
    steps = 0
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        for event in train(make_run(**SETTINGS), make_corpus(), torch.device("meta"), None):
            assert isinstance(event, Step)
            steps += 1
    on_cpu = train(make_run(**SETTINGS), make_corpus(), CPU, None)
    assert steps == sum(1 for _ in itertools.takewhile(lambda event: not isinstance(event, Epoch), on_cpu))
