"""Which hyperparameters mattered."""

import warnings

import optuna

from lmsearch.store.records import StudyRecord, optuna_study
from lmsearch.store.storage import FencedStorage

_LEAST_COMPLETE = 6  # below that PED-ANOVA says nothing


def importances(storage: FencedStorage, record: StudyRecord) -> dict[str, float]:
    """Give each open value's share of the differences between trials (PED-ANOVA, Watanabe et al., 2023).

    The most important comes first; empty where too few trials are complete to tell.
    """
    if record.count("complete") < _LEAST_COMPLETE:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shares = optuna.importance.get_param_importances(optuna_study(storage, record.info.ref.name))
    return {path: share for path, share in shares.items() if path in record.info.spec.open}
