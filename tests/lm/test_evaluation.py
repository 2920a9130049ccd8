"""A perplexity is one number, whatever it was measured with: columns, commands, seeds of a prompt."""

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from lmsearch.errors import ConfigError
from lmsearch.lm.batches import as_indices, evaluation_blocks
from lmsearch.lm.evaluate import begin_evaluation, evaluate, evaluate_blocks
from lmsearch.lm.events import Epoch, Step, TrainState
from lmsearch.lm.model import LanguageModel
from lmsearch.lm.train import train
from lmsearch.lm.use.cache import cache_probabilities, mixed_loss, read_text
from lmsearch.lm.use.generate import Sampling
from lmsearch.lm.use.trained import TrainedModel
from lmsearch.losses import json_text, perplexity
from lmsearch.search.tune import tune
from lmsearch.text.vocabulary import EOS
from tests.factories import make_corpus, make_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def learnt() -> TrainedModel:
    """A model that has learnt something, of a text with structure, so that states matter."""
    corpus, config = make_corpus(tokens=600), make_run(train__epochs=4, train__learning_rate=0.05)
    (*_, last) = (event for event in train(config, corpus, CPU) if isinstance(event, Epoch))
    model = LanguageModel(config.model, 12)
    model.set_weights(last.weights())
    return TrainedModel(model.eval(), corpus.vocabulary, config, {"loss": last.valid_loss})


@pytest.mark.parametrize(
    ("tokens", "columns", "context", "bptt"), [(401, 7, 20, 7), (401, 7, 3, 7), (90, 50, 20, 6), (41, 4, 20, 5)]
)
def test_with_context_each_prediction_is_given_once_too(tokens: int, columns: int, context: int, bptt: int) -> None:
    blocks = evaluation_blocks(torch.arange(tokens), columns, bptt, context)
    seen = []
    for number in range(len(blocks)):
        inputs, targets, weights = blocks.block(number)
        assert 0 < len(inputs) <= bptt
        seen += [
            (int(x), int(y))
            for x, y, weight in zip(inputs.flatten(), targets.flatten(), weights.flatten(), strict=True)
            if weight
        ]
        assert number >= blocks.context_blocks or not weights.any()
    assert sorted(seen) == [(i, i + 1) for i in range(tokens - 1)]
    own = len(blocks.inputs_TB) - blocks.context
    assert blocks.context == 0 or own >= 2 * context


@pytest.mark.parametrize("tokens", [60, 173, 1_728])
@pytest.mark.parametrize("columns", [1, 10, 100, 500])
def test_the_number_of_columns_does_not_change_a_perplexity(learnt: TrainedModel, tokens: int, columns: int) -> None:
    text = torch.from_numpy(make_corpus(tokens=2_000, seed=5).train.tokens[:tokens].astype(np.int64))
    alone = evaluate(learnt.model, text, 1, 512, 0, 0)
    many = evaluate(learnt.model, text, columns, 7, 200, 0)
    assert many.loss == pytest.approx(alone.loss, rel=1e-6)
    assert many.known_loss == pytest.approx(alone.known_loss, rel=1e-6)
    assert (many.known, many.predictions) == (alone.known, alone.predictions) and alone.known < alone.predictions
    if columns == 100 and tokens == 1_728:  # without a context it does
        assert evaluate(learnt.model, text, columns, 7).loss != pytest.approx(alone.loss, rel=1e-4)


def test_the_loss_of_known_words_leaves_out_unk_and_nothing_else(learnt: TrainedModel) -> None:
    tokens = make_corpus(tokens=300, seed=9).train.tokens
    words = [learnt.vocabulary.words[token] for token in tokens]
    found = learnt.measure(tokens)
    model, states = learnt.model, learnt.model.initial_states(1)
    with torch.no_grad():
        features = model.features(torch.from_numpy(tokens[:-1].astype(np.int64))[:, None], states)
        losses = -model.decoder(features.raw_TBH[:, 0]).double().log_softmax(1).numpy()
    by_hand = np.array([losses[index, token] for index, token in enumerate(tokens[1:])])
    known = np.array([word != "<unk>" for word in words[1:]])
    assert found.loss == pytest.approx(float(by_hand.mean()), rel=1e-6)
    assert found.known_loss == pytest.approx(float(by_hand[known].mean()), rel=1e-6)
    assert found.unknown == words.count("<unk>") > 0
    # The same through text: <unk> in it, and words that the model has never seen, count as unknown alike.
    lines = " ".join("other" if word == "<unk>" and index % 2 else word for index, word in enumerate(words))
    again = learnt.evaluate(lines.replace(" <eos> ", "\n").split("\n"))
    assert again.unknown == found.unknown


def test_the_cache_and_the_training_agree_on_what_a_model_has_without_it(learnt: TrainedModel) -> None:
    valid = make_corpus(tokens=600).valid.tokens
    text = read_text(learnt, valid)
    assert tune(text, 5, 0, lambda number, loss: None).loss_without == pytest.approx(learnt.metrics["loss"], rel=1e-6)


def test_an_interrupted_evaluation_with_context_goes_on_to_the_same_losses() -> None:
    corpus = make_corpus(tokens=300)
    config = make_run(train__eval_batch_size=5, train__eval_context=9, train__epochs=1, train__bptt=4)
    events = list(train(config, corpus, CPU))
    assert isinstance(whole := events[-1], Epoch)
    states = []
    for event in train(config, corpus, CPU):
        if isinstance(event, Step):
            states.append(event.state())
    in_evaluation = [state for state in states if state.progress["evaluation_block"] is not None]
    assert len(in_evaluation) > 4
    for state in in_evaluation:
        (*_, last) = train(config, corpus, CPU, TrainState.from_bytes(state.to_bytes()))
        assert isinstance(last, Epoch)
        assert (last.valid_loss, last.valid_known_loss) == (whole.valid_loss, whole.valid_known_loss)


def test_a_state_of_an_earlier_version_lacks_the_known_words_of_its_epoch() -> None:
    config = make_run(train__epochs=1)
    state = next(
        event.state()
        for event in train(config, make_corpus(), CPU)
        if isinstance(event, Step) and event.state().progress["evaluation_block"]
    )
    old = {name: tensor for name, tensor in state.tensors.items() if "known" not in name}
    (*_, last) = train(config, make_corpus(), CPU, TrainState(state.progress, old))
    assert isinstance(last, Epoch) and math.isnan(last.valid_known_loss) and math.isfinite(last.valid_loss)


# A loss that is no number, or too large for one.


def test_a_loss_becomes_a_perplexity_in_one_way() -> None:
    assert perplexity(math.log(5)) == pytest.approx(5)
    assert perplexity(709.0) < math.inf == perplexity(710.0) == perplexity(math.nan) == perplexity(math.inf)


def test_json_has_no_infinity_however_deep() -> None:
    text = json_text({"a": math.inf, "b": [math.nan, {"c": (-math.inf, 1.5)}], "d": "ü\x1b"})
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": None,
        "b": [None, {"c": [None, 1.5]}],
        "d": "ü\x1b",
    }
    assert text.isascii() and "\x1b" not in text


def test_a_diverged_model_has_an_infinite_perplexity_and_no_traceback(learnt: TrainedModel) -> None:
    model = LanguageModel(learnt.config.model, 12)
    model.set_weights({name: tensor * 1e4 for name, tensor in learnt.model.weights().items()})
    wild = TrainedModel(model, learnt.vocabulary, learnt.config, {})
    tokens = make_corpus(tokens=300).train.tokens
    found = wild.measure(tokens)
    assert found.loss > 710 and found.perplexity == math.inf
    text = read_text(wild, tokens)
    cache = cache_probabilities(text, 50, 1.0)
    assert mixed_loss(text, cache, 0.0) == pytest.approx(found.loss, rel=1e-5)
    assert math.isfinite(mixed_loss(text, cache, 0.5)) or mixed_loss(text, cache, 0.5) > found.loss / 2


# Generation and words.


@pytest.mark.parametrize("temperature", [math.nan, math.inf, -math.inf, -1.0])
def test_a_temperature_that_is_no_number_is_refused(temperature: float) -> None:
    with pytest.raises(ConfigError, match="the temperature must be a number of at least 0"):
        Sampling(temperature=temperature)


def test_a_temperature_beyond_float32_draws_all_words_alike(learnt: TrainedModel) -> None:
    words = list(learnt.generate(words=30, temperature=1e300))
    assert len(words) == 30 and len(set(words)) > 3


def test_a_temperature_near_nothing_is_nothing(learnt: TrainedModel) -> None:
    greedy = list(learnt.generate("w1", 30, 0, temperature=0.0))
    for cold in (1e-40, 1e-9):
        assert list(learnt.generate("w1", 30, 3, temperature=cold)) == greedy


def test_a_prompt_of_two_lines_is_read_as_it_is_printed(learnt: TrainedModel) -> None:
    assert learnt.prompt_words("w1 w2\nw3") == ["w1", "w2", "<eos>", "w3"]
    assert learnt.prompt_words("  ") == []
    continuation = next(learnt.generate("w1 w2\nw3", 1, 0, temperature=0.0, no_unk=False))
    tokens = [*(learnt.vocabulary.index[word] for word in ("<eos>", "w1", "w2", "<eos>", "w3"))]
    with torch.no_grad():
        features = learnt.model.features(torch.tensor(tokens)[:, None], learnt.model.initial_states(1))
        best = int(learnt.model.decoder(features.raw_TBH[-1, 0]).argmax())
    assert continuation == learnt.vocabulary.words[best]


def test_log_probabilities_want_words_and_not_a_text(learnt: TrainedModel) -> None:
    with pytest.raises(ConfigError, match=r"give model.words\(text\)"):
        learnt.log_probabilities("w1 w2")
    one = learnt.log_probabilities(learnt.words("w1 w2"))
    assert one.shape == (3,)


def test_evaluation_blocks_on_meta_take_no_memory() -> None:
    config: Any = make_run()
    with torch.device("meta"):
        model = LanguageModel(config.model, 12)
    tokens = torch.empty(3_000, dtype=torch.int64, device="meta")
    blocks = evaluation_blocks(tokens, 10, 35, 200)
    state = begin_evaluation(model, blocks)
    done = list(itertools.islice(evaluate_blocks(model, blocks, state, 0), 12))
    assert len(done) == 12 and state.total.device.type == "meta"
    assert as_indices(make_corpus().valid.tokens).dtype == torch.int64


def test_lines_are_scored_alone_each_as_if_it_were_the_whole_text(learnt: TrainedModel) -> None:
    lines = ["w1 w2", "", "w3 " * 30, "unknown w1", *["w4 w5"] * 70]
    scores = list(learnt.score(lines))
    assert len(scores) == len(lines)
    for line, score in zip(lines, scores, strict=True):
        words = learnt.words(line) or [EOS]
        assert score.words == tuple(words)
        np.testing.assert_allclose(score.log_probabilities, learnt.log_probabilities(words), atol=1e-5)
        assert score.perplexity == pytest.approx(math.exp(-score.log_probability / len(words)))
    assert scores[3].unknown == 1
    (long,) = learnt.score(["w1 " * 1_500])
    assert len(long.words) == 1_501


def test_states_and_embeddings_are_arrays_from_which_the_model_predicts(learnt: TrainedModel) -> None:
    words = ["w1", "w2", "w3", "w4"]
    states = learnt.states(words)
    assert states.shape == (4, learnt.embeddings.shape[1]) and learnt.embeddings.shape[0] == 12
    logits = learnt.model.decoder(torch.from_numpy(states)).log_softmax(-1)
    following = learnt.log_probabilities([*words, "w5"])
    assert float(logits[3, learnt.vocabulary.index["w5"]].detach()) == pytest.approx(following[4], abs=1e-5)
