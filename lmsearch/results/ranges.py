"""Is the range right: ends of ranges that the best trials crowd."""

import math
from dataclasses import dataclass

import tomlkit
from tomlkit.items import InlineTable

from lmsearch.config import RunConfig, Value
from lmsearch.errors import ConfigError
from lmsearch.space import Choice, FloatRange, IntRange
from lmsearch.spelling import spell_value
from lmsearch.store.records import SEED, StudyRecord

_BEST = 5  # trials whose position in a range is looked at
_CROWD = 4  # of these near one end are a crowd
_NEAR = 0.1  # of the searched scale
_DIVERGED_NEAR = 0.2  # the same, for trials that diverged
_LEAST_COMPLETE = 10
_LEAST_POINTS = 5  # of a range in steps: with fewer, its ends hold too many by chance


@dataclass(frozen=True, kw_only=True)
class Edge:
    """An end of a range that the best trials crowd."""

    path: str
    end: str  # low or high
    value: Value  # at that end
    log: bool  # whether the exponent is searched
    crowd: int
    best: int
    diverged: int  # trials that diverged near it
    wider: Value | None  # what it could be instead; None beside diverged trials

    @property
    def change(self) -> str:
        """Return the change to the study that makes the range wider, as `lmsearch extend --set` takes it."""
        return f"{self.path}.{self.end}={spell_value(self.wider)}"

    def __str__(self) -> str:
        end = "upper" if self.end == "high" else "lower"
        return (
            f"{self.crowd} of the {self.best} best have {self.path} within {_NEAR:.0%} of its {end} end {self.value:g}"
            + (" on its logarithmic scale" if self.log else "")
        )


def edges(record: StudyRecord) -> list[Edge]:
    """List the ends of ranges that the best trials crowd, where the setting itself allows more.

    Four of the five best in the outer tenth: `benchmarks/claims.py range` says how often that misleads. Seeds have no
    better end, and the ends of a grid were chosen.
    """
    complete = sorted((t for t in record.trials if t.outcome == "complete"), key=lambda trial: trial.perplexity)
    if record.info.is_plain:  # its values are no settings of ours, whose bounds are known
        return []
    if len(complete) < _LEAST_COMPLETE or all(trial.by == "grid" for trial in complete[:_BEST]):
        return []
    found = []
    for path, value in record.info.spec.open.items():
        if path == SEED or isinstance(value, Choice):
            continue
        if value.step and (value.high - value.low) / value.step < _LEAST_POINTS - 1:
            continue
        positions = [position(value, trial.params[path]) for trial in complete[:_BEST] if path in trial.params]
        diverged = [
            position(value, t.params[path]) for t in record.trials if t.outcome == "diverged" and path in t.params
        ]
        for end, flipped in (("low", False), ("high", True)):
            crowd = sum(_distance(one, flipped) <= _NEAR for one in positions)
            wider = _wider(path, value, end)
            if crowd >= _CROWD and wider is not None:
                beside = sum(_distance(one, flipped) <= _DIVERGED_NEAR for one in diverged)
                found.append(
                    Edge(
                        path=path,
                        end=end,
                        value=getattr(value, end),
                        log=value.log,
                        crowd=crowd,
                        best=len(positions),
                        diverged=beside,
                        wider=None if beside else wider,
                    )
                )
    return found


def position(value: FloatRange | IntRange, number: Value) -> float:
    """Return where a number lies between the ends of its range, from 0 to 1 in the scale that is searched."""
    low, high, at = float(value.low), float(value.high), float(number)
    if value.log:
        low, high, at = math.log(low), math.log(high), math.log(at)
    return (at - low) / (high - low)


def _distance(at: float, flipped: bool) -> float:
    return 1 - at if flipped else at


def _wider(path: str, value: FloatRange | IntRange, end: str) -> Value | None:
    """Return the end of a wider range, None where the setting allows nothing beyond."""
    for share in (0.5, 0.25, 0.125):
        if value.log:
            factor = min(10.0, (value.high / value.low) ** share)
            raw = value.high * factor if end == "high" else value.low / factor
        else:
            width = share * (value.high - value.low)
            raw = value.high + width if end == "high" else value.low - width
        wider = _rounded(value, raw)
        if wider in (value.low, value.high):
            continue
        try:
            RunConfig.from_paths({"data.corpus": "python-docs", path: wider})
        except ConfigError:
            continue
        return wider
    return None


def _rounded(value: FloatRange | IntRange, raw: float) -> Value:
    if isinstance(value, IntRange):
        return round((raw - value.low) / value.step) * value.step + value.low
    if value.step:
        return value.low + round((raw - value.low) / value.step) * value.step
    return float(f"{raw:.2g}")


def edge_line(record: StudyRecord, edge: Edge) -> str:
    """Return the line of the study file with the range made wider."""
    section, _, name = edge.path.partition(".")
    document = tomlkit.parse(record.info.spec.text)
    table = document[section][name]
    if not isinstance(table, InlineTable):  # written with dotted keys, or as a table of its own
        inline = tomlkit.inline_table()
        inline.update(table.unwrap())
        table = inline
    table[edge.end] = edge.wider
    return f"{name} = {table.as_string().strip()}"


def edge_sentence(edge: Edge) -> str:
    """Return what a crowded end means."""
    if edge.diverged:
        beside = "a trial" if edge.diverged == 1 else f"{edge.diverged} trials"
        return (
            f"{edge}; {beside} diverged near it, so training breaks down at this end: "
            "do not widen the range, find what keeps training stable there"
        )
    return f"{edge}: the best value may lie beyond it"
