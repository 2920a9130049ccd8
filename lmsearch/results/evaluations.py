"""Test evaluations, each recorded beside the model and in the study that found it."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

from lmsearch.errors import ConfigError, StudyError
from lmsearch.files import replace_file
from lmsearch.folders import EVALUATIONS
from lmsearch.losses import json_text, perplexity
from lmsearch.store.opening import creating
from lmsearch.store.records import open_study
from lmsearch.store.storage import FencedStorage

_ATTRIBUTE = "lmsearch:looks"  # a user attribute of a study


def add_evaluation(folder: Path, loss: float, tokens: int, fingerprint: str, **how: Any) -> tuple[dict[str, Any], int]:
    """Record a test evaluation beside a model; return it, and the number of the model's evaluations so far.

    `how` says what was evaluated besides the model alone.
    """
    evaluation = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "perplexity": perplexity(loss),
        "loss": loss,
        "tokens": tokens,
        "corpus": fingerprint,
    } | how
    with filelock.FileLock(folder / ".looks.lock"):
        evaluations = [*read_evaluations(folder), evaluation]
        replace_file(folder / EVALUATIONS, json_text(evaluations, indent=2) + "\n")
    return evaluation, len(evaluations)


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """Return the test evaluations of a model."""
    try:
        evaluations = json.loads((folder / EVALUATIONS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{folder / EVALUATIONS} cannot be read: {error}; it records the test evaluations") from error
    if not isinstance(evaluations, list) or not all(isinstance(one, dict) for one in evaluations):
        raise ConfigError(f"{folder / EVALUATIONS} is no list of test evaluations")
    return evaluations


def add_evaluation_to_study(storage: FencedStorage, metrics: dict[str, Any], evaluation: dict[str, Any]) -> None:
    """Record a test evaluation also in the study that a model with these metrics comes from.

    A study is known by its key, not by its name: raises `StudyError` where the store has another one under that name.
    """
    name = str(metrics["study"])
    info = open_study(storage, name)
    if metrics.get("study_key", info.ref.key) != info.ref.key:
        raise StudyError(f"the store's study {name} is not the one that this model comes from")
    with creating(storage):  # two evaluations at once are two
        evaluations = study_evaluations(storage, info.ref.id)
        storage.set_study_user_attr(info.ref.id, _ATTRIBUTE, [*evaluations, evaluation])


def study_evaluations(storage: FencedStorage, study_id: int) -> list[dict[str, Any]]:
    """Return the test evaluations of a study's models."""
    evaluations = storage.get_study_user_attrs(study_id).get(_ATTRIBUTE, [])
    return [one for one in evaluations if _is_evaluation(one)] if isinstance(evaluations, list) else []


def _is_evaluation(found: object) -> bool:
    return isinstance(found, dict) and isinstance(found.get("when"), str) and isinstance(found.get("perplexity"), float)
