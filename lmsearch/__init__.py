"""lmsearch: hyperparameter search for LSTM language models."""

import logging
from typing import TYPE_CHECKING, Any

from lmsearch.version import __version__

if TYPE_CHECKING:
    from lmsearch.search.objective import objective

__all__ = ["__version__", "objective"]

logging.getLogger(__name__).addHandler(logging.NullHandler())  # who uses the package from Python decides what is shown


def __getattr__(name: str) -> Any:
    """Load `lmsearch.objective` when it is asked for, so that `import lmsearch` stays light."""
    if name == "objective":
        from lmsearch.search.objective import objective

        return objective
    raise AttributeError(f"module 'lmsearch' has no attribute {name!r}")
