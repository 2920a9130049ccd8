"""The language model: its layers, its training, and its use. `from lmsearch.lm import load` loads a trained one."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmsearch.lm.use.model_folder import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """Load `load` when it is asked for, so that what needs no PyTorch starts without it."""
    if name == "load":
        from lmsearch.lm.use.model_folder import load

        return load
    raise AttributeError(f"module 'lmsearch.lm' has no attribute {name!r}")
