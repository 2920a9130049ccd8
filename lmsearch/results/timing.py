"""Where the time went: training, and idle workers."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from lmsearch.spelling import listed, spell_seconds
from lmsearch.store.records import StudyRecord, TrialRecord

_CLOCKS = 60.0  # seconds by which clocks of hosts may differ
_BETWEEN_EPOCHS = 3.0  # seconds that saving and reporting may take


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The time of a search."""

    trials: int  # that were trained in this study
    seconds: float  # of training and evaluation, of all workers together
    tokens: int  # trained
    idle: float  # share of the workers' time while the search ran


def timing(record: StudyRecord) -> Timing | None:
    """Return where the time went; None before the first epoch."""
    trials = [trial for trial in record.trials if trial.epochs and not trial.is_taken_over]
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


def search_line(record: StudyRecord) -> str:
    """Return when the trials of a study ran, on which hosts, and on what text."""
    trials = [trial for trial in record.trials if trial.started is not None and not trial.is_taken_over]
    parts = [record.info.corpus] if record.info.corpus else []
    if trials:
        first = min(trial.started for trial in trials if trial.started is not None)
        last = max(trial.ended or trial.started or first for trial in trials)
        parts.append(f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M}" if last.date() != first.date()
                     else f"{first:%Y-%m-%d}, {first:%H:%M} to {last:%H:%M}")  # fmt: skip
    hosts = sorted({ticket.host for ticket in record.tickets if ticket.host})
    parts += [f"on {listed(hosts, 4)}"] if hosts else []
    return "; ".join(parts)


def time_sentences(record: StudyRecord) -> Iterator[str]:
    """Say where the time went: training, idle workers, tokens per second."""
    spent = timing(record)
    if spent is None:
        return
    yield (
        f"{spent.trials} trials trained and evaluated for {spell_seconds(spent.seconds)}, {spent.tokens:,} tokens, "
        f"{spent.tokens / spent.seconds:,.0f} tokens/s per worker."
    )
    if spent.idle:
        yield f"Workers were idle for {spent.idle:.1%} of the time while the search ran."


def work_of(trial: TrialRecord) -> list[tuple[datetime, datetime]]:
    """Return when a trial was at work: from its start to its end, without the time in which it was paused or waited.

    In one piece where it is not known when its epochs ended, as before lmsearch 0.4.0.
    """
    if trial.started is None or trial.ended is None:
        return []
    if not trial.epochs or any(row.ended is None for row in trial.epochs):
        return [(trial.started, trial.ended)]
    pieces: list[tuple[datetime, datetime]] = []
    for row in trial.epochs:
        ended = datetime.fromtimestamp(row.ended or 0.0)
        if not trial.started <= ended <= trial.ended + timedelta(seconds=_CLOCKS):  # of a host in another time zone
            return [(trial.started, trial.ended)]
        started = ended - timedelta(seconds=row.seconds)
        if pieces and (started - pieces[-1][1]).total_seconds() <= _BETWEEN_EPOCHS + row.seconds / 4:
            pieces[-1] = (pieces[-1][0], max(ended, pieces[-1][1]))
        else:
            pieces.append((max(started, trial.started), ended))
    return pieces


def _idle(trials: Sequence[TrialRecord]) -> tuple[float, float]:
    """Return the seconds in which places for workers were taken, and in which they were there to be taken.

    As many places as ever were taken at once; time in which nothing ran, such as a night between two runs, does not
    count.
    """
    spans = [span for trial in trials for span in work_of(trial)]
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
