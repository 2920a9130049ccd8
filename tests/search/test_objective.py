"""The objective for users of Optuna: a function of the trial's values alone, whatever runs beside it."""

import pickle
import subprocess
import sys
import threading
from pathlib import Path

import optuna
import pytest
import torch

import lmsearch
from lmsearch.errors import ConfigError, StudyError
from lmsearch.lm.events import Epoch
from lmsearch.lm.train import train
from tests.factories import TINY_STUDY, make_corpus, make_run, write_corpus

POINT = {"model.output_dropout": 0.3, "model.tie_weights": True, "train.learning_rate": 0.01}


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus")
    (tmp_path / "tiny.toml").write_text(TINY_STUDY)
    return tmp_path / "tiny.toml"


def values(study_file: Path, n_jobs: int) -> list[float]:
    study = optuna.create_study()
    for _ in range(6):
        study.enqueue_trial(POINT)
    study.optimize(lmsearch.objective(study_file), n_trials=6, n_jobs=n_jobs)
    return [float(trial.value or 0) for trial in study.trials]


def test_the_same_values_give_the_same_perplexity_in_threads_too(study_file: Path) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    alone = values(study_file, 1)
    assert len(set(alone)) == 1 and values(study_file, 3) == alone


def test_trainings_that_begin_in_the_same_moment_have_the_same_weights() -> None:
    """Each draws its initial weights from PyTorch's one generator."""
    barrier, found = threading.Barrier(4), []
    corpus, config = make_corpus(), make_run(train__epochs=1)

    def begin() -> None:
        barrier.wait()
        (*_, last) = (event for event in train(config, corpus, torch.device("cpu")) if isinstance(event, Epoch))
        found.append(last.valid_loss)

    for _ in range(5):
        threads = [threading.Thread(target=begin) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 20 and len(set(found)) == 1


@pytest.mark.slow
def test_it_can_be_pickled_and_called_in_another_process(study_file: Path) -> None:
    made = lmsearch.objective(study_file)
    (study_file.parent / "made").write_bytes(pickle.dumps(made))
    code = (
        "import pickle, sys, optuna; optuna.logging.set_verbosity(optuna.logging.ERROR)\n"
        "made = pickle.load(open('made', 'rb')); study = optuna.create_study()\n"
        f"study.enqueue_trial({POINT!r}); study.optimize(made, n_trials=1); print(study.best_value)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=study_file.parent, capture_output=True, text=True, check=True
    )
    assert float(said.stdout) == values(study_file, 1)[0]


def test_a_study_that_maximises_is_refused(study_file: Path) -> None:
    study = optuna.create_study(direction="maximize")
    with pytest.raises(StudyError, match='direction="minimize"'):
        study.optimize(lmsearch.objective(study_file), n_trials=1)
    closed = TINY_STUDY.split("output_dropout")[0] + "[train]\nepochs = 1\n"
    (study_file.parent / "closed.toml").write_text(closed)
    with pytest.raises(ConfigError, match="leaves no value open"):
        lmsearch.objective(study_file.parent / "closed.toml")
