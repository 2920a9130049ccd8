"""What a search found: read from the store, never from anything else, and judged in numbers and words."""

from lmsearch.results.reading import Confirmation, Leader, Results, read

__all__ = ["Confirmation", "Leader", "Results", "read"]
