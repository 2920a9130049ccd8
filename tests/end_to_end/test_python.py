"""lmsearch from Python: what the README shows, in one process and with real workers."""

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

import lmsearch
from lmsearch import api
from lmsearch.errors import SearchFailedError
from tests.factories import TINY_STUDY, write_study


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_search_a_confirmation_and_a_training_from_python(folder: Path) -> None:
    results = lmsearch.search("tiny.toml", workers=1, trials=2, sampler="random")
    assert results.winner is not None and results.record.done == 2
    assert repr(results) == f"Results('tiny', trials=2, complete=2, best={results.winner.perplexity:.2f} (trial " + (
        f"{results.winner.number}))"
    )
    shown = results._repr_html_()
    assert "<b>tiny</b>: 2 of 2 trials" in shown and "<th>train.learning_rate</th>" in shown
    # The store, the study and the model need no name: there is one of each.
    assert lmsearch.read().record == results.record
    assert (folder / "runs/tiny/best-config.json").is_file()
    confirmed = lmsearch.confirm(top=1, seeds=1, workers=1)
    assert confirmed.confirmation is not None and confirmed.confirmation.done == 1
    again, other = lmsearch.train("runs/tiny/best-config.json", seeds=2, name="again")
    assert again.perplexity == results.winner.perplexity and other.seed == again.seed + 1
    changes: dict[str, Any] = {"train.learning_rate": 0.00123456789, "model.tie_weights": False}
    (changed,) = lmsearch.train("runs/tiny/best-config.json", epochs=1, changes=changes, name="changed")
    config = lmsearch.load(changed.model).config  # to the last digit
    assert (config.train.learning_rate, config.model.tie_weights) == (0.00123456789, False)
    model = lmsearch.load("tiny")
    assert repr(model).startswith("TrainedModel(") and f"perplexity {results.winner.perplexity:.2f})" in repr(model)
    assert list(model.generate(words=5, temperature=0.8, top_p=0.9)) == list(
        lmsearch.load(again.model).generate(words=5, temperature=0.8, top_p=0.9)
    )
    with pytest.raises(lmsearch.LmsearchError, match="a text is a str, not list; for a list of words"):
        model.perplexity(["word1", "word2"])  # type: ignore[arg-type]
    with pytest.raises(
        lmsearch.LmsearchError, match="a model is named by its folder or its study, a str or a Path, not"
    ):
        lmsearch.load(3)  # type: ignore[arg-type]
    # The same search again trains nothing; one trial more is one more.
    assert len(lmsearch.search("tiny", workers=1, more=1).record.trials) == 3


def test_what_cannot_be_is_one_of_our_errors(folder: Path) -> None:
    with pytest.raises(lmsearch.LmsearchError, match="there is no study file 'tyni'"):
        lmsearch.search("tyni")
    with pytest.raises(lmsearch.LmsearchError, match="there is no store"):
        lmsearch.read()
    with pytest.raises(lmsearch.LmsearchError, match="there is no model 'nothing'"):
        lmsearch.load("nothing")
    text = TINY_STUDY.replace("low = 1e-3, high = 1e-1, log = true, grid = [0.01]", "low = 900.0, high = 999.0")
    (folder / "far.toml").write_text(text + 'optimizer = "sgd"\nclip_norm = 0.0\n')
    with pytest.raises(SearchFailedError, match="all 2 trials of far diverged, so no model was kept"):
        lmsearch.search("far.toml", workers=1, trials=2, sampler="random")


def test_an_objective_of_a_shipped_study_is_refused_by_a_study_that_maximises(folder: Path) -> None:
    made = lmsearch.objective("default", device="cpu")
    assert made.study_file.name == "default.toml"
    study = optuna.create_study(direction="maximize")
    with pytest.raises(lmsearch.LmsearchError, match='create the study with direction="minimize"'):
        study.optimize(made, n_trials=1)


def test_the_package_lists_what_it_offers_each_with_its_errors_and_loads_nothing_before() -> None:
    assert {"confirm", "figure", "load", "objective", "read", "search", "train", "LmsearchError"} <= set(dir(lmsearch))
    for name in ("confirm", "figure", "load", "read", "search", "train"):
        text = inspect.getdoc(getattr(api, name)) or ""
        assert "Raises:" in text, name
    with pytest.raises(AttributeError, match="module 'lmsearch' has no attribute 'serch'"):
        lmsearch.serch  # type: ignore[attr-defined]  # noqa: B018
    code = (
        "import sys, lmsearch; dir(lmsearch); print([m for m in ('torch', 'optuna', 'sqlalchemy') if m in sys.modules])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert said.stdout == "[]\n"
