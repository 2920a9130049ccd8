"""Packages that only an extra of lmsearch brings."""

import importlib
from typing import Any

from lmsearch.errors import ConfigError


def load(module: str, extra: str) -> Any:
    """Import a module of such a package. Raises `ConfigError` where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ConfigError(
            f"{package} is not installed here; install it with: pip install 'lmsearch[{extra}]'"
        ) from error
