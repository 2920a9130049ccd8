"""lmsearch for users of Optuna: an objective for `study.optimize`."""

import functools
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch

from lmsearch.errors import ConfigError, StudyError
from lmsearch.folders import absolute
from lmsearch.lm.device import open_device
from lmsearch.lm.events import Epoch
from lmsearch.lm.train import train
from lmsearch.search.outcome import DIVERGED, PRUNED, decide, final_value, reported_value
from lmsearch.search.start import open_study_file
from lmsearch.search.strategies import suggest
from lmsearch.study.shipped import find_study_file
from lmsearch.study.spec import StudySpec
from lmsearch.text.corpus import Corpus


@dataclass(frozen=True)
class Objective:
    """An objective of Optuna: what a study file describes, trained once. It can be pickled, and called by threads.

    What it computes depends on the trial's values alone, whatever runs beside it; `train.threads` is of the process.
    """

    study_file: Path  # absolute
    device: str = "auto"

    def __call__(self, trial: optuna.Trial) -> float:
        """Train one trial; raises `optuna.TrialPruned` where the pruner says so, or where it diverges."""
        if trial.study.directions != [optuna.study.StudyDirection.MINIMIZE]:
            raise StudyError('the objective is a perplexity: create the study with direction="minimize"')
        spec, corpus = _opened(self.study_file)
        size = len(corpus.vocabulary)
        config = spec.close(suggest(trial, spec), size)
        losses = []
        for event in train(config, corpus, _device(self.device), None):
            if isinstance(event, Epoch):
                losses.append(event.valid_loss)
                trial.report(reported_value(event.valid_loss, size), event.number)
                left = config.train.epochs - event.number
                ended = decide(event.valid_loss, size, left, lambda: PRUNED if trial.should_prune() else None)
                if ended == DIVERGED:
                    trial.set_user_attr("reason", DIVERGED)
                if ended is not None:
                    raise optuna.TrialPruned
        return final_value(losses)


@functools.cache
def _opened(study_file: Path) -> tuple[StudySpec, Corpus]:
    """Read a study file and its text, once in a process."""
    return open_study_file(study_file)


@functools.cache
def _device(name: str) -> torch.device:
    return open_device(name)


def objective(study_file: str | Path, device: str = "auto") -> Objective:
    """Return an Optuna objective that trains what a study file, or a study that lmsearch ships, describes: minimise it.

    It draws the file's open values from the trial, reports validation perplexity after each epoch (steps from 1),
    raises `optuna.TrialPruned` where the study's pruner says so or the trial diverges, and returns the lowest
    perplexity. Budget, sampler and pruner are those of your study, not of the file. Raises `LmsearchError`.
    """
    made = Objective(absolute(find_study_file(str(study_file)), any_name=True), device)
    _opened.cache_clear()  # the file may have changed since another objective read it
    spec, _ = _opened(made.study_file)
    if not spec.open:
        raise ConfigError(f"{study_file} leaves no value open, so there is nothing to search")
    _device(device)
    return made
