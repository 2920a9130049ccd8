"""Trials that are paused: what each is forecast to reach."""

import math
from dataclasses import dataclass

from lmsearch.curves.forecast import forecast
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


def paused_forecasts(record: StudyRecord) -> dict[int, Forecast]:
    """Return what each paused trial of a study is forecast to reach, by its number."""
    if not record.count("paused"):
        return {}
    known = [(trial, losses) for trial in record.trials if (losses := _losses(trial))]
    found = forecast(
        [losses for _, losses in known], record.info.spec.epochs, [trial.outcome == "complete" for trial, _ in known]
    )
    return {
        trial.number: Forecast(
            epoch=len(trial.curve),
            low=math.exp(float(mean) - _STANDARD_DEVIATIONS * float(deviation)),
            high=math.exp(float(mean) + _STANDARD_DEVIATIONS * float(deviation)),
        )
        for (trial, _), mean, deviation in zip(known, found.mean_N, found.deviation_N, strict=True)
        if trial.outcome == "paused"
    }


def paused_sentences(record: StudyRecord) -> list[str]:
    """Say which trials are paused, and what they are forecast to reach; the most promising first."""
    found = sorted(paused_forecasts(record).items(), key=lambda item: (item[1].low + item[1].high, item[0]))
    if not found:
        return []
    trials = "1 trial is" if len(found) == 1 else f"{len(found)} trials are"
    each = "; ".join(f"trial {number} {forecast}" for number, forecast in found[:_SHOWN])
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return [f"{trials} paused, to continue if the forecast of their final perplexity becomes the best: {each}{more}."]


def _losses(trial: TrialRecord) -> list[float]:
    values = [value for _, value in sorted(trial.curve.items())]
    if trial.outcome == "diverged":
        values = values[:-1]
    return [math.log(value) for value in values if 0 < value < math.inf]
