"""Where the time went: training, and idle workers."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lmsearch.spelling import spell_duration
from lmsearch.store.records import StudyRecord, TrialRecord


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The time of a search."""

    trials: int  # that were trained in this study
    seconds: float  # of training and evaluation, of all workers together
    tokens: int  # trained
    idle: float  # share of the workers' time while the search ran


def timing(record: StudyRecord) -> Timing | None:
    """Return where the time went; None before the first epoch."""
    trials = [trial for trial in record.trials if trial.epochs and not trial.origin_trial]
    seconds = sum(trial.seconds for trial in trials)
    if not seconds:
        return None
    busy, there = _idle(trials)
    return Timing(
        trials=len(trials),
        seconds=seconds,
        tokens=sum(row.tokens for trial in trials for row in trial.epochs),
        idle=1 - busy / there if there > busy else 0.0,
    )


def time_sentences(record: StudyRecord) -> Iterator[str]:
    """Say where the time went: training, idle workers, tokens per second."""
    spent = timing(record)
    if spent is None:
        return
    yield (
        f"{spent.trials} trials trained and evaluated for {spell_duration(spent.seconds)}, {spent.tokens:,} tokens, "
        f"{spent.tokens / spent.seconds:,.0f} tokens/s per worker."
    )
    if spent.idle:
        yield f"Workers were idle for {spent.idle:.1%} of the time while the search ran."


def _idle(trials: Sequence[TrialRecord]) -> tuple[float, float]:
    """Return the seconds in which places for workers were taken, and in which they were there to be taken.

    As many places as ever were taken at once; time in which nothing ran, such as a night between two runs, does not
    count.
    """
    spans = [(trial.started, trial.ended) for trial in trials if trial.started and trial.ended]
    moments = sorted([(started, 1) for started, _ in spans] + [(ended, -1) for _, ended in spans])
    running = busy = open_seconds = 0.0
    most = 0
    for (moment, change), (following, _) in itertools.pairwise(moments):
        running += change
        most = max(most, int(running))
        seconds = (following - moment).total_seconds()
        busy += running * seconds
        open_seconds += seconds if running else 0.0
    return busy, most * open_seconds
