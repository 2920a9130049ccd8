"""Write what is made from `lmsearch/config.py`: tables in docs/study-files.md, the schema of best-config.json.

`--check` only reports whether both are current.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from pages import keep_current, with_part

from lmsearch.config import FIELD_TYPES, REQUIRED, SECTIONS, SETTINGS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "study-files.md"
SCHEMA = ROOT / "lmsearch" / "best-config.schema.json"
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
TITLES = {
    "data": "See also [texts.md](texts.md).",
    "model": '`parameters = "24M"` instead of `hidden_size` solves it (and `embedding_size`, if not given).',
    "train": "Learning rates and decays are those of the optimizer.",
}
# Files of earlier versions lack them.
ADDED = {
    "finetune", "eval_context", "schedule", "warmup_epochs", "ema", "state_dropout", "reset_states", "cell",
    "mogrifier_rounds", "mogrifier_rank", "decoder",
}  # fmt: skip


def tables() -> str:
    """Return a table for each section."""
    parts = []
    for section, owner in SECTIONS.items():
        parts.append(f"### `[{section}]`\n\n{TITLES[section]}\n")
        rows = [_row(f"{section}.{one.name}", one) for one in dataclasses.fields(owner)]
        parts.append(
            "\n".join(["| setting | default | values | may be searched | what it is |", "| --- " * 5 + "|", *rows])
            + "\n"
        )
    return "\n".join(parts)


def _row(path: str, one: "dataclasses.Field[Any]") -> str:
    known = SETTINGS[path]
    default = "required" if path in REQUIRED else "" if one.default is None else f"`{json.dumps(one.default)}`"
    searched = "no" if known.closed else "yes"
    return f"| `{one.name}` | {default} | {_values(path)} | {searched} | {known.says} |"


def _values(path: str) -> str:
    known, kind = SETTINGS[path], FIELD_TYPES[path]
    if known.choices:
        return ", ".join(f"`{choice}`" for choice in known.choices)
    if kind is bool:
        return "`true`, `false`"
    least = (
        f"from {known.low:g}" if known.low is not None else f"above {known.above:g}" if known.above is not None else ""
    )
    most = (
        f"to {known.high:,}" if known.high is not None else f"below {known.below:g}" if known.below is not None else ""
    )
    words = {int: "whole number", float: "number", str: "text", tuple[int, ...]: "whole numbers"}
    word = words.get(kind, "three numbers")
    return " ".join(part for part in (word, least, most) if part)


def schema(text: str) -> str:
    """Return the schema with the properties of each section."""
    document = json.loads(text)
    for section, owner in SECTIONS.items():
        names = [one.name for one in dataclasses.fields(owner)]
        required = [one.name for one in dataclasses.fields(owner) if one.default is not None and one.name not in ADDED]
        document["properties"][section] = {
            "type": "object",
            "required": required,
            "additionalProperties": False,
            "properties": {name: _property(f"{section}.{name}") for name in names},
        }
    document["$defs"].pop("share", None)
    return json.dumps(document, indent=2) + "\n"


def _property(path: str) -> dict[str, Any]:
    known, kind = SETTINGS[path], FIELD_TYPES[path]
    if known.choices:
        return {"description": known.says, "enum": list(known.choices)}
    if kind == tuple[int, ...]:
        return {"description": known.says, "type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1}
    if kind not in TYPES:
        item = {"type": "number", "minimum": 0, "maximum": 1}
        return {"description": known.says, "type": "array", "items": item, "minItems": 3, "maxItems": 3}
    bounds = {
        "minimum": known.low,
        "exclusiveMinimum": known.above,
        "maximum": known.high,
        "exclusiveMaximum": known.below,
    }
    found = {"description": known.says, "type": TYPES[kind]} | {k: v for k, v in bounds.items() if v is not None}
    return found | ({"minLength": 1} if kind is str else {})


if __name__ == "__main__":
    text = with_part(PAGE.read_text(encoding="utf-8"), "settings", tables())
    keep_current({PAGE: text, SCHEMA: schema(SCHEMA.read_text(encoding="utf-8"))})
