"""Where the workers of a search are to run: on this host, or where the engine of a cluster places them."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lmsearch.errors import ConfigError
from lmsearch.folders import absolute
from lmsearch.spelling import nearest

KINDS = ("local", "slurm", "ray")
"""The launchers that there are."""

_KEYS = ("kind", "gpus_per_worker", "cpus_per_worker", "memory_per_worker", "options", "setup")
_OPTION = re.compile(r"[a-z][a-z0-9-]*")
_MEMORY = re.compile(r"\d+[KMGT]?")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What each worker gets of its node; None is: as the engine does by itself."""

    gpus: float | None = None
    cpus: int | None = None
    memory: str | None = None  # such as 8G

    def __post_init__(self) -> None:
        if self.gpus is not None and not 0 <= self.gpus <= 1024:
            raise ConfigError(f"a worker cannot have {self.gpus:g} GPUs; give 0, 0.5, 1, …")
        if self.cpus is not None and not 1 <= self.cpus <= 4096:
            raise ConfigError(f"a worker cannot have {self.cpus} processors")
        if self.memory is not None and not _MEMORY.fullmatch(self.memory):
            raise ConfigError(f"{self.memory!r} is no size of memory; write 8G or 4000M")

    def over(self, base: "Resources") -> "Resources":
        """Return these, and what they leave open as `base` has it."""
        asked = {name: value for name in RESOURCES if (value := getattr(self, name)) is not None}
        return replace(base, **asked)


RESOURCES = ("gpus", "cpus", "memory")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A launcher, what each worker gets, and what the engine is told beside that."""

    kind: str = "local"
    file: Path | None = None  # from which it was read
    resources: Resources = Resources()
    options: Mapping[str, str] = field(default_factory=dict)  # of the engine, such as partition
    setup: tuple[str, ...] = ()  # lines of shell before the worker, such as `module load`
    detach: bool = False  # leave the workers at work and return

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(
                f"no launcher is called {self.kind!r}{nearest(self.kind, KINDS)}; a file of yours ends in .toml"
            )
        for name, value in self.options.items():
            if not _OPTION.fullmatch(name) or not value.isprintable():
                raise ConfigError(f"--launcher-option {name}={value!r} cannot be; write partition=gpu")
        if any("\n" in line or "\0" in line for line in self.setup):
            raise ConfigError("each entry of setup must be one line of shell")
        if self.kind == "local":
            self._check_local()

    def _check_local(self) -> None:
        asked = [name for name in RESOURCES if getattr(self.resources, name) is not None]
        if asked or self.options or self.setup:
            what = f"--{asked[0]}-per-worker" if asked else "setup" if self.setup else "--launcher-option"
            raise ConfigError(f"{what} is for a cluster; name one with --launcher ({', '.join(KINDS[1:])})")
        if self.detach:
            raise ConfigError("--detach is for a cluster: workers on this host end with the search that started them")

    @property
    def is_cluster(self) -> bool:
        """Whether an engine places the workers, perhaps on other hosts."""
        return self.kind != "local"

    def words(self) -> list[str]:
        """Return the options that give this placement again."""
        words = []
        base = Placement() if self.file is None else read_file(self.file)
        if self.file is not None:
            words += ["--launcher", str(self.file)]
        elif self.kind != "local":
            words += ["--launcher", self.kind]
        for name in RESOURCES:
            if (value := getattr(self.resources, name)) != getattr(base.resources, name):
                words += [f"--{name}-per-worker", f"{value:g}" if isinstance(value, float) else str(value)]
        for name, option in self.options.items():
            if base.options.get(name) != option:
                words += ["--launcher-option", f"{name}={option}"]
        return words + (["--detach"] if self.detach else [])


def read_placement(
    launcher: str,
    resources: Resources = Resources(),
    options: Iterable[str] = (),
    detach: bool = False,
) -> Placement:
    """Return the placement that a person asks for: a launcher's name, or a file of theirs, and changes of it."""
    base = read_file(absolute(launcher, "--launcher")) if launcher.endswith(".toml") else Placement(kind=launcher)
    pairs = [option.partition("=") for option in options]
    for name, equals, value in pairs:
        if not equals:
            raise ConfigError(f"--launcher-option {name + value!r} is not NAME=VALUE; write partition=gpu")
    return replace(
        base,
        resources=resources.over(base.resources),
        options={**base.options, **{name.strip(): value.strip() for name, _, value in pairs}},
        detach=detach,
    )


def read_file(path: Path) -> Placement:
    """Read a file that describes a cluster. Raises `ConfigError`."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no file that describes a launcher: {error}") from error
    for key in document:
        if key not in _KEYS:
            raise ConfigError(f"{path}: unknown key {key}{nearest(key, _KEYS)}")
    options = _typed(path, document, "options", dict, {})
    setup = _typed(path, document, "setup", list, [])
    gpus = document.get("gpus_per_worker")
    if gpus is not None and (isinstance(gpus, bool) or not isinstance(gpus, int | float)):
        raise ConfigError(f"{path}: gpus_per_worker must be a number, got {gpus!r}")
    if not all(isinstance(value, str | int | float) for value in options.values()):
        raise ConfigError(f"{path}: each of options must be a text or a number")
    if not all(isinstance(line, str) for line in setup):
        raise ConfigError(f"{path}: setup must be a list of lines of shell")
    cpus = _typed(path, document, "cpus_per_worker", int, None)
    memory = _typed(path, document, "memory_per_worker", str, None)
    return Placement(
        kind=_typed(path, document, "kind", str, "local"),
        file=path,
        resources=Resources(gpus=None if gpus is None else float(gpus), cpus=cpus, memory=memory),
        options={name: str(value) for name, value in options.items()},
        setup=tuple(setup),
    )


def _typed(path: Path, document: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = document.get(key, default)
    if value is not default and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
        raise ConfigError(f"{path}: {key} must be of type {kind.__name__}, got {value!r}")
    return value
