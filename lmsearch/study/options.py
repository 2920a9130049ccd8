"""The samplers and pruners that there are, and the options that each takes."""

from collections.abc import Mapping
from typing import Any

from lmsearch.config import Value
from lmsearch.errors import ConfigError
from lmsearch.spelling import nearest

SAMPLER_STARTUP = {"tpe": 8, "gp": 7}  # trials of the start design, where the study file does not say
MEDIAN_STARTUP = 6  # complete trials before the median pruner stops one, where the study file does not say
SAMPLER_OPTIONS: dict[str, dict[str, type]] = {
    "manual": {},
    "grid": {},
    "random": {},
    "qmc": {},
    "gp": {"n_startup_trials": int},
    "tpe": {"n_startup_trials": int, "n_ei_candidates": int, "multivariate": bool, "constant_liar": bool},
}
LEARNING_SAMPLERS = frozenset({"tpe", "gp"})
"""The samplers that learn from earlier trials; the report compares each with random search."""

PRUNER_OPTIONS: dict[str, dict[str, type]] = {
    "median": {"n_startup_trials": int, "n_warmup_steps": int, "interval_steps": int, "n_min_trials": int},
    "asha": {
        "min_resource": int,
        "reduction_factor": int,
        "min_early_stopping_rate": int,
        "bootstrap_count": int,
        "promote": bool,
    },
    "hyperband": {"min_resource": int, "max_resource": int, "reduction_factor": int, "bootstrap_count": int},
    "none": {},
    "thaw": {"n_startup_trials": int, "interval_steps": int},
}
_OPTION_LOWS = {
    "n_startup_trials": 0,
    "n_warmup_steps": 0,
    "min_early_stopping_rate": 0,
    "bootstrap_count": 0,
    "reduction_factor": 2,
}
"""The least value of an option that is a whole number, where that is not 1."""
_MOST_OPTION = 1_000_000_000
_STOPPING = ("min_early_stopping_rate", "bootstrap_count")  # options of an ASHA that does not promote


def median_warmup(epochs: int) -> int:
    """Return the first epoch at which the median pruner may stop a trial, where the study file does not say."""
    return 1 + max(1, epochs // 5)


def startup_trials(sampler: str, options: Mapping[str, Value]) -> int:
    """Return how many trials a sampler starts with before it learns from them; 0 for one that never does."""
    return int(options.get("n_startup_trials", SAMPLER_STARTUP.get(sampler, 0)))


def asha_promotes(options: Mapping[str, Value]) -> bool:
    """Whether ASHA pauses what it passes over, to promote it later, as it does where the study file does not say."""
    return bool(options.get("promote", True))


def asha_factor(options: Mapping[str, Value]) -> int:
    """Return of how many trials one passes a rung of ASHA."""
    return int(options.get("reduction_factor", 2 if asha_promotes(options) else 3))


def asha_rung(epochs: int) -> int:
    """Return the first epoch at which ASHA compares trials, where the study file does not say."""
    return max(1, epochs // 9)


def check_sampler(name: str) -> None:
    """Refuse a sampler that there is not."""
    if name not in SAMPLER_OPTIONS:
        raise ConfigError(f"no sampler is called {name!r}{nearest(name, SAMPLER_OPTIONS)}")


def check_pruner(name: str) -> None:
    """Refuse a pruner that there is not."""
    if name not in PRUNER_OPTIONS:
        raise ConfigError(f"no pruner is called {name!r}{nearest(name, PRUNER_OPTIONS)}")


def read_options(
    table: str, chosen: str, tables: dict[str, Any], allowed: dict[str, dict[str, type]]
) -> dict[str, Value]:
    """Read the table of a sampler's or a pruner's options. Raises `ConfigError` for one that it does not take."""
    options: dict[str, Value] = tables.get(table, {})
    for name, value in options.items():
        if name not in allowed[chosen]:
            raise ConfigError(f"unknown key {table}.{name} for the {table} {chosen!r}{nearest(name, allowed[chosen])}")
        check_option(f"{table}.{name}", value, allowed[chosen][name])
        low = _OPTION_LOWS.get(name, 1)
        if allowed[chosen][name] is int and not low <= int(value) <= _MOST_OPTION:
            raise ConfigError(f"{table}.{name} must be at least {low} and at most {_MOST_OPTION:,}, got {value}")
    if chosen == "asha" and asha_promotes(options):
        for name in _STOPPING:
            if name in options:
                raise ConfigError(f"{table}.{name} is for an asha that stops trials: add promote = false")
    least, most = options.get("min_resource", 1), options.get("max_resource", _MOST_OPTION)
    if int(least) > int(most):
        raise ConfigError(f"{table}.min_resource = {least} is more than max_resource = {most}")
    return options


def check_option(path: str, value: object, wanted: type) -> None:
    """Refuse a value of another type."""
    fits = isinstance(value, int | float) if wanted is float else isinstance(value, wanted)
    if not fits or (isinstance(value, bool) and wanted is not bool):
        raise ConfigError(f"{path} must be of type {wanted.__name__}, got {value!r}")
