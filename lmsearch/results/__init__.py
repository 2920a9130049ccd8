"""What a search found: read from the store, never from anything else, and judged in numbers and words."""

from lmsearch.results.confirmation import Confirmation, Leader
from lmsearch.results.reading import Results, read

__all__ = ["Confirmation", "Leader", "Results", "read"]
