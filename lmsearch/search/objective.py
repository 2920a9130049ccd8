"""lmsearch for users of Optuna: an objective for `study.optimize`."""

from collections.abc import Callable
from pathlib import Path

import optuna

from lmsearch.lm.train import Epoch, open_device, train
from lmsearch.losses import perplexity
from lmsearch.search.begin import check_space
from lmsearch.search.strategies import suggest
from lmsearch.spec import load_study
from lmsearch.text.corpus import cache_folder, open_corpus


def objective(study_file: str | Path, device: str = "auto") -> Callable[[optuna.Trial], float]:
    """Give an Optuna objective that trains what a study file describes: minimise it.

    It draws the file's open values from the trial, reports validation perplexity after each epoch (steps from 1),
    raises `optuna.TrialPruned` where the study's pruner says so or the trial diverges, and returns the lowest
    perplexity. Budget, sampler and pruner are those of your study, not of the file. Raises `LmsearchError`.
    """
    spec = load_study(Path(study_file))
    corpus = open_corpus(spec.data, cache_folder())
    check_space(spec, corpus)
    where = open_device(device)
    size = len(corpus.vocabulary)

    def run(trial: optuna.Trial) -> float:
        config = spec.close(suggest(trial, spec), size)
        best = float(size)
        for event in train(config, corpus, where, None):
            if isinstance(event, Epoch):
                value = min(perplexity(event.valid_loss), float(size))
                trial.report(value, event.number)
                if value == size:
                    trial.set_user_attr("reason", "diverged")
                if value == size or trial.should_prune():
                    raise optuna.TrialPruned
                best = min(best, value)
        return best

    return run
