"""What a study is: a run config with some values left open, closed one point at a time."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomlkit

from lmsearch.config import (
    BUILT_IN_CORPORA,
    FIELD_TYPES,
    MOST_TRIALS,
    DataConfig,
    RunConfig,
    Value,
    coerce,
)
from lmsearch.errors import ConfigError
from lmsearch.space import OpenValue, Prior
from lmsearch.spelling import nearest
from lmsearch.study.closed import corpus_from
from lmsearch.study.options import check_pruner, check_sampler, startup_trials
from lmsearch.study.sizes import solve_sizes


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """The table [study]: how much is searched, and by which strategy."""

    trials: int = 24
    hours: float = 0.0  # 0: no limit
    seed: int = 1
    max_failures: int = 3  # in a row, with the same traceback
    sampler: str = "tpe"
    pruner: str = "asha"
    checkpoint_gb: float = 0.0  # of disk for its checkpoints in one folder; 0: no limit
    source: str = ""  # a study whose ended trials that fit this space are taken over

    @property
    def checkpoint_bytes(self) -> float:
        """Return the quota for checkpoints in bytes, infinite where there is none."""
        return 1e9 * self.checkpoint_gb or math.inf

    def __post_init__(self) -> None:
        for name, low in (("trials", 1), ("hours", 0), ("seed", 0), ("max_failures", 1), ("checkpoint_gb", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"study.{name} must be at least {low}, got {getattr(self, name)}")
        most = {"trials": MOST_TRIALS, "hours": 1_000_000, "seed": (1 << 63) - 1, "max_failures": MOST_TRIALS}
        for name, high in (most | {"checkpoint_gb": 1_000_000_000}).items():
            if not getattr(self, name) <= high:  # nan is not
                raise ConfigError(f"study.{name} must be at most {high:,}, got {getattr(self, name)}")
        check_sampler(self.sampler)
        check_pruner(self.pruner)


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """A study file as read: values that are fixed, values left open, and what to do with them."""

    text: str
    settings: StudySettings
    fixed: Mapping[str, Value]
    open: Mapping[str, OpenValue]
    same_as: Mapping[str, str] = field(default_factory=dict)
    parameters: int | None = None  # the budget that solves the hidden size
    manual: tuple[Mapping[str, Value], ...] = ()
    sampler_options: Mapping[str, Value] = field(default_factory=dict)
    pruner_options: Mapping[str, Value] = field(default_factory=dict)
    prior: Mapping[str, Prior] = field(default_factory=dict)
    implied: Mapping[str, Value] = field(default_factory=dict)  # of `fixed`, the earlier defaults that hold in it

    @property
    def epochs(self) -> int:
        """Return the number of epochs of a trial that is not stopped."""
        return int(self.fixed.get("train.epochs", default_value("train.epochs")))

    @property
    def data(self) -> DataConfig:
        """Return the text's settings, which are never open; the corpus is a built-in name or an absolute path."""
        return RunConfig.from_paths({p: v for p, v in self.fixed.items() if p.startswith("data.")}).data

    def text_from(self, folder: Path) -> str:
        """Return the file's text, with a corpus that is a path named from `folder`; comments stay.

        Defaults of an earlier lmsearch that hold in it are written out, so that a new study of it is the same.
        """
        corpus = self.data.corpus
        if corpus in BUILT_IN_CORPORA and not self.implied:
            return self.text
        document: Any = tomlkit.parse(self.text)
        if corpus not in BUILT_IN_CORPORA:
            document["data"]["corpus"] = corpus_from(folder, corpus)
        for path, value in self.implied.items():
            section, _, name = path.partition(".")
            document.setdefault(section, tomlkit.table())[name] = value
        return tomlkit.dumps(document)

    def close(self, params: Mapping[str, Value], vocabulary_size: int) -> RunConfig:
        """Close every open value with `params`, which must name exactly the open ones."""
        values = dict(self.fixed) | self.check_point(params)
        for path in self.open:
            if path not in params:
                raise ConfigError(f"{path} is open in this study and was given no value")
        for path, source in self.same_as.items():
            values[path] = values.get(source, default_value(source))
        if self.parameters is not None:
            return solve_sizes(values, self.parameters, vocabulary_size)
        return RunConfig.from_paths(values)

    def value(self, path: str, params: Mapping[str, Value]) -> Value:
        """Return a setting's value at a point, without a check that the point makes a valid run."""
        source = self.same_as.get(path, path)
        return params.get(source, self.fixed.get(source, default_value(source)))

    def check_point(self, params: Mapping[str, object]) -> dict[str, Value]:
        """Convert open values to their types; refuse names that are not open and values out of range."""
        checked: dict[str, Value] = {}
        for path, raw in params.items():
            if path not in self.open:
                raise ConfigError(self._why_not_open(path))
            value = coerce(path, raw)
            if not self.open[path].contains(value):
                raise ConfigError(f"{path} = {value} is out of its range {self.open[path]}")
            checked[path] = value
        return checked

    def options_of(self, sampler: str) -> Mapping[str, Value]:
        """Return the file's options of a sampler; none where it names another one."""
        return self.sampler_options if sampler == self.settings.sampler else {}

    def is_of_start_design(self, sampler: str, ticket: int) -> bool:
        """Whether a ticket is one of a learning sampler's first, which it draws before it knows anything."""
        return ticket < startup_trials(sampler, self.options_of(sampler))

    def starts_from_prior(self, sampler: str, ticket: int) -> bool:
        """Whether a ticket's point is drawn from the prior: every other one of a start design."""
        return bool(self.prior) and ticket % 2 == 0 and self.is_of_start_design(sampler, ticket)

    def _why_not_open(self, path: str) -> str:
        if path in self.fixed:
            return f"{path} is fixed at {self.fixed[path]} in this study; open are: {', '.join(self.open)}"
        if path in self.same_as:
            return f"{path} follows {self.same_as[path]} in this study; set that one"
        if path in FIELD_TYPES:
            return f"{path} is not open in this study; open are: {', '.join(self.open)}"
        return f"unknown name {path}{nearest(path, self.open)}"

    def grid_points(self) -> list[dict[str, Value]]:
        """List the points of the grid, in the file's order, the last value changing fastest."""
        axes: list[tuple[Value, ...]] = []
        for path, value in self.open.items():
            points = value.points()
            if points is None:
                raise ConfigError(f"{path} is open without a grid; add grid = [...] to it, or take another sampler")
            axes.append(points)
        if (total := math.prod(map(len, axes))) > MOST_TRIALS:
            raise ConfigError(f"the grid has {total:,} points, and a study has at most {MOST_TRIALS:,} trials")
        return [dict(zip(self.open, point, strict=True)) for point in itertools.product(*axes)]

    def count_points(self) -> int | None:
        """Return the number of points of the space, None where a range has no steps."""
        counts = [value.count() for value in self.open.values()]
        return None if None in counts else math.prod(count for count in counts if count is not None)

    def ends(self) -> Iterator[dict[str, Value]]:
        """Yield points that together reach every end of every range and every choice and grid value."""
        base = {path: value.ends()[0] for path, value in self.open.items()}
        yield base
        for path, value in self.open.items():
            for end in (*value.ends(), *(value.points() or ())):
                yield base | {path: end}

    def check_ends(self, vocabulary_size: int) -> None:
        """Refuse a space with an end that makes no valid run."""
        for point in self.ends():
            self.close(point, vocabulary_size)

    def warnings(self) -> list[str]:
        """List what is allowed and yet probably not meant."""
        if "train.optimizer" in self.open and "train.learning_rate" in self.open:
            return [
                "train.optimizer and train.learning_rate are both open, and a rate that suits one optimizer "
                "does not suit another (30 for sgd, 0.003 for adam); one study per optimizer finds more"
            ]
        return []


def default_value(path: str) -> Value:
    """Return the default of a setting by its dotted path."""
    return RunConfig.from_paths({"data.corpus": "python-docs"}).by_path().get(path, "as the corpus has it")
