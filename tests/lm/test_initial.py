"""Trainings that start from another model or from given embeddings."""

import gzip
from pathlib import Path
from typing import Any

import pytest
import torch

from lmsearch.errors import ConfigError
from lmsearch.lm.initial import initial_embeddings, initial_model
from lmsearch.lm.model import LanguageModel
from lmsearch.lm.train import _Run
from lmsearch.lm.use.trained import TrainedModel
from lmsearch.text.vocabulary import Vocabulary
from tests.conftest import Cli
from tests.factories import make_corpus, make_run, write_corpus

CPU = torch.device("cpu")
OTHER = Vocabulary(("<unk>", "new", "w3", "<eos>", "w1"))
VARIANTS = pytest.mark.parametrize(
    "changes", [{}, {"model__tie_weights": False}, {"model__decoder": "adaptive"}, {"model__cell": "mogrifier"}]
)


def make_trained(**changes: Any) -> TrainedModel:
    torch.manual_seed(5)
    config = make_run(**changes)
    ranks = torch.randperm(12)
    return TrainedModel(LanguageModel(config.model, 12, ranks), make_corpus().vocabulary, config, {})


@VARIANTS
def test_a_model_of_the_same_words_starts_as_the_other_is(changes: dict[str, Any]) -> None:
    source = make_trained(**changes)
    ranks = source.model.weights().get("decoder.ranks")  # words in other tails would have other probabilities
    target = LanguageModel(source.config.model, 12, ranks)
    initial = initial_model(source, target, source.vocabulary, "m")
    initial.apply(target)
    tokens = torch.arange(12).view(6, 2)
    states = target.initial_states(2)
    mine, theirs = (model.eval().features(tokens, states).raw_TBH for model in (target, source.model))
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(target.decoder(mine).softmax(-1), source.model.decoder(theirs).softmax(-1))
    assert initial.words == 12


@VARIANTS
def test_a_changed_vocabulary_keeps_the_words_that_both_know(changes: dict[str, Any]) -> None:
    source = make_trained(**changes)
    torch.manual_seed(6)
    target = LanguageModel(source.config.model, 5, torch.tensor([4, 2, 3, 0, 1]))
    fresh = {word: target.embedded(torch.tensor(n)).detach().clone() for n, word in enumerate(OTHER.words)}
    initial = initial_model(source, target, OTHER, "m")
    initial.apply(target)
    for number, word in enumerate(OTHER.words):
        found = target.embedded(torch.tensor(number))
        known = source.vocabulary.index.get(word)
        wanted = fresh[word] if known is None else source.model.embedded(torch.tensor(known))
        torch.testing.assert_close(found, wanted)
    assert initial.words == 4
    torch.testing.assert_close(
        target.layers[0].get_parameter("weight_hh_l0"), source.model.layers[0].get_parameter("weight_hh_l0")
    )


def test_models_of_other_sizes_are_refused() -> None:
    source = make_trained()
    target = LanguageModel(make_run(model__embedding_size=7).model, 12)
    with pytest.raises(ConfigError, match=r"m has model\.embedding_size = 6, this config 7"):
        initial_model(source, target, source.vocabulary, "m")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("head", ["", "3 6\n"])
def test_embeddings_of_known_words_are_read_from_glove_and_word2vec_files(
    tmp_path: Path, packed: bool, head: str
) -> None:
    text = head + "w3 1 2 3 4 5 6\nother 9 9 9\nw1 -0.5 0 0 0 0 1e-1 \n"
    path = tmp_path / ("vectors.txt.gz" if packed else "vectors.txt")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    corpus = make_corpus()
    initial = initial_embeddings(path, 6, corpus.vocabulary)
    run = _Run(make_run(), corpus, CPU, initial.apply)
    plain = _Run(make_run(), corpus, CPU)
    index = corpus.vocabulary.index
    assert run.model.embedding.weight[index["w3"]].tolist() == [1, 2, 3, 4, 5, 6]
    assert run.model.embedding.weight[index["w1"]].tolist() == pytest.approx([-0.5, 0, 0, 0, 0, 0.1])
    assert torch.equal(run.model.embedding.weight[index["w4"]], plain.model.embedding.weight[index["w4"]])
    assert initial.words == 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("w1 1 2\n", r"line 1 of .* has 2 numbers, and model\.embedding_size is 6"),
        ("w1 1 2 3 4 5 x\n", "is no file of embeddings"),
        ("w1 1 2 3 4 5 nan\n", "no finite number"),
        ("nothing 1 2\n", "has none of the vocabulary's 12 words"),
    ],
)
def test_a_file_that_has_no_embeddings_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "v.txt").write_text(text)
    with pytest.raises(ConfigError, match=why):
        initial_embeddings(tmp_path / "v.txt", 6, make_corpus().vocabulary)
    with pytest.raises(ConfigError, match="is no file of embeddings"):
        initial_embeddings(tmp_path / "missing", 6, make_corpus().vocabulary)


def test_a_model_is_tuned_on_another_text_and_its_lines_are_scored(tmp_path: Path, cli: Cli) -> None:
    write_corpus(tmp_path / "corpus")
    (tmp_path / "plain.toml").write_text(
        "format = 1\n[data]\ncorpus = 'corpus'\n[model]\nembedding_size = 6\nhidden_size = 6\nnum_layers = 1\n"
        "[train]\nlearning_rate = 0.03\nepochs = 3\nbatch_size = 4\nbptt = 8\n"
    )
    first = cli("train", "plain.toml", "--name", "first")
    assert first.returncode == 0, first.stderr
    tuned = cli("train", "plain.toml", "--from", "runs/first/seed-1", "--name", "tuned", "--epochs", "1")
    assert tuned.returncode == 0, tuned.stderr
    assert "starts from runs/first/seed-1, which knows 14 of the 14 words" in tuned.stdout
    before, after = (float(said.stdout.split("epoch   1  train ")[1].split()[0]) for said in (first, tuned))
    assert after < before - 0.2
    assert '"initial": "runs/first/seed-1"' in (tmp_path / "runs/tuned/seed-1/metrics.json").read_text()
    (tmp_path / "lines.txt").write_text("word1 word2\nnever\n\nword1 word2\n")
    said = cli("evaluate", "runs/tuned/seed-1", "--text", "lines.txt", "--lines")
    assert said.returncode == 0, said.stderr
    rows = [line.split("\t") for line in said.stdout.splitlines()]
    assert rows[0] == ["log-probability", "words", "unknown", "perplexity", "line"]
    assert rows[1] == rows[4] and rows[1][1:3] == ["3", "0"] and rows[2][1:3] == ["2", "1"] and rows[3][1] == "1"
    words = cli("evaluate", "runs/tuned/seed-1", "--text", "lines.txt", "--lines", "--words", "--json").stdout
    assert words.count("<eos>") == 4
    refused = cli("evaluate", "runs/tuned/seed-1", "--text", "lines.txt", "--words")
    assert refused.returncode == 2 and "--words goes with --lines" in refused.stderr
