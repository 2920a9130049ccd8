"""The search: samplers and pruners, trials, and the workers that run them."""

import importlib
import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """A package that is called: `lmsearch.search(…)` is the function of `lmsearch.api`, and has this package's name."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Run a search; see `lmsearch.api.search`."""
        return importlib.import_module("lmsearch.api").search(*arguments, **named)


sys.modules[__name__].__class__ = _Callable
