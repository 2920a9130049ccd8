"""How long a search will take, from its pace so far."""

from datetime import datetime

from lmsearch.store.records import StudyRecord, TrialRecord


def seconds_left(record: StudyRecord, workers: int) -> float | None:
    """Estimate the rest of the search from the pace so far; None before an epoch has been measured."""
    measured = [trial for trial in record.trials if trial.curve and trial.started is not None]
    if not workers or not measured:
        return None
    ended = [trial for trial in measured if trial.ended is not None]
    whole = record.info.spec.epochs
    expected = sum(len(trial.curve) for trial in ended) / len(ended) if len(ended) >= 3 else whole
    times = [_wall_seconds(trial) / len(trial.curve) for trial in ended] or [
        _wall_seconds(trial) / len(trial.curve) for trial in measured
    ]
    each = sum(times) / len(times)
    open_epochs = sum(max(0.5, expected - ticket.epoch) for ticket in record.tickets if not ticket.is_done)
    busy = max(1, min(workers, sum(not ticket.is_done for ticket in record.tickets)))
    return each * open_epochs / busy


def _wall_seconds(trial: TrialRecord) -> float:
    assert trial.started is not None
    return max(0.0, ((trial.ended or datetime.now()) - trial.started).total_seconds())
