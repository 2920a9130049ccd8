"""lmsearch: hyperparameter search for LSTM language models."""

import importlib
import logging
from typing import TYPE_CHECKING, Any

from lmsearch.version import __version__

if TYPE_CHECKING:
    from lmsearch.api import confirm, figure, load, read, search, train
    from lmsearch.errors import LmsearchError
    from lmsearch.search.objective import objective

__all__ = [
    "LmsearchError",
    "__version__",
    "confirm",
    "figure",
    "load",
    "objective",
    "read",
    "search",
    "train",
]

_HOMES = dict.fromkeys(("confirm", "figure", "load", "read", "search", "train"), "lmsearch.api") | {
    "LmsearchError": "lmsearch.errors",
    "objective": "lmsearch.search.objective",
}
"""Where each name of the package stands: it is loaded when it is asked for, so that `import lmsearch` stays light."""

logging.getLogger(__name__).addHandler(logging.NullHandler())  # who uses the package from Python decides what is shown


def __getattr__(name: str) -> Any:
    """Load what the package offers when it is asked for."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lmsearch' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List what the package offers, for completion."""
    return sorted({*globals(), *__all__})
