"""Test evaluations, each recorded beside the model and in the study that found it."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

from lmsearch.errors import ConfigError, StudyError
from lmsearch.files import replace_file
from lmsearch.folders import LOOKS
from lmsearch.losses import json_text, perplexity
from lmsearch.store.opening import creating
from lmsearch.store.records import open_study
from lmsearch.store.storage import FencedStorage

_ATTRIBUTE = "lmsearch:looks"  # a user attribute of a study


def add_look(folder: Path, loss: float, tokens: int, fingerprint: str, **how: Any) -> tuple[dict[str, Any], int]:
    """Record a test evaluation beside a model; return it, and the number of the model's evaluations so far.

    `how` says what was evaluated besides the model alone.
    """
    look = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "perplexity": perplexity(loss),
        "loss": loss,
        "tokens": tokens,
        "corpus": fingerprint,
    } | how
    with filelock.FileLock(folder / ".looks.lock"):
        looks = [*read_looks(folder), look]
        replace_file(folder / LOOKS, json_text(looks, indent=2) + "\n")
    return look, len(looks)


def read_looks(folder: Path) -> list[dict[str, Any]]:
    """Return the test evaluations of a model."""
    try:
        looks = json.loads((folder / LOOKS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{folder / LOOKS} cannot be read: {error}; it records the test evaluations") from error
    if not isinstance(looks, list) or not all(isinstance(look, dict) for look in looks):
        raise ConfigError(f"{folder / LOOKS} is no list of test evaluations")
    return looks


def add_look_to_study(storage: FencedStorage, metrics: dict[str, Any], look: dict[str, Any]) -> None:
    """Record a test evaluation also in the study that a model with these metrics comes from.

    A study is known by its key, not by its name: raises `StudyError` where the store has another one under that name.
    """
    name = str(metrics["study"])
    info = open_study(storage, name)
    if metrics.get("study_key", info.ref.key) != info.ref.key:
        raise StudyError(f"the store's study {name} is not the one that this model comes from")
    with creating(storage):  # two looks at once are two
        looks = study_looks(storage, info.ref.id)
        storage.set_study_user_attr(info.ref.id, _ATTRIBUTE, [*looks, look])


def study_looks(storage: FencedStorage, study_id: int) -> list[dict[str, Any]]:
    """Return the test evaluations of a study's models."""
    looks = storage.get_study_user_attrs(study_id).get(_ATTRIBUTE, [])
    return [look for look in looks if _is_look(look)] if isinstance(looks, list) else []


def _is_look(look: object) -> bool:
    return isinstance(look, dict) and isinstance(look.get("when"), str) and isinstance(look.get("perplexity"), float)
