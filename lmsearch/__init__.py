"""lmsearch: hyperparameter search for LSTM language models."""

from typing import TYPE_CHECKING, Any

from lmsearch.version import __version__

if TYPE_CHECKING:
    from lmsearch.search.objective import objective

__all__ = ["__version__", "objective"]


def __getattr__(name: str) -> Any:
    """Load `lmsearch.objective` when it is asked for, so that `import lmsearch` stays light."""
    if name == "objective":
        from lmsearch.search.objective import objective

        return objective
    raise AttributeError(f"module 'lmsearch' has no attribute {name!r}")
