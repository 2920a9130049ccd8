"""Trials that repeat the values of an earlier one."""

from collections.abc import Iterator
from dataclasses import dataclass

from lmsearch.store.records import StudyRecord


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """How many trials repeat an earlier one's values: with one seed they give the same perplexity, bit for bit."""

    repeated: int
    of: int  # trials that were trained, completely or until they were pruned


def repeats(record: StudyRecord) -> Repeats:
    """Count the trials that repeat an earlier one's values."""
    keys = [
        tuple(sorted(trial.params.items()))
        for trial in record.trials
        if trial.outcome in ("complete", "pruned") and trial.params
    ]
    return Repeats(repeated=len(keys) - len(set(keys)), of=len(keys))


def repeat_sentences(record: StudyRecord) -> Iterator[str]:
    """Say how many trials gave no new information, if any."""
    found = repeats(record)
    if found.repeated:
        yield (
            f"{found.repeated} of {found.of} trials repeat the values of another, and so its perplexity: they gave no "
            "new information. The space has few points: widen it, or stop here."
        )
