"""When a search fails in the same way again and again."""

from collections.abc import Sequence


def repeated_failure(tracebacks: Sequence[str | None], limit: int) -> str | None:
    """Return the traceback with which the last `limit` trials failed, None where they did not all fail with one.

    `tracebacks` has one for each trial of ours that ended, in that order: None where it did not fail. "" stands for a
    failure without a traceback, which a person or another program told: it says nothing of the search, and is left out.
    """
    last = [traceback for traceback in tracebacks if traceback != ""][-limit:]
    return last[0] if len(last) == limit and len(set(last)) == 1 else None
