"""Studies whose trials a test makes up, written through the real store."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import TrialState, create_trial

from lmsearch.search.begin import begin
from lmsearch.search.budget import Request
from lmsearch.store.distributions import distribution
from lmsearch.store.opening import open_storage
from lmsearch.store.records import StudyInfo, store_info
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import EpochRow
from lmsearch.store.url import parse_url
from tests.factories import make_corpus, make_spec

STUDY = """
format = 1
[study]
trials = 1
[data]
corpus = "python-docs"
[model]
output_dropout = { low = 0.0, high = 0.6 }
weight_dropout = { low = 0.0, high = 0.7 } # how much?
tie_weights = { choices = [true, false] }
[train]
learning_rate = { low = 1e-4, high = 1e-1, log = true }
epochs = 4
"""
NOON = datetime(2026, 11, 26, 12)


@dataclass(frozen=True, kw_only=True)
class Made:
    """One trial to be put into the store."""

    params: Mapping[str, Any]
    perplexities: Sequence[float]
    outcome: str = "complete"
    sampler: str = "tpe"
    attributes: Mapping[str, Any] = field(default_factory=dict)


def make_study(
    url: str, trials: Sequence[Made], name: str = "made", text: str = STUDY, confirms: str = ""
) -> tuple[FencedStorage, StudyInfo]:
    """Create a study whose ended trials are `trials`, ten seconds an epoch, one after the other."""
    storage = open_storage(parse_url(url))
    info = begin(storage, name, make_spec(Path("/"), text), "/", make_corpus(), Request())
    if confirms:
        info = replace(info, confirms=confirms)
        store_info(storage, info)
    for number, made in enumerate(trials):
        _add(storage, info, number, made)
    return storage, info


def _add(storage: FencedStorage, info: StudyInfo, number: int, made: Made) -> None:
    states = {"complete": TrialState.COMPLETE, "failed": TrialState.FAIL}
    reason = {"reason": made.outcome} if made.outcome in ("diverged", "infeasible") else {}
    trial = create_trial(
        state=states.get(made.outcome, TrialState.PRUNED),
        value=min(made.perplexities) if made.outcome == "complete" else None,
        params=dict(made.params),
        distributions={path: distribution(info.spec.open[path]) for path in made.params},
        user_attrs={
            "origin": "search",
            "sampler": made.sampler,
            "parameters": 1000 + number,
            **reason,
            **made.attributes,
        },
        intermediate_values=dict(enumerate(made.perplexities, 1)),
    )
    began = NOON + timedelta(seconds=60 * number)
    trial.datetime_start, trial.datetime_complete = began, began + timedelta(seconds=10 * len(made.perplexities))
    rows = [
        EpochRow(epoch=n, train_loss=1.0, valid_loss=math.log(value), seconds=10.0, tokens=1000, learning_rate=0.01)
        for n, value in enumerate(made.perplexities, 1)
    ]
    storage.add_epochs(info.ref, storage.create_new_trial(info.ref.id, trial), rows)


def some_trials(count: int, epochs: int = 4, seed: int = 0, **fields: Any) -> list[Made]:
    """Make trials all over the space of `STUDY`, a third of them pruned, best at weight_dropout 0.3."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        params = {
            "model.output_dropout": float(rng.uniform(0, 0.6)),
            "model.weight_dropout": float(rng.uniform(0, 0.7)),
            "model.tie_weights": bool(rng.integers(2)),
            "train.learning_rate": float(10 ** rng.uniform(-4, -1)),
        }
        base = 100 * (1 + (params["model.weight_dropout"] - 0.3) ** 2) + float(rng.normal())
        pruned = number % 3 == 2 and epochs > 1
        curve = [base * (1 + 1 / epoch) for epoch in range(1, (2 if pruned else epochs) + 1)]
        outcome = {"outcome": "pruned" if pruned else "complete"} | fields
        found.append(Made(params=params, perplexities=curve, **outcome))
    return found
