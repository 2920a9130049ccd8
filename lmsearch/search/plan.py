"""What a search would cost, before it starts."""

import json
import logging
import math
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL

from lmsearch.config import SETTINGS, RunConfig, Value
from lmsearch.errors import ConfigError, LmsearchError, SearchFailedError
from lmsearch.machine import free_memory, memory_left
from lmsearch.processes import python
from lmsearch.search.allocation import pauses
from lmsearch.space import Choice
from lmsearch.spelling import spell_bytes, spell_value
from lmsearch.store.health import connection_limits
from lmsearch.store.storage import FencedStorage
from lmsearch.study.spec import StudySpec

_log = logging.getLogger(__name__)

_LONGEST_MEASURE = 300.0  # seconds for one point


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point of the space, and what it costs; measured values are None before they are."""

    params: Mapping[str, Value]
    what: str  # smallest, middle, largest, or the end that it is
    parameters: int
    tokens_per_second: float | None = None
    epoch_seconds: float | None = None
    memory: int | None = None  # bytes, of one worker
    checkpoint: int | None = None  # bytes of one file
    weights: int | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a search would cost on this machine."""

    points: tuple[Point, ...]  # by parameters, the smallest first
    trials: int
    epochs: int
    workers: int
    sharing: int  # workers that share one memory: all on a CPU, else those of the fullest GPU
    pausing: bool  # whether trials pause
    free: float | None  # bytes of memory: of the first GPU, of the host, or of its control group

    @property
    def middle(self) -> Point:
        """Return the point in the middle of the space, from which the hours are estimated."""
        return next(point for point in self.points if point.what == "middle")

    @property
    def hours(self) -> float:
        """Return the hours of the whole search, if nothing is pruned."""
        waves = math.ceil(self.trials / self.workers)
        return waves * self.epochs * (self.middle.epoch_seconds or 0.0) / 3600

    @property
    def memory(self) -> int:
        """Return the most memory, in bytes, of the workers that share one device or host."""
        return self.sharing * max(point.memory or 0 for point in self.points)

    @property
    def disk(self) -> int:
        """Return the most bytes that checkpoints and weights take: two files a running trial, and the best models.

        Where trials pause each may keep its two files and its best weights, until the study ends.
        """
        checkpoint = max(point.checkpoint or 0 for point in self.points)
        weights = max(point.weights or 0 for point in self.points)
        kept = max(self.trials, self.workers) if self.pausing else self.workers
        return 2 * kept * checkpoint + (kept + 3 + 1) * weights


def points_remark(spec: StudySpec, trials: int) -> str:
    """Return how many points a space has where a search may go through all of them; "" where it may not."""
    points = spec.count_points()
    if points is None or points > 10 * trials:
        return ""
    text = f"points       the space has {points:,}; none is tried twice while others are left"
    more = trials - points
    return text + (f", and {more:,} of {trials:,} trials will repeat one, bit for bit" if more > 0 else "")


def space_points(spec: StudySpec, vocabulary_size: int) -> list[Point]:
    """Return the smallest, the middle and the largest point of a space, and each end of it with another cost.

    Raises `ConfigError` where one of them makes no valid run.
    """
    lows = {path: value.ends()[0] for path, value in spec.open.items()}
    highs = {path: value.ends()[-1] for path, value in spec.open.items()}
    middles = {path: _middle(value) for path, value in spec.open.items()}
    named: list[tuple[str, dict[str, Value]]] = [("middle", middles)]
    named += [("smallest", lows), ("largest", highs)]
    for path, value in spec.open.items():
        for end in value.ends():
            named.append((f"{path} = {spell_value(end)}", middles | {path: end}))
    found: dict[tuple[Any, ...], Point] = {}
    for what, params in named:
        config = spec.close(params, vocabulary_size)
        parameters = config.model.count_parameters(vocabulary_size)
        found.setdefault(_cost_key(config), Point(params=params, what=what, parameters=parameters))
    return sorted(found.values(), key=lambda point: point.parameters)


def _middle(value: Any) -> Value:
    if isinstance(value, Choice):
        return value.choices[len(value.choices) // 2]
    middle = (value.low * value.high) ** 0.5 if value.log else (value.low + value.high) / 2
    if isinstance(value.low, int):
        return int(value.low + round((middle - value.low) / value.step) * value.step)
    return float(value.low + round((middle - value.low) / value.step) * value.step) if value.step else float(middle)


def _cost_key(config: RunConfig) -> tuple[Any, ...]:
    """Return what decides how long a step takes and how much memory; values of dropout and rates do not."""
    values = config.by_path()
    return tuple(values[path] for path, setting in SETTINGS.items() if setting.cost)


def make_plan(
    spec: StudySpec,
    vocabulary_size: int,
    trials: int,
    devices: Sequence[str],
    cache: Path,
    allow_pickle: bool = False,
) -> Plan:
    """Measure a space's points on this machine, the middle one by all workers at once.

    Raises `ConfigError` for a space with a point that cannot run here: one that takes more memory than there is.
    """
    points = space_points(spec, vocabulary_size)
    device = devices[0]
    measured = []
    left = [size for size in (free_memory(), memory_left()) if size is not None] if device == "cpu" else []
    for point in points:
        extra = {"event": "measuring", "parameters": point.parameters}
        _log.info("measuring %s: %s parameters", point.what, f"{point.parameters:,}", extra=extra)
        config = spec.close(point.params, vocabulary_size)
        found = _ask(config, [device], cache, allow_pickle)[0]
        left += [] if found["free"] is None else [found["free"]]
        measured.append(_with(point, found))
    middle = next(point for point in measured if point.what == "middle")
    if len(devices) > 1:
        _log.info("measuring %d workers at once", len(devices), extra={"event": "measuring", "workers": len(devices)})
        together = _ask(spec.close(middle.params, vocabulary_size), devices, cache, allow_pickle)
        slowdown = max(one["epoch_seconds"] for one in together) / (middle.epoch_seconds or 1.0)
        measured = [
            replace(
                point,
                epoch_seconds=(point.epoch_seconds or 0.0) * slowdown,
                tokens_per_second=(point.tokens_per_second or 0.0) / slowdown,
            )
            for point in measured
        ]
    plan = Plan(
        points=tuple(measured),
        trials=trials,
        epochs=spec.epochs,
        workers=len(devices),
        pausing=pauses(spec, spec.settings.pruner),
        sharing=len(devices) if device == "cpu" else max(Counter(devices).values()),
        free=min(left, default=None),
    )
    _check_memory(plan)
    return plan


def _check_memory(plan: Plan) -> None:
    largest = max(plan.points, key=lambda point: point.memory or 0)
    if plan.free is not None and plan.memory > plan.free:
        raise ConfigError(
            f"{plan.sharing} workers at the point {_spelled(largest)} take {spell_bytes(plan.memory)} of memory, and "
            f"{spell_bytes(plan.free)} are free: take fewer --workers, or make the space smaller there"
        )


def _ask(config: RunConfig, devices: Sequence[str], cache: Path, allow_pickle: bool) -> list[dict[str, Any]]:
    """Measure a configuration on several devices at once, each in a process of its own."""
    request = {"config": config.by_path(), "cache": str(cache), "allow_pickle": allow_pickle}
    words = python("-m", "lmsearch.search.measure")
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    children = [subprocess.Popen(words, stdin=-1, stdout=-1, stderr=-1, text=True, env=environment) for _ in devices]
    try:
        for child, device in zip(children, devices, strict=True):
            assert child.stdin is not None
            child.stdin.write(json.dumps(request | {"device": device}))
            child.stdin.close()
            child.stdin = None
        return [_answer(config, child) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()


def _answer(config: RunConfig, child: "subprocess.Popen[str]") -> dict[str, Any]:
    size = f"embedding_size {config.model.embedding_size}, hidden_size {config.model.hidden_size}, "
    size += f"num_layers {config.model.num_layers}, batch_size {config.train.batch_size}, bptt {config.train.bptt}"
    try:
        said, complained = child.communicate(timeout=_LONGEST_MEASURE)
    except subprocess.TimeoutExpired as error:
        raise SearchFailedError(
            f"the point with {size} had not trained a few batches after {_LONGEST_MEASURE:.0f} s"
        ) from error
    if child.returncode == -9:
        raise ConfigError(f"the point with {size} cannot run here: the system killed it, out of memory")
    if child.returncode:
        last = (complained.strip().splitlines() or ["no reason"])[-1]
        raise SearchFailedError(f"the point with {size} cannot be measured: {last}")
    found: dict[str, Any] = json.loads(said)
    if "memory_failure" in found:
        raise ConfigError(
            f"the point with {size} cannot run here: it ran out of memory at {spell_bytes(found['memory'])}"
        )
    return found


def _with(point: Point, found: Mapping[str, Any]) -> Point:
    return replace(
        point,
        tokens_per_second=found["tokens_per_second"],
        epoch_seconds=found["epoch_seconds"],
        memory=found["memory"],
        checkpoint=found["checkpoint"],
        weights=found["weights"],
    )


def _spelled(point: Point) -> str:
    return ", ".join(f"{path} = {spell_value(value)}" for path, value in point.params.items())


def connections_sentence(url: URL, open_store: Callable[[], FencedStorage], workers: int) -> str:
    """Return how many connections a search takes, and whether the database has them."""
    if url.get_backend_name() == "sqlite":
        return "none: SQLite is a file, for workers on this host"
    wanted = workers + 1
    try:
        limits = connection_limits(open_store())
    except LmsearchError as error:
        return f"{wanted}; whether the database has them is not known: {error}"
    room = min((limit.allowed - limit.used for limit in limits), default=0)
    text = f"{wanted} to PostgreSQL (one a worker, one for `lmsearch run`), {max(0, room)} are free"
    return text + ("" if room >= wanted else f": TOO FEW, {limits[0].name} is {limits[0].allowed}")
