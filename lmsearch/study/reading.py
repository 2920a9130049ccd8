"""A study file's text, or a closed config, read strictly."""

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

from lmsearch.config import (
    BUILT_IN_CORPORA,
    FIELD_TYPES,
    SETTINGS,
    RunConfig,
    Value,
    coerce,
    earlier_defaults,
    is_earlier,
    parse_budget,
)
from lmsearch.errors import ConfigError, LmsearchError
from lmsearch.folders import absolute
from lmsearch.formats import NewerFormatError, check_stamp, known_version
from lmsearch.space import Choice, FloatRange, IntRange, OpenValue, Prior
from lmsearch.spelling import nearest
from lmsearch.study.options import PRUNER_OPTIONS, SAMPLER_OPTIONS, check_option, read_options
from lmsearch.study.spec import StudySettings, StudySpec
from lmsearch.version import __version__

_LEFT_ALONE = ("lmsearch", "result", "provenance")  # what best-config.json has beside its config
_TABLES = ("study", "sampler", "pruner", "prior", "data", "model", "train")


def load_study(path: Path, defaults: str = __version__) -> StudySpec:
    """Read a study file; a corpus in it that is a path is relative to the file.

    `defaults` is the lmsearch version whose defaults hold in it: that of the study to resume, else this one's.
    """
    folder = absolute(path, any_name=True).parent
    return parse_study(_read_text(path), folder, source=str(path), defaults=defaults)


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
    spec = _build(text, tables, absolute(path, any_name=True).parent, defaults)
    if spec.open:
        raise ConfigError(f"{path} leaves {', '.join(spec.open)} open; close them, or search with: lmsearch run {path}")
    if spec.parameters is not None:
        raise ConfigError(f"{path} gives model.parameters; a closed config gives model.hidden_size")
    return spec.close({}, vocabulary_size=0)


def _writer(tables: Mapping[str, Any]) -> str:
    """Return the version that wrote a config; the first one wrote it among the versions that a result depends on."""
    provenance = tables.get("provenance")
    versions = provenance.get("versions") if isinstance(provenance, dict) else None
    recorded = versions.get("lmsearch") if isinstance(versions, dict) else None
    return known_version(tables.get("lmsearch"), known_version(recorded))


def parse_study(text: str, folder: Path, source: str = "the study file", defaults: str = __version__) -> StudySpec:
    """Read a study file's text; `folder` is where its relative paths begin, `defaults` as in `load_study`."""
    tables = _parse_toml(text, source)
    _check_format(tables, source)
    spec = _build(text, tables, folder, defaults)
    if spec.parameters is None:
        spec.check_ends(vocabulary_size=1)
    return spec


def parse_assignment(text: str, option: str, example: str) -> tuple[str, object]:
    """Read `NAME=VALUE`; raises `ConfigError`, which shows how it was given (`--set `, or "") and an example."""
    path, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{option}{text!r} is not NAME=VALUE; write {option}{example}")
    return path.strip(), parse_value(value.strip())


def parse_value(text: str) -> object:
    """Read a value as a study file would have it; a bare word is a text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


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
    pruning = _earlier_pruning(tables, defaults)
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
    named = {*fixed, *opened, *same_as}
    implied = {path: value for path, value in earlier_defaults(defaults).items() if path not in named}
    fixed |= implied
    _check_same_as(same_as)
    _check_budget(budget, named, same_as)
    fixed["data.corpus"] = _resolve_corpus(fixed, folder)
    spec = StudySpec(
        text=text,
        settings=settings,
        fixed=fixed,
        open={path: opened[path] for path in FIELD_TYPES if path in opened},
        same_as=same_as,
        parameters=None if budget is None else parse_budget(str(budget)),
        sampler_options=read_options("sampler", settings.sampler, tables, SAMPLER_OPTIONS),
        pruner_options=read_options("pruner", settings.pruner, tables, PRUNER_OPTIONS),
        implied=implied | pruning,
    )
    manual = tuple(_manual(spec, number, table) for number, table in enumerate(tables.get("manual", []), 1))
    return replace(spec, manual=manual, prior=_prior(spec, tables.get("prior", {})))


def _earlier_pruning(tables: dict[str, Any], defaults: str) -> dict[str, Value]:
    """Write into `tables` how an earlier lmsearch pruned where a file does not say, and return it by dotted path.

    Before 0.4.0 the default was `median`, and `asha` stopped trials for good.
    """
    study = tables.get("study", {})
    if not is_earlier(defaults, "0.4.0") or not study:  # without the table it is the config of one training
        return {}
    if "pruner" not in study:
        study["pruner"] = "median"
        return {"study.pruner": "median"}
    if study["pruner"] == "asha" and "promote" not in tables.get("pruner", {}):
        tables.setdefault("pruner", {})["promote"] = False
        return {"pruner.promote": False}
    return {}


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
        check_option(f"study.{name}", value, cast(type, known[name]))
    return StudySettings(**table)


def _paths(tables: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for section in ("data", "model", "train"):
        for name, raw in tables.get(section, {}).items():
            path = f"{section}.{name}"
            if path not in FIELD_TYPES:
                raise ConfigError(f"unknown key {path}{nearest(path, [*FIELD_TYPES, 'model.parameters'])}")
            yield path, raw


def _open_value(path: str, table: dict[str, Any]) -> OpenValue:
    if SETTINGS[path].closed:
        raise ConfigError(f"{path} may not be open: {SETTINGS[path].closed}")
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
    if SETTINGS[path].closed:
        raise ConfigError(f"{path} may not be open: {SETTINGS[path].closed}")
    return source


def _check_same_as(same_as: dict[str, str]) -> None:
    for path, source in same_as.items():
        if source in same_as:
            raise ConfigError(f"{path} is the same as {source}, which follows another itself; name that one")


def _check_budget(budget: object, named: set[str], same_as: dict[str, str]) -> None:
    if budget is None:
        return
    if "model.hidden_size" in named:
        raise ConfigError("model.parameters solves model.hidden_size; give one of the two")
    if "model.embedding_size" in same_as or "model.hidden_size" in same_as.values():
        raise ConfigError("model.parameters solves the sizes; no same_as may follow or give one")


def _resolve_corpus(fixed: dict[str, Value], folder: Path) -> str:
    if "data.corpus" not in fixed:
        raise ConfigError("data.corpus is missing; name a built-in corpus or a folder")
    corpus = str(fixed["data.corpus"])
    if corpus in BUILT_IN_CORPORA:
        return corpus
    location = corpus if corpus.startswith("~") else folder / corpus
    return str(absolute(location, "data.corpus ="))


def _manual(spec: StudySpec, number: int, table: dict[str, Any]) -> dict[str, Value]:
    try:
        return spec.check_point(_by_path(table))
    except ConfigError as error:
        raise ConfigError(f"[[manual]] table {number}: {error}") from error


def _prior(spec: StudySpec, table: dict[str, Any]) -> dict[str, Prior]:
    given = _by_path(table)
    found: dict[str, Prior] = {}
    try:
        for path, raw in given.items():
            entry = raw if isinstance(raw, dict) else {"at": raw}
            for key in entry:
                if key not in ("at", "spread"):
                    raise ConfigError(f"unknown key {key} of {path}{nearest(key, ('at', 'spread'))}")
            if "at" not in entry:
                raise ConfigError(f"{path} needs at, the value around which the search begins")
            at = spec.check_point({path: entry["at"]})[path]
            check_option(f"spread of {path}", entry.get("spread", 0.5), float)
            found[path] = Prior(at=at, **{key: float(entry[key]) for key in ("spread",) if key in entry})
    except ConfigError as error:
        raise ConfigError(f"[prior]: {error}") from error
    return {path: found[path] for path in spec.open if path in found}


def _by_path(table: dict[str, Any]) -> dict[str, Any]:
    """Return a table's values by dotted path, whether its keys are quoted paths or tables of a section."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        inside = isinstance(value, dict) and key in ("data", "model", "train")
        flat |= {f"{key}.{name}": part for name, part in value.items()} if inside else {key: value}
    return flat
