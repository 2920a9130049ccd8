"""The ways in which a study file may leave a value open."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lmsearch.config import Value
from lmsearch.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FloatRange:
    """A number left open between two ends, both included."""

    low: float
    high: float
    log: bool = False  # search the exponent: learning rates span decades
    step: float | None = None
    grid: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, self.log, self.step)
        _check_grid(self, self.grid)

    def contains(self, value: Value) -> bool:
        """Whether a closed value is a point of this range."""
        inside = isinstance(value, int | float) and self.low <= value <= self.high
        return inside and (self.step is None or _on_lattice(float(value) - self.low, self.step))

    def ends(self) -> tuple[Value, ...]:
        """Return the values at which a range is most likely to make an invalid run."""
        return (self.low, self.high)

    def points(self) -> tuple[Value, ...] | None:
        """Return the values of a grid search, or None where the file names none."""
        return self.grid

    def count(self) -> int | None:
        """Return the number of values; None where they are continuous."""
        return None if self.step is None else round((self.high - self.low) / self.step) + 1

    def from_share(self, share: float) -> float:
        """Return the value at a share (0 to 1) of the range, by its logarithm where the search is over that."""
        if self.step is not None:
            return min(self.low + _cell(share, self.count() or 1) * self.step, self.high)
        return min(max(_scaled(share, self.low, self.high, self.log), self.low), self.high)

    def share_of(self, value: Value) -> float:
        """Return at which share of the range a value stands; with steps, in the middle of the value's part."""
        if self.step is not None:
            count = self.count() or 1
            return (round((float(value) - self.low) / self.step) + 0.5) / count
        return _unscaled(float(value), self.low, self.high, self.log)

    def __str__(self) -> str:
        return f"{self.low:.12g} to {self.high:.12g}" + (" (log)" if self.log else "")


@dataclass(frozen=True, kw_only=True)
class IntRange:
    """A whole number left open between two ends, both included."""

    low: int
    high: int
    log: bool = False
    step: int = 1
    grid: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, self.log, self.step if self.step != 1 else None)
        if self.step < 1:
            raise ConfigError(f"a step must be at least 1, got {self.step}")
        _check_grid(self, self.grid)

    def contains(self, value: Value) -> bool:
        """Whether a closed value is a point of this range."""
        return isinstance(value, int) and self.low <= value <= self.high and (value - self.low) % self.step == 0

    def ends(self) -> tuple[Value, ...]:
        """Return the values at which a range is most likely to make an invalid run."""
        return (self.low, self.high)

    def points(self) -> tuple[Value, ...] | None:
        """Return the values of a grid search, or None where the file names none."""
        return self.grid

    def count(self) -> int:
        """Return the number of values."""
        return (self.high - self.low) // self.step + 1

    def from_share(self, share: float) -> int:
        """Return the value at a share (0 to 1) of the range, by its logarithm where the search is over that."""
        if self.log:
            value = round(_scaled(share, self.low - 0.5, self.high + 0.5, True))
            return min(max(value, self.low), self.high)
        return self.low + _cell(share, self.count()) * self.step

    def share_of(self, value: Value) -> float:
        """Return at which share of the range a value stands: the middle of the value's part."""
        if self.log:
            return _unscaled(float(value), self.low - 0.5, self.high + 0.5, True)
        return ((int(value) - self.low) // self.step + 0.5) / self.count()

    def __str__(self) -> str:
        return f"{self.low} to {self.high}" + (" (log)" if self.log else "")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A value left open among a few."""

    choices: tuple[Value, ...]

    def __post_init__(self) -> None:
        if len(self.choices) < 2:
            raise ConfigError(f"choices need at least two values, got {list(self.choices)}")
        if len(set(self.choices)) < len(self.choices):
            raise ConfigError(f"choices must differ, got {list(self.choices)}")

    def contains(self, value: Value) -> bool:
        """Whether a closed value is one of the choices."""
        return value in self.choices

    def ends(self) -> tuple[Value, ...]:
        """Return all choices: each may be the one that makes an invalid run."""
        return self.choices

    def points(self) -> tuple[Value, ...]:
        """Return all choices: they are their own grid."""
        return self.choices

    def count(self) -> int:
        """Return the number of values."""
        return len(self.choices)

    def from_share(self, share: float) -> Value:
        """Return the choice at a share (0 to 1): each has an equal part."""
        return self.choices[_cell(share, len(self.choices))]

    def share_of(self, value: Value) -> float:
        """Return the middle of a choice's part."""
        return (self.choices.index(value) + 0.5) / len(self.choices)

    def __str__(self) -> str:
        return "one of " + ", ".join(_toml(choice) for choice in self.choices)


OpenValue = FloatRange | IntRange | Choice


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Where a search begins with an open value: near `at`, by a standard deviation in shares of the range.

    Of a choice, `spread` is the probability of another one.
    """

    at: Value
    spread: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.spread <= 1:
            raise ConfigError(f"a spread must be above 0 and at most 1, got {self.spread}")


_MOST_STEPS = 1e9  # with more, neighbouring points of a range are one point to a sampler


def _cell(share: float, count: int) -> int:
    """Return in which of `count` equal parts a share lies."""
    return min(max(int(share * count), 0), count - 1)


def _scaled(share: float, low: float, high: float, log: bool) -> float:
    if log:
        return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return low + share * (high - low)


def _unscaled(value: float, low: float, high: float, log: bool) -> float:
    if log:
        return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
    return (value - low) / (high - low)


def _toml(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_range(low: float, high: float, log: bool, step: float | None) -> None:
    if not low < high:
        raise ConfigError(f"a range needs low < high, got {low} and {high}")
    if log and low <= 0:
        raise ConfigError(f"a range with log = true needs low above 0, got {low}")
    if step is not None and log:
        raise ConfigError("a range has a step or log = true, not both")
    if step is not None and not 0 < step <= high - low:
        raise ConfigError(f"a step must be above 0 and at most high - low, got {step}")
    if step is not None and (high - low) / step >= _MOST_STEPS:
        raise ConfigError(f"a range has at most {_MOST_STEPS:.0e} steps, got a step of {step}")
    if step is not None and not _on_lattice(high - low, step):
        raise ConfigError(f"high must be a whole number of steps above low, got {low}, {high} and step {step}")


def _on_lattice(distance: float, step: float) -> bool:
    steps = distance / step
    return steps < _MOST_STEPS and math.isclose(steps, round(steps), abs_tol=1e-9)


def _check_grid(owner: FloatRange | IntRange, grid: Sequence[float] | None) -> None:
    if grid is None:
        return
    if not grid:
        raise ConfigError("a grid needs at least one value")
    if len(set(grid)) < len(grid):
        raise ConfigError(f"the values of a grid must differ, got {list(grid)}")
    for value in grid:
        if not owner.contains(value):
            raise ConfigError(f"the grid's value {value} is outside the range {owner}")
