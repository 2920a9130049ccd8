"""What trials that have not trained all their epochs are forecast to reach."""

import math
from dataclasses import dataclass

import numpy as np

from lmsearch.curves.forecast import Forecasts, forecast, losses_of
from lmsearch.store.records import StudyRecord, TrialRecord

_SHOWN = 10
_STANDARD_DEVIATIONS = 1.645  # of an interval of 90 %


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The perplexity that a trial is expected to reach at its end, as an interval of 90 %."""

    epoch: int  # at which it is paused
    low: float
    high: float

    def __str__(self) -> str:
        return f"paused at epoch {self.epoch}, forecast {self.low:.1f} to {self.high:.1f}"


def expected_losses(record: StudyRecord) -> dict[int, float]:
    """Return the loss (nats per token) that each trial with an epoch reaches or is forecast to reach, by its number.

    One that diverged is as bad as the worst of the others. Of a study that another program made, the values as they
    are, of complete trials alone.
    """
    if record.info.is_plain:
        return {
            t.number: t.perplexity for t in record.trials if t.outcome == "complete" and math.isfinite(t.perplexity)
        }
    known, found = _forecast(record)
    losses = {
        trial.number: float(mean)
        for trial, mean in zip(known, found.mean_N, strict=True)
        if trial.outcome != "diverged"
    }
    worst = max(losses.values(), default=None)
    diverged = [trial.number for trial in record.trials if trial.outcome == "diverged"]
    return losses if worst is None else losses | dict.fromkeys(diverged, worst)


def paused_forecasts(record: StudyRecord) -> dict[int, Forecast]:
    """Return what each paused trial of a study is forecast to reach, by its number."""
    if not record.count("paused"):
        return {}
    known, found = _forecast(record)
    return {
        trial.number: Forecast(
            epoch=len(trial.curve),
            low=math.exp(float(mean) - _STANDARD_DEVIATIONS * float(deviation)),
            high=math.exp(float(mean) + _STANDARD_DEVIATIONS * float(deviation)),
        )
        for trial, mean, deviation in zip(known, found.mean_N, found.deviation_N, strict=True)
        if trial.outcome == "paused"
    }


def _forecast(record: StudyRecord) -> tuple[list[TrialRecord], Forecasts]:
    """Return the trials with an epoch, and what each reaches or is forecast to reach."""
    known = [
        (trial, losses) for trial in record.trials if (losses := losses_of(trial.curve, trial.outcome == "diverged"))
    ]
    trials = [trial for trial, _ in known]
    if not known:
        return [], Forecasts(mean_N=np.zeros(0), deviation_N=np.zeros(0))
    complete = [trial.outcome == "complete" for trial in trials]
    return trials, forecast([losses for _, losses in known], record.info.spec.epochs, complete)


def paused_sentences(record: StudyRecord) -> list[str]:
    """Say which trials are paused, and what they are forecast to reach; the most promising first."""
    found = sorted(paused_forecasts(record).items(), key=lambda item: (item[1].low + item[1].high, item[0]))
    if not found:
        return []
    trials = "1 trial is" if len(found) == 1 else f"{len(found)} trials are"
    each = "; ".join(f"trial {number} {forecast}" for number, forecast in found[:_SHOWN])
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return [f"{trials} paused, to continue if the forecast of their final perplexity becomes the best: {each}{more}."]
