"""Trained models on disk, training to the end, and text from a model."""

import json
import math
from pathlib import Path

import pytest
import torch

from lmsearch.errors import ConfigError, DeviceError
from lmsearch.lm.batches import as_indices
from lmsearch.lm.device import open_device
from lmsearch.lm.evaluate import evaluate
from lmsearch.lm.events import TrainState
from lmsearch.lm.fit import TrainingFiles, fit
from lmsearch.lm.model import LanguageModel
from lmsearch.lm.train import train
from lmsearch.lm.use.generate import generate, sample_text
from lmsearch.lm.use.model_folder import load_model
from lmsearch.losses import perplexity
from lmsearch.text.vocabulary import EOS, UNK
from tests.factories import make_corpus, make_run

CPU = torch.device("cpu")


def fit_small(folder: Path, **changes: object) -> list[float]:
    config = make_run(**changes)
    return [
        epoch.valid_loss for epoch in fit(config, make_corpus(), CPU, TrainingFiles(folder=folder), config.as_tables())
    ]


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_has_the_perplexity_of_its_best_epoch(tmp_path: Path, tied: bool) -> None:
    losses = fit_small(tmp_path / "model", model__tie_weights=tied, train__epochs=4, train__learning_rate=0.1)
    trained = load_model(tmp_path / "model")
    tokens = as_indices(make_corpus().valid.tokens)
    assert evaluate(trained.model, tokens, 3, 7, trained.config.train.eval_context).loss == min(losses)
    assert trained.metrics["perplexity"] == math.exp(min(losses))
    assert trained.config == make_run(model__tie_weights=tied, train__epochs=4, train__learning_rate=0.1)
    assert trained.vocabulary == make_corpus().vocabulary


def test_a_folder_that_is_cut_short_is_refused_by_name(tmp_path: Path) -> None:
    fit_small(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(ConfigError, match="model is not a whole model folder"):
        load_model(tmp_path / "model")


def test_weights_are_data_and_nothing_in_the_folder_is_code(tmp_path: Path) -> None:
    fit_small(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "config.json",
        "metrics.json",
        "model.safetensors",
        "vocabulary.json",
    ]
    header = (tmp_path / "model" / "model.safetensors").read_bytes()
    names = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
    assert "decoder.weight" not in names  # tied: stored once


def test_sampled_text_has_known_words_no_unk_and_depends_on_its_seed_alone() -> None:
    corpus = make_corpus()
    model = LanguageModel(make_run().model, 12)
    words = [word for word, _ in zip(generate(model, corpus.vocabulary, 3), range(300), strict=False)]
    assert set(words) <= set(corpus.vocabulary.words) - {UNK}
    assert sample_text(model, corpus.vocabulary, 30, 3) == sample_text(model, corpus.vocabulary, 30, 3)
    assert sample_text(model, corpus.vocabulary, 30, 3) != sample_text(model, corpus.vocabulary, 30, 4)
    assert EOS not in sample_text(model, corpus.vocabulary, 300)


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "tpu:0", "meta:x"])
def test_a_device_that_is_not_there_is_refused_by_name(name: str) -> None:
    with pytest.raises(DeviceError, match=name):
        open_device(name)


def test_a_state_of_another_model_is_refused() -> None:
    config = make_run()
    state = next(iter(train(config, make_corpus(), CPU, None))).state()
    other = make_run(model__embedding_size=7)
    with pytest.raises(ConfigError, match="belongs to another config"):
        next(iter(train(other, make_corpus(), CPU, TrainState.from_bytes(state.to_bytes()))))


def test_perplexity_of_a_loss_that_is_no_number_is_infinite() -> None:
    assert perplexity(math.log(5)) == pytest.approx(5)
    assert perplexity(math.nan) == perplexity(math.inf) == perplexity(1e6) == math.inf


def test_the_generator_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    list(train(make_run(model__input_dropout=0.5), make_corpus(), CPU, None))
    assert torch.equal(torch.rand(3), expected)
