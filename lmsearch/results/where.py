"""Conditions on trials as a person types them: a small grammar of their own, never Python's.

    condition  = conjunction { "or" conjunction }
    conjunction = negation { "and" negation }
    negation   = "not" negation | "(" condition ")" | NAME OPERATOR VALUE

A name is a searched value such as `model.tie_weights`, or one of `FIELDS`; a value is written as in a study file.
A comparison with something that a trial does not have, or of things that have no order, is false; a value that a
searched one can never have, such as `True` for `true`, is refused.
"""

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lmsearch.config import coerce
from lmsearch.errors import ConfigError
from lmsearch.spelling import nearest, short_names
from lmsearch.store.records import TrialRecord
from lmsearch.study.reading import parse_value

FIELDS: dict[str, Callable[[TrialRecord], Any]] = {
    "trial": lambda trial: trial.number,
    "outcome": lambda trial: trial.outcome,
    "by": lambda trial: trial.by,
    "perplexity": lambda trial: trial.perplexity if trial.curve else None,
    "best_epoch": lambda trial: trial.best_epoch,
    "epochs": lambda trial: len(trial.curve),
    "parameters": lambda trial: trial.parameters,
    "seconds": lambda trial: trial.seconds,
    "reason": lambda trial: trial.reason,
}
"""What a trial has beside its searched values."""

Condition = Callable[[TrialRecord], bool]

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_TOKEN = re.compile(r"""\s*(==|!=|<=|>=|<|>|\(|\)|"[^"]*"|'[^']*'|[^\s()<>=!"']+)""")
_DEEPEST = 50


def field_of(trial: TrialRecord, name: str) -> Any:
    """Return what a trial has under a name, None where it has nothing."""
    return FIELDS[name](trial) if name in FIELDS else trial.params.get(name)


def needs_epochs(*texts: str | None) -> bool:
    """Whether a name or a condition needs a trial's epochs."""
    return any(re.search(r"\bseconds\b", text or "") for text in texts)


def full_name(name: str, paths: Sequence[str]) -> str:
    """Return a field, or a searched value by its dotted name, which may be given without its section where one has it.

    Raises `ConfigError`.
    """
    if name in FIELDS or name in paths:
        return name
    found = [path for path, short in short_names(paths).items() if short == name]
    if not found:
        raise ConfigError(f"a trial has no {name!r}{nearest(name, [*FIELDS, *paths])}")
    return found[0]


def sort_trials(trials: Sequence[TrialRecord], name: str, descending: bool = False) -> list[TrialRecord]:
    """Sort by a field or a searched value, the lowest first; trials that do not have it come last."""

    def key(trial: TrialRecord) -> tuple[float, str]:
        value = field_of(trial, name)
        number = isinstance(value, int | float)
        return float(value) if number else math.inf, "" if number else str(value)

    have = [trial for trial in trials if field_of(trial, name) is not None]
    return sorted(have, key=key, reverse=descending) + [t for t in trials if field_of(t, name) is None]


def parse_condition(text: str, paths: Sequence[str]) -> Condition:
    """Read a condition; `paths` are the searched values. Raises `ConfigError` with what was expected."""
    parser = _Parser(_tokens(text), text, paths)
    condition = parser.condition(0)
    if (rest := parser.peek()) is not None:
        raise parser.error(f"nothing, or `and` or `or`, instead of {rest!r}")
    return condition


def _tokens(text: str) -> list[str]:
    tokens, at = [], 0
    while text[at:].strip():
        found = _TOKEN.match(text, at)
        if found is None:
            raise ConfigError(f"--where {text!r} cannot be read at {text[at:].strip()!r}")
        tokens.append(found[1])
        at = found.end()
    return tokens


@dataclass
class _Parser:
    tokens: list[str]
    text: str
    paths: Sequence[str]
    at: int = 0

    def peek(self) -> str | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self) -> str:
        token = self.peek()
        if token is None:
            raise self.error("more after its end")
        self.at += 1
        return token

    def error(self, expected: str) -> ConfigError:
        return ConfigError(
            f"--where {self.text!r}: expected {expected}; write for example: "
            "model.tie_weights == true and perplexity < 100"
        )

    def condition(self, depth: int) -> Condition:
        parts = [self._conjunction(depth)]
        while self.peek() == "or":
            self.take()
            parts.append(self._conjunction(depth))
        return lambda trial: any(part(trial) for part in parts)

    def _conjunction(self, depth: int) -> Condition:
        parts = [self._negation(depth)]
        while self.peek() == "and":
            self.take()
            parts.append(self._negation(depth))
        return lambda trial: all(part(trial) for part in parts)

    def _negation(self, depth: int) -> Condition:
        if depth > _DEEPEST:
            raise self.error(f"no more than {_DEEPEST} brackets within each other")
        token = self.take()
        if token == "not":
            inner = self._negation(depth + 1)
            return lambda trial: not inner(trial)
        if token == "(":
            inner = self.condition(depth + 1)
            if self.take() != ")":
                raise self.error("a closing bracket")
            return inner
        return self._comparison(token)

    def _comparison(self, name: str) -> Condition:
        if name in _OPERATORS or name in (")", "and", "or"):
            raise self.error(f"a name instead of {name!r}")
        name = full_name(name, self.paths)
        symbol = self.take()
        if symbol not in _OPERATORS:
            raise self.error(f"one of {' '.join(_OPERATORS)} after {name}, not {symbol!r}")
        value = self.take()
        if value in _OPERATORS or value in ("(", ")"):
            raise self.error(f"a value instead of {value!r}")
        wanted = parse_value(value)
        return _compared(name, _OPERATORS[symbol], wanted if name in FIELDS else coerce(name, wanted))


def _compared(name: str, compare: Callable[[Any, Any], bool], wanted: object) -> Condition:
    def condition(trial: TrialRecord) -> bool:
        value = field_of(trial, name)
        if value is None or isinstance(value, bool) != isinstance(wanted, bool):
            return False
        try:
            return compare(value, wanted)
        except TypeError:  # a number and a word have no order
            return False

    return condition
