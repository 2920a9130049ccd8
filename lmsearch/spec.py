"""Study files: a run config with some values left open, read strictly and closed one point at a time."""

import itertools
import json
import math
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import tomlkit

from lmsearch.config import (
    BUILT_IN_CORPORA,
    FIELD_TYPES,
    MOST_TRIALS,
    DataConfig,
    RunConfig,
    Value,
    coerce,
    earlier_defaults,
    parse_budget,
)
from lmsearch.errors import ConfigError, LmsearchError
from lmsearch.folders import absolute
from lmsearch.formats import NewerFormatError, check_stamp, known_version
from lmsearch.space import Choice, FloatRange, IntRange, OpenValue
from lmsearch.spelling import nearest
from lmsearch.version import __version__

MEDIAN_STARTUP = 6  # complete trials before the median pruner stops one, where the study file does not say

SAMPLER_OPTIONS: dict[str, dict[str, type]] = {
    "manual": {},
    "grid": {},
    "random": {},
    "tpe": {"n_startup_trials": int, "n_ei_candidates": int, "multivariate": bool, "constant_liar": bool},
}
PRUNER_OPTIONS: dict[str, dict[str, type]] = {
    "median": {"n_startup_trials": int, "n_warmup_steps": int, "interval_steps": int, "n_min_trials": int},
    "asha": {
        "min_resource": int,
        "reduction_factor": int,
        "min_early_stopping_rate": int,
        "bootstrap_count": int,
    },
    "hyperband": {"min_resource": int, "max_resource": int, "reduction_factor": int, "bootstrap_count": int},
    "none": {},
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

_NOT_COMPARABLE = "perplexities of trials that differ in it could not be compared"
NEVER_OPEN = {
    "train.epochs": _NOT_COMPARABLE,
    "train.threads": "sums are formed in another order, so equal trials would differ",
    "train.eval_batch_size": _NOT_COMPARABLE,
    "train.eval_context": _NOT_COMPARABLE,
}
_LEFT_ALONE = ("lmsearch", "result", "provenance")  # what best-config.json has beside its config
_TABLES = ("study", "sampler", "pruner", "data", "model", "train")


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """The table [study]: how much is searched, and by which strategy."""

    trials: int = 24
    hours: float = 0.0  # 0: no limit
    seed: int = 1
    max_failures: int = 3  # in a row, with the same traceback
    sampler: str = "tpe"
    pruner: str = "median"
    checkpoint_gb: float = 0.0  # of disk for its checkpoints in one folder; 0: no limit
    source: str = ""  # a study whose ended trials that fit this space are taken over

    @property
    def checkpoint_bytes(self) -> float:
        """Give the quota for checkpoints in bytes, infinite where there is none."""
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
    implied: Mapping[str, Value] = field(default_factory=dict)  # of `fixed`, the earlier defaults that hold in it

    @property
    def epochs(self) -> int:
        """Give the number of epochs of a trial that is not stopped."""
        return int(self.fixed.get("train.epochs", _default("train.epochs")))

    @property
    def data(self) -> DataConfig:
        """Give the text's settings, which are never open; the corpus is a built-in name or an absolute path."""
        return RunConfig.from_paths({p: v for p, v in self.fixed.items() if p.startswith("data.")}).data

    def text_from(self, folder: Path) -> str:
        """Give the file's text, with a corpus that is a path named from `folder`; comments stay.

        Defaults of an earlier lmsearch that hold in it are written out, so that a new study of it is the same.
        """
        corpus = self.data.corpus
        if corpus in BUILT_IN_CORPORA and not self.implied:
            return self.text
        document: Any = tomlkit.parse(self.text)
        if corpus not in BUILT_IN_CORPORA:
            document["data"]["corpus"] = os.path.relpath(corpus, folder.resolve())
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
            values[path] = values.get(source, _default(source))
        if self.parameters is not None:
            return _solve_sizes(values, self.parameters, vocabulary_size)
        return RunConfig.from_paths(values)

    def check_point(self, params: Mapping[str, object]) -> dict[str, Value]:
        """Give some open values their types; refuse names that are not open and values out of range."""
        checked: dict[str, Value] = {}
        for path, raw in params.items():
            if path not in self.open:
                raise ConfigError(self._why_not_open(path))
            value = coerce(path, raw)
            if not self.open[path].contains(value):
                raise ConfigError(f"{path} = {value} is out of its range {self.open[path]}")
            checked[path] = value
        return checked

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
            raise ConfigError(f"the grid has {total:,} points, and a study owes at most {MOST_TRIALS:,} trials")
        return [dict(zip(self.open, point, strict=True)) for point in itertools.product(*axes)]

    def count_points(self) -> int | None:
        """Count the points of the space, None where a range has no steps."""
        counts = [value.count() for value in self.open.values()]
        return None if None in counts else math.prod(count for count in counts if count is not None)

    def ends(self) -> Iterator[dict[str, Value]]:
        """Give points that together reach every end of every range and every choice and grid value."""
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


def load_study(path: Path, defaults: str = __version__) -> StudySpec:
    """Read a study file; a corpus in it that is a path is relative to the file.

    `defaults` is the lmsearch version whose defaults hold in it: that of the study that it goes on with, else today's.
    """
    return parse_study(_read_text(path), absolute(path).parent, source=str(path), defaults=defaults)


def load_config(path: Path, defaults: str = __version__) -> RunConfig:
    """Read a closed config: best-config.json, or a study file with nothing left open.

    What a JSON file of an earlier lmsearch lacks is as that version had it; `defaults` holds for a study file.
    """
    text = _read_text(path)
    if path.suffix == ".json":
        tables = _parse_json(text, str(path))
        check_stamp("config", str(path), tables)
        defaults = _writer(tables)
    else:
        tables = _parse_toml(text, str(path))
        _check_format(tables, str(path))
    spec = _build(text, tables, absolute(path).parent, defaults)
    if spec.open:
        raise ConfigError(f"{path} leaves {', '.join(spec.open)} open; close them, or search with: lmsearch run {path}")
    if spec.parameters is not None:
        raise ConfigError(f"{path} gives model.parameters; a closed config gives model.hidden_size")
    return spec.close({}, vocabulary_size=0)


def _writer(tables: Mapping[str, Any]) -> str:
    """Return the version that wrote a config; the first one wrote it among the versions that a result depends on."""
    provenance = tables.get("provenance")
    versions = provenance.get("versions") if isinstance(provenance, dict) else None
    told = versions.get("lmsearch") if isinstance(versions, dict) else None
    return known_version(tables.get("lmsearch"), known_version(told))


def parse_study(text: str, folder: Path, source: str = "the study file", defaults: str = __version__) -> StudySpec:
    """Read a study file's text; `folder` is where its relative paths begin, `defaults` as in `load_study`."""
    tables = _parse_toml(text, source)
    _check_format(tables, source)
    spec = _build(text, tables, folder, defaults)
    if spec.parameters is None:
        spec.check_ends(vocabulary_size=1)
    return spec


def differences(old: StudySpec, new: StudySpec) -> list[str]:
    """Say, setting by setting, in which values two study files differ; strategies and budgets may."""
    found = []
    for path in FIELD_TYPES:
        if _key(old, path) != _key(new, path):
            before, after = _stated(old, path), _stated(new, path)
            found.append(f"{path} = {before}, the file says {after}")
    if old.parameters != new.parameters:
        found.append(f"model.parameters = {old.parameters}, the file says {new.parameters}")
    return found


def median_warmup(epochs: int) -> int:
    """Give the first epoch at which the median pruner may stop a trial, where the study file does not say."""
    return 1 + max(1, epochs // 5)


def space_differences(old: StudySpec, new: StudySpec) -> list[str]:
    """Say the same without where the text lies, which its fingerprint decides about."""
    return [line for line in differences(old, new) if not line.startswith("data.corpus ")]


def check_sampler(name: str) -> None:
    """Refuse a sampler that there is not."""
    if name not in SAMPLER_OPTIONS:
        raise ConfigError(f"no sampler is called {name!r}{nearest(name, SAMPLER_OPTIONS)}")


def check_pruner(name: str) -> None:
    """Refuse a pruner that there is not."""
    if name not in PRUNER_OPTIONS:
        raise ConfigError(f"no pruner is called {name!r}{nearest(name, PRUNER_OPTIONS)}")


def parse_value(text: str) -> object:
    """Read a value as a study file would have it; a bare word is a text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _default(path: str) -> Value:
    section, _, name = path.partition(".")
    known = RunConfig.from_paths({"data.corpus": "python-docs"}).as_tables()
    return known[section].get(name, "as the corpus has it")


def _key(spec: StudySpec, path: str) -> object:
    value = spec.open.get(path)
    if value is None:
        return _stated(spec, path)
    # The grid belongs to the grid sampler, not to the space.
    return value if isinstance(value, Choice) else replace(value, grid=None)


def _stated(spec: StudySpec, path: str) -> str:
    if path in spec.open:
        value = spec.open[path]
        step = None if isinstance(value, Choice) else value.step
        return f"{value}" + (f" in steps of {step:g}" if step else "")
    if path in spec.same_as:
        return f"same_as {spec.same_as[path]}"
    if spec.parameters is not None and path in ("model.hidden_size", "model.embedding_size"):
        return str(spec.fixed.get(path, "solved"))
    return str(spec.fixed[path] if path in spec.fixed or path == "data.corpus" else _default(path))


def _read_text(path: Path) -> str:
    try:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder; name a study file in it")
        if path.exists() and not path.is_file():  # a pipe may wait for ever, and some devices have no end
            raise ConfigError(f"{path} is no file; put the study file into one")
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {path}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: byte {error.start} cannot be read") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _parse_toml(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not valid TOML: {error}") from error


def _parse_json(text: str, source: str) -> dict[str, Any]:
    try:
        tables = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not valid JSON: {error}") from error
    if not isinstance(tables, dict):
        raise ConfigError(f"{source} must hold an object with the tables data, model and train")
    return tables


def _check_format(tables: Mapping[str, Any], source: str) -> None:
    try:
        check_stamp("study file", source, {"format": tables.get("format", 1)})
    except NewerFormatError:
        raise
    except LmsearchError as error:
        raise ConfigError(str(error)) from error


def _build(text: str, tables: dict[str, Any], folder: Path, defaults: str = __version__) -> StudySpec:
    _check_tables(tables)
    settings = _settings(tables.get("study", {}))
    fixed: dict[str, Value] = {}
    opened: dict[str, OpenValue] = {}
    same_as: dict[str, str] = {}
    budget = tables.get("model", {}).pop("parameters", None)
    for path, raw in _paths(tables):
        if isinstance(raw, dict):
            if "same_as" in raw:
                same_as[path] = _same_as(path, raw)
            else:
                opened[path] = _open_value(path, raw)
        else:
            fixed[path] = coerce(path, raw)
    given = {*fixed, *opened, *same_as}
    implied = {path: value for path, value in earlier_defaults(defaults).items() if path not in given}
    fixed |= implied
    _check_same_as(same_as)
    _check_budget(budget, given, same_as)
    fixed["data.corpus"] = _resolve_corpus(fixed, folder)
    spec = StudySpec(
        text=text,
        settings=settings,
        fixed=fixed,
        open={path: opened[path] for path in FIELD_TYPES if path in opened},
        same_as=same_as,
        parameters=None if budget is None else parse_budget(str(budget)),
        sampler_options=_options("sampler", settings.sampler, tables, SAMPLER_OPTIONS),
        pruner_options=_options("pruner", settings.pruner, tables, PRUNER_OPTIONS),
        implied=implied,
    )
    manual = tuple(_manual(spec, number, table) for number, table in enumerate(tables.get("manual", []), 1))
    return replace(spec, manual=manual)


def _check_tables(tables: dict[str, Any]) -> None:
    known = ("format", *_TABLES, "manual", *_LEFT_ALONE)
    for name, table in tables.items():
        if name not in known:
            raise ConfigError(f"unknown key {name}{nearest(name, known)}")
        if name in _TABLES and not isinstance(table, dict):
            raise ConfigError(f"{name} must be a table, got {table!r}")
    manual = tables.get("manual", [])
    if not isinstance(manual, list) or not all(isinstance(table, dict) for table in manual):
        raise ConfigError("manual must be written as [[manual]] tables")


def _settings(table: dict[str, Any]) -> StudySettings:
    known = {f.name: f.type for f in fields(StudySettings)}
    for name, value in table.items():
        if name not in known:
            raise ConfigError(f"unknown key study.{name}{nearest(name, known)}")
        _check_option(f"study.{name}", value, cast(type, known[name]))
    return StudySettings(**table)


def _options(table: str, chosen: str, tables: dict[str, Any], allowed: dict[str, dict[str, type]]) -> dict[str, Value]:
    options: dict[str, Value] = tables.get(table, {})
    for name, value in options.items():
        if name not in allowed[chosen]:
            raise ConfigError(f"unknown key {table}.{name} for the {table} {chosen!r}{nearest(name, allowed[chosen])}")
        _check_option(f"{table}.{name}", value, allowed[chosen][name])
        low = _OPTION_LOWS.get(name, 1)
        if allowed[chosen][name] is int and not low <= int(value) <= _MOST_OPTION:
            raise ConfigError(f"{table}.{name} must be at least {low} and at most {_MOST_OPTION:,}, got {value}")
    least, most = options.get("min_resource", 1), options.get("max_resource", _MOST_OPTION)
    if int(least) > int(most):
        raise ConfigError(f"{table}.min_resource = {least} is more than max_resource = {most}")
    return options


def _check_option(path: str, value: object, wanted: type) -> None:
    fits = isinstance(value, int | float) if wanted is float else isinstance(value, wanted)
    if not fits or (isinstance(value, bool) and wanted is not bool):
        raise ConfigError(f"{path} must be of type {wanted.__name__}, got {value!r}")


def _paths(tables: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for section in ("data", "model", "train"):
        for name, raw in tables.get(section, {}).items():
            path = f"{section}.{name}"
            if path not in FIELD_TYPES:
                raise ConfigError(f"unknown key {path}{nearest(path, [*FIELD_TYPES, 'model.parameters'])}")
            yield path, raw


def _open_value(path: str, table: dict[str, Any]) -> OpenValue:
    if path in NEVER_OPEN or path.startswith("data."):
        reason = NEVER_OPEN.get(path, "all trials of a study must read the same text")
        raise ConfigError(f"{path} may not be open: {reason}")
    wanted = FIELD_TYPES[path]
    known = ("choices",) if "choices" in table else ("low", "high", "log", "step", "grid")
    for key in table:
        if key not in known:
            raise ConfigError(f"unknown key {key} in {path}{nearest(key, known)}")
    try:
        if "choices" in table:
            return Choice(choices=tuple(coerce(path, value) for value in _list(table["choices"])))
        if wanted not in (int, float):
            raise ConfigError("it has no range; write { choices = [...] }")
        return _range(path, table, wanted)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _range(path: str, table: dict[str, Any], wanted: type) -> FloatRange | IntRange:
    for end in ("low", "high"):
        if end not in table:
            raise ConfigError(f"a range needs low and high; {end} is missing")
    if not isinstance(table.get("log", False), bool):
        raise ConfigError(f"log must be true or false, got {table['log']!r}")
    numbers: dict[str, Any] = {key: coerce(path, table[key]) for key in ("low", "high", "step") if key in table}
    grid = None if "grid" not in table else tuple(coerce(path, value) for value in _list(table["grid"]))
    kind = IntRange if wanted is int else FloatRange
    return kind(**numbers, log=table.get("log", False), grid=cast(Any, grid))


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise ConfigError(f"a list was expected, got {value!r}")
    return value


def _same_as(path: str, table: dict[str, Any]) -> str:
    source = table["same_as"]
    if len(table) > 1 or not isinstance(source, str) or source not in FIELD_TYPES:
        raise ConfigError(f"{path}: same_as names one other setting, got {table!r}")
    if path.startswith("data.") or FIELD_TYPES[source] is not FIELD_TYPES[path]:
        raise ConfigError(f"{path} cannot be the same as {source}")
    if path in NEVER_OPEN:
        raise ConfigError(f"{path} may not be open: {NEVER_OPEN[path]}")
    return source


def _check_same_as(same_as: dict[str, str]) -> None:
    for path, source in same_as.items():
        if source in same_as:
            raise ConfigError(f"{path} is the same as {source}, which follows another itself; name that one")


def _check_budget(budget: object, given: set[str], same_as: dict[str, str]) -> None:
    if budget is None:
        return
    if "model.hidden_size" in given:
        raise ConfigError("model.parameters solves model.hidden_size; give one of the two")
    if "model.embedding_size" in same_as or "model.hidden_size" in same_as.values():
        raise ConfigError("model.parameters solves the sizes; no same_as may follow or give one")


def _resolve_corpus(fixed: dict[str, Value], folder: Path) -> str:
    if "data.corpus" not in fixed:
        raise ConfigError("data.corpus is missing; name a built-in corpus or a folder")
    corpus = str(fixed["data.corpus"])
    if corpus in BUILT_IN_CORPORA:
        return corpus
    place = corpus if corpus.startswith("~") else folder / corpus
    return str(absolute(place, "data.corpus ="))


def _manual(spec: StudySpec, number: int, table: dict[str, Any]) -> dict[str, Value]:
    flat: dict[str, object] = {}
    for key, value in table.items():
        inner = value.items() if isinstance(value, dict) else None
        flat |= {f"{key}.{name}": part for name, part in inner} if inner is not None else {key: value}
    try:
        return spec.check_point(flat)
    except ConfigError as error:
        raise ConfigError(f"[[manual]] table {number}: {error}") from error


def _solve_sizes(values: dict[str, Value], budget: int, vocabulary_size: int) -> RunConfig:
    """Find the hidden size (and the embedding size, where that is not given) that meets the budget best."""

    def sized(size: int) -> RunConfig:
        sizes: dict[str, Value] = {"model.hidden_size": size}
        if "model.embedding_size" not in values:
            sizes["model.embedding_size"] = size
        return RunConfig.from_paths(values | sizes)

    def parameters(size: int) -> int:
        return sized(size).model.count_parameters(vocabulary_size)

    low, high = 1, 2
    while parameters(high) < budget and high < 1 << 20:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if parameters(middle) <= budget else (low, middle)
    best = min((low, high), key=lambda size: abs(parameters(size) - budget))
    if not math.isclose(parameters(best), budget, rel_tol=0.01):
        raise ConfigError(
            f"no hidden size gives model.parameters = {budget} within 1 %: the nearest has {parameters(best)}"
            + ("" if parameters(1) != parameters(2) else "; leave model.embedding_size out, so that it is solved")
        )
    return sized(best)
