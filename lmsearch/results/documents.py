"""What was read of a study as plain values, for JSON."""

import math
from dataclasses import asdict
from typing import Any

from lmsearch.store.records import TrialRecord


def trial_document(trial: TrialRecord) -> dict[str, Any]:
    """Return a trial as plain values; what is not finite is None."""
    return {
        "trial": trial.number,
        "outcome": trial.outcome,
        "by": trial.by,
        "perplexity": _finite(trial.perplexity),
        "best_epoch": trial.best_epoch,
        "known_perplexity": trial.known_perplexity,
        "params": trial.params,
        "parameters": trial.parameters,
        "reason": trial.reason,
        "from": trial.origin_trial or None,
        "started": trial.started.isoformat() if trial.started else None,
        "ended": trial.ended.isoformat() if trial.ended else None,
        "epochs": [
            {"perplexity": _finite(trial.curve.get(row.epoch, math.nan))}
            | {name: _finite(value) for name, value in asdict(row).items()}
            for row in trial.epochs
        ],
        "sample": trial.sample or None,
    }


def optional(found: Any) -> dict[str, Any] | None:
    """Return a dataclass as plain values; None for None."""
    return None if found is None else asdict(found)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
