"""When a search fails in the same way again and again."""

from collections.abc import Sequence

from lmsearch.errors import SearchFailedError
from lmsearch.store.records import TrialRecord


def repeated_failure(tracebacks: Sequence[str | None], limit: int) -> str | None:
    """Return the traceback with which the last `limit` trials failed, None where they did not all fail with one.

    `tracebacks` has one for each trial of ours that ended, in that order: None where it did not fail. "" stands for a
    failure without a traceback, which a person or another program reported: it says nothing of the search, so it
    is left out.
    """
    last = [traceback for traceback in tracebacks if traceback != ""][-limit:]
    return last[0] if len(last) == limit and len(set(last)) == 1 else None


def check_failures(tracebacks: Sequence[str | None], limit: int) -> None:
    """Raise `SearchFailedError` where the last `limit` trials failed with one traceback; see `repeated_failure`."""
    if (failure := repeated_failure(tracebacks, limit)) is not None:
        raise SearchFailedError(f"{limit} trials in a row failed in the same way:\n{failure}")


def tracebacks_of(ended: Sequence[TrialRecord]) -> list[str | None]:
    """Return the traceback of each trial of ours that has ended, in their order; None of one that did not fail.

    Trials that another program added, or that were taken over, have no ticket and do not count.
    """
    own = [trial for trial in ended if trial.ticket is not None]
    return [trial.traceback if trial.outcome == "failed" else None for trial in own]
