"""Which hyperparameters mattered."""

import warnings

import optuna

from lmsearch.store.distributions import distribution
from lmsearch.store.records import StudyRecord

_LEAST_COMPLETE = 6  # below that PED-ANOVA says nothing


def importances(record: StudyRecord) -> dict[str, float]:
    """Return each open value's share of the differences between trials (PED-ANOVA, Watanabe et al., 2023).

    The most important comes first; empty where too few trials are complete.
    """
    if record.count("complete") < _LEAST_COMPLETE:
        return {}
    spec = record.info.spec
    distributions = {path: distribution(value) for path, value in spec.open.items()}
    study = optuna.create_study()
    study.add_trials(
        [
            optuna.trial.create_trial(
                params={path: trial.params[path] for path in distributions},
                distributions=distributions,
                value=trial.perplexity,
            )
            for trial in record.trials
            if trial.outcome == "complete"
            and all(path in trial.params and spec.open[path].contains(trial.params[path]) for path in distributions)
        ]
    )
    if len(study.trials) < _LEAST_COMPLETE:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shares = optuna.importance.get_param_importances(study)
    return {path: share for path, share in shares.items() if path in spec.open}
