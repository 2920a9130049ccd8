"""What went wrong: the trials without a result, by their reason."""

from dataclasses import dataclass

from lmsearch.store.records import StudyRecord


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Trials that ended without a result for one reason."""

    outcome: str
    reason: str  # "" where there is no more to say than the outcome
    trials: tuple[int, ...]


def troubles(record: StudyRecord) -> list[Trouble]:
    """List the reasons for which trials ended without a result, the most frequent first."""
    groups: dict[tuple[str, str], list[int]] = {}
    for trial in record.trials:
        if trial.outcome in ("failed", "diverged", "infeasible"):
            groups.setdefault((trial.outcome, trial.reason), []).append(trial.number)
    return [
        Trouble(outcome=outcome, reason="" if reason == outcome else reason, trials=tuple(numbers))
        for (outcome, reason), numbers in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
