"""What a search found: files, figures and words made from the store, never from anything else.

In a notebook: `results = read("my-study", "sqlite:///runs/lmsearch.db")`, then `figures.FIGURES["curves"](results)`.
"""

from lmsearch.results.reading import Confirmation, Leader, Results, read

__all__ = ["Confirmation", "Leader", "Results", "read"]
