"""A study's file with some values changed: the beginning of a new study, since a study never changes its space."""

import contextlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from lmsearch.config import FIELD_TYPES, Value
from lmsearch.errors import ConfigError
from lmsearch.spelling import nearest
from lmsearch.study.differences import space_differences
from lmsearch.study.reading import parse_study
from lmsearch.study.spec import StudySpec

_PARTS = ("low", "high", "log", "step", "grid", "choices", "same_as")


def extended_text(
    spec: StudySpec,
    name: str,
    changes: Sequence[str],
    folder: Path,
    settings: Mapping[str, str | int | None] | None = None,
) -> str:
    """Return the file of the study `name` with `NAME=VALUE` changes; comments stay.

    It names its source, and has the `settings` of [study] that were asked for, so that it says all that the new study
    is: whatever ends the command that writes it, `lmsearch run` of the file does the rest.

    A corpus that is a path is named from `folder`. A name is a setting (`model.num_layers`), or a part of one that is
    open (`model.weight_dropout.high`). Raises `ConfigError` for a name or a value that cannot be, and where nothing of
    the space would change.
    """
    document = tomlkit.parse(spec.text_from(folder))
    for change in changes:
        _apply(document, change)
    text = tomlkit.dumps(document)
    changed = parse_study(text, folder, "the changed study file")
    if not space_differences(spec, changed):
        raise ConfigError(
            f"the space of {name} would not change; resume the study with: lmsearch run, and add trials with --more"
        )
    table = document.setdefault("study", tomlkit.table())
    for setting, value in {"source": name, **(settings or {})}.items():
        if value is not None:
            _put(table, setting, tomlkit.item(value))
    return tomlkit.dumps(document)


def with_prior(text: str, values: Mapping[str, Value]) -> str:
    """Return a study file's text with a [prior] at these values; a spread that it has stays."""
    document = tomlkit.parse(text)
    table = document.setdefault("prior", tomlkit.table())
    for path, value in values.items():
        old = table.get(path)
        entry = tomlkit.inline_table()
        entry.update({"at": value} | ({"spread": old["spread"]} if isinstance(old, dict) and "spread" in old else {}))
        table[path] = entry
    return tomlkit.dumps(document)


def _apply(document: Any, change: str) -> None:
    name, equals, value = change.partition("=")
    names = name.strip().split(".")
    if not equals or len(names) not in (2, 3):
        raise ConfigError(f"--set {change!r} is not NAME=VALUE; write --set model.weight_dropout.high=0.9")
    if names[0] == "data":
        raise ConfigError("perplexities over another text cannot be compared: write a study file of its own for it")
    path = ".".join(names[:2])
    if path not in FIELD_TYPES and path != "model.parameters" and names[0] != "study":
        raise ConfigError(f"unknown name {path}{nearest(path, [*FIELD_TYPES, 'model.parameters'])}")
    parsed = _value(value.strip())
    table = document.setdefault(names[0], tomlkit.table())
    if len(names) == 2:
        _put(table, names[1], parsed)
        return
    if names[2] not in _PARTS:
        raise ConfigError(f"an open value has no {names[2]!r}{nearest(names[2], _PARTS)}")
    if not isinstance(table.get(names[1]), dict):
        raise ConfigError(
            f"{path} is not open in this study; open it with: --set '{path}={{ low = …, high = … }}', or fix it with "
            f"--set {path}=VALUE"
        )
    _put(table[names[1]], names[2], parsed)


def _put(table: Any, key: str, value: Any) -> None:
    """Change a value in its place; a comment behind it stays."""
    old = table.get(key)
    if old is not None and hasattr(old, "trivia") and hasattr(value, "trivia"):
        value.trivia.comment_ws, value.trivia.comment = old.trivia.comment_ws, old.trivia.comment
    table[key] = value


def _value(text: str) -> Any:
    """Read a value as a study file has it; a bare word is a text."""
    with contextlib.suppress(TOMLKitError):
        return tomlkit.value(text)
    return tomlkit.item(text)


def next_name(name: str, taken: Collection[str]) -> str:
    """Return the name of the study that follows another: `name-2`, `name-3`, …, the first that is not taken."""
    found = re.fullmatch(r"(.*)-(\d+)", name)
    stem, number = (found[1], int(found[2])) if found else (name, 1)
    while True:
        number += 1
        if (candidate := f"{stem}-{number}") not in taken:
            return candidate
