"""In which values two study files differ."""

from dataclasses import replace

from lmsearch.config import FIELD_TYPES
from lmsearch.space import Choice
from lmsearch.study.spec import StudySpec, default_value


def differences(old: StudySpec, new: StudySpec) -> list[str]:
    """Say, setting by setting, in which values two study files differ; strategies and budgets may."""
    return [f"{path} = {before}, the file says {after}" for path, before, after in changed_settings(old, new)]


def changed_settings(old: StudySpec, new: StudySpec) -> list[tuple[str, str, str]]:
    """List the settings in which two study files differ, each with what the one and the other says."""
    found = [
        (path, _stated(old, path), _stated(new, path)) for path in FIELD_TYPES if _key(old, path) != _key(new, path)
    ]
    if old.parameters != new.parameters:
        found.append(("model.parameters", str(old.parameters), str(new.parameters)))
    return found


def space_differences(old: StudySpec, new: StudySpec) -> list[str]:
    """Say the same without where the text lies, which its fingerprint decides about."""
    return [line for line in differences(old, new) if not line.startswith("data.corpus ")]


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
    return str(spec.fixed[path] if path in spec.fixed or path == "data.corpus" else default_value(path))
