"""Where files of ours lie, how they are called, and how a folder is known to be one that lmsearch made.

Nothing is removed, replaced or copied but by the names below, in a folder that is marked, or that has a valid file of
ours in it (lmsearch 0.1.0 left no mark). A name from a store, a checkpoint or a shared folder is read by these
patterns and never as a path.
"""

import contextlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmsearch.errors import ConfigError, StudyError
from lmsearch.escapes import is_plain, is_text
from lmsearch.files import remove_tree, replace_file
from lmsearch.formats import stamp

RUNS = Path("runs")
DEFAULT_STORE = "sqlite:///runs/lmsearch.db"
MARK = ".lmsearch.json"
RESULTS_OF = "results_of"  # in the mark: the key of the study whose result files lie there

EVALUATIONS = "test-looks.json"  # in a model's folder: its test evaluations
POINTER = "pointer.json"  # in a model's folder: the constants of a cache that were found for it
DYNAMIC = "dynamic.json"  # likewise of dynamic evaluation
OF_USE = (EVALUATIONS, POINTER, DYNAMIC)  # what commands that use a model write into its folder

_LONGEST_NAME = 200  # bytes; file systems allow 255, and drafts are longer

KEY = re.compile(r"[0-9a-f]{32}")
DIGEST = re.compile(r"[0-9a-f]{64}")
_STEM = r"(?P<key>[0-9a-f]{12})"
_DIGEST = r"(?:-(?P<digest>[0-9a-f]{12}))?"  # none: as lmsearch 0.1.0 named it
CHECKPOINT = re.compile(
    rf"{_STEM}-(?P<number>\d{{1,9}}){_DIGEST}-e(?P<epoch>\d{{1,9}})-s(?P<step>\d{{1,18}})-l(?P<lease>\d{{1,9}})\.checkpoint"
)
WEIGHTS = re.compile(
    rf"{_STEM}-trial-(?P<number>\d{{1,9}}){_DIGEST}-epoch-(?P<epoch>\d{{1,9}})-lease-(?P<lease>\d{{1,9}})"
)
AGAIN = re.compile(rf"{_STEM}-trial-(?P<number>\d{{1,9}}){_DIGEST}-again")  # a winner that is trained once more
ENCODED = re.compile(r"[0-9a-f]{32}")

TRIALS_HEAD = "trial,outcome,by,perplexity,best_epoch,epochs,parameters,started,ended"  # of trials.csv
LOGS = "logs"
LOG = re.compile(r".+-\d+-[0-9a-f]{8}\.log")  # of a worker
LOCK = ".results.lock"
CHECKPOINTS, MODELS = "checkpoints", "models"  # folders of a study's
STUDY_FILE, TRIALS_TABLE, BEST_CONFIG, REPORT = "study.toml", "trials.csv", "best-config.json", "report.html"
RESULTS = (STUDY_FILE, TRIALS_TABLE, BEST_CONFIG, REPORT)
MODEL = "best-model"
MODEL_WEIGHTS, MODEL_CONFIG = "model.safetensors", "config.json"
MODEL_VOCABULARY, MODEL_METRICS = "vocabulary.json", "metrics.json"
MODEL_FILES = (MODEL_WEIGHTS, MODEL_CONFIG, MODEL_VOCABULARY, MODEL_METRICS)

_OF_RUNS = re.compile(rf"{'|'.join(map(re.escape, (*RESULTS, MODEL, MARK)))}|[\w.-]+\.html|seed-\d+(\.training)?")
_OF_MODEL = re.compile("|".join(map(re.escape, (*OF_USE, *MODEL_FILES))))
_DRAFT = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.draft")  # of `replace_file`, and of folders
_ENCODED_DRAFT = re.compile(r"\.?[0-9a-f]{32}\.[0-9a-f]{8}\.draft")
_FETCH_DRAFT = re.compile(r"\.[0-9a-f]{8}\.draft")


@dataclass(frozen=True)
class Named:
    """What the name of a checkpoint, or of a folder of weights, says."""

    key: str  # the first 12 digits of the study's
    number: int  # of the ticket, or of the trial
    digest: str  # the first 12 digits of what it was trained on; "" where lmsearch 0.1.0 named it
    lease: int
    epoch: int
    step: int = 0


def read_name(pattern: re.Pattern[str], name: str) -> Named | None:
    """Return what a name says; None where it is not one of ours."""
    found = pattern.fullmatch(name)
    if found is None:
        return None
    numbers = {part: int(text) for part, text in found.groupdict().items() if part not in ("key", "digest")}
    return Named(key=found["key"], digest=found["digest"] or "", **numbers)


@dataclass(frozen=True)
class HostPath:
    """A path on a host, which tickets and trials keep as `HOST:PATH`. Whoever may write to the store may write one."""

    host: str
    path: Path

    @classmethod
    def parse(cls, text: str | None) -> "HostPath":
        """Read what `str` gives; an empty host and path for nothing."""
        host, _, path = (text or "").partition(":")
        return cls(host, Path(path))

    def __str__(self) -> str:
        return f"{self.host}:{self.path}"

    @property
    def can_be(self) -> bool:
        """Whether a file can have this path: an absolute one without a byte of zero."""
        return self.path.is_absolute() and "\0" not in str(self.path)


def named_in(pattern: re.Pattern[str], host_path: str | None) -> str:
    """Return the name of ours at the end of a `HostPath`, "" where there is none: no more of it is believed."""
    name = HostPath.parse(host_path).path.name
    return name if pattern.fullmatch(name) else ""


def check_name(name: str, runs: Path = RUNS) -> None:
    """Raise `ConfigError` for a name of a study that cannot be the name of a folder in `runs`."""
    if not name or name in (".", "..") or "/" in name or "\0" in name or name.startswith("-"):
        raise ConfigError(f"a study cannot be called {name!r}: its files lie in a folder of that name")
    if len(name.encode(errors="surrogatepass")) > _LONGEST_NAME or (runs / name).is_file():
        raise ConfigError(f"a study cannot be called {name!r}: that cannot be a folder in {runs}")


def check_new_name(name: str) -> None:
    """Raise `ConfigError` for a name that no new study may have: also one that does not show as it is."""
    check_name(name)
    if not is_plain(name):
        raise ConfigError(
            f"a study cannot be called {name!r}: it has a control character, a mark of direction, or a byte that is "
            "not text"
        )


def absolute(path: str | Path, what: str = "the path", any_name: bool = False) -> Path:
    """Return a person's path as an absolute one, with `~` as the home folder; raises `ConfigError` where it is none.

    That is one with a byte of zero or one that is not text (with `any_name`, in its folder), a loop of links, the home
    of nobody, or any path once the working folder is gone.
    """
    try:
        os.fsencode(path)
        found = Path(path).expanduser().resolve()
    except FileNotFoundError as error:
        raise ConfigError("the working folder has been removed; change into one that is there") from error
    except (RuntimeError, ValueError, OSError) as error:
        raise ConfigError(f"{what} {str(path)!r} is not a path: {error}") from error
    # It is written into stores, configs and logs, all of them UTF-8.
    if not is_text(str(found.parent if any_name else found)):
        raise ConfigError(f"{what} {str(found)!r} has a byte that is not text (UTF-8): rename the folder or the file")
    return found


def study_folder(name: str, runs: Path = RUNS) -> Path:
    """Return the folder of a study's files; raises `StudyError` for a name from a store that would lead elsewhere."""
    try:
        check_name(name, runs)
    except ConfigError as error:
        raise StudyError(str(error)) from error
    return runs / name


def make_folder(folder: Path, **fields: Any) -> None:
    """Make a folder of ours and mark it; one that is there and has something of other people's stays unmarked.

    `fields` are what the mark says beside its format. Raises `OSError`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark = mark_of(folder)
    if mark is None and any(folder.iterdir()) and not has_ours(folder):
        return
    document = {**(mark or {}), **stamp("config"), **fields}
    if mark != document:
        replace_file(folder / MARK, json.dumps(document) + "\n")


def mark_of(folder: Path) -> dict[str, Any] | None:
    """Return what the mark of a folder says; None where it has none."""
    return read_document(folder / MARK)


def is_ours(folder: Path) -> bool:
    """Whether lmsearch made a folder: it is marked, or has a valid file of ours in it."""
    return folder.is_dir() and (mark_of(folder) is not None or has_ours(folder))


def has_ours(folder: Path) -> bool:
    """Whether a folder without a mark has something in it that only lmsearch can have made.

    That is a checkpoint, weights of a trial, an encoded corpus, or result files beside a study's logs or checkpoints.
    """
    with contextlib.suppress(OSError):
        return any(_is_known(path) for path in folder.iterdir())
    return False


def _is_known(path: Path) -> bool:
    if CHECKPOINT.fullmatch(path.name):
        return _begins(path, b"lmsearch-checkpoint-")
    if path.name == "trials.csv":
        return _begins(path, TRIALS_HEAD.encode())
    if WEIGHTS.fullmatch(path.name) or path.name == MODEL or re.fullmatch(r"seed-\d+", path.name):
        return is_model(path)
    if path.name in ("checkpoints", "models") and path.is_dir() and not path.is_symlink():
        # One that is marked says nothing of the folder around it, which would be marked too if it were ours.
        return mark_of(path) is None and has_ours(path)
    document_path, wanted = (path / "meta.json", _META) if ENCODED.fullmatch(path.name) else (path, _CONFIG)
    document = read_document(document_path) if path.name == "best-config.json" or wanted is _META else None
    return document is not None and wanted <= document.keys()


_META = {"words", "fingerprint", "splits"}
_CONFIG = {"model", "train", "result", "provenance"}


def _begins(path: Path, head: bytes) -> bool:
    with contextlib.suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                return file.read(len(head)) == head
    return False


def remove_weights(folder: Path) -> None:
    """Remove the weights of a trial: a folder of that name in one that lmsearch made, and nothing else."""
    if WEIGHTS.fullmatch(folder.name) and not folder.is_symlink() and is_ours(folder.parent):
        remove_tree(folder)


def is_model(folder: Path) -> bool:
    """Whether a folder is a model's: it has the files that each one has, and none of them is a link."""
    return (
        not folder.is_symlink()
        and all((folder / name).is_file() and not (folder / name).is_symlink() for name in MODEL_FILES)
        and read_document(folder / "config.json") is not None
        and read_document(folder / "metrics.json") is not None
    )


def check_replaceable(folder: Path) -> None:
    """Raise `ConfigError` for a folder that is there and is no model: it is somebody's, and stays."""
    if folder.is_symlink() or folder.is_file() or (folder.exists() and not is_model(folder) and any(folder.iterdir())):
        raise ConfigError(f"{folder} is there and is no model of lmsearch's; move it away, or name another place")


def read_document(path: Path) -> dict[str, Any] | None:
    """Return a JSON object in a file; None where there is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def drafts(folder: Path) -> list[Path]:
    """List the drafts of ours in a folder: what a writer that died left of a file or folder of a known name."""
    fetched = folder.parent.name == "downloads" and is_ours(folder.parent)
    if not fetched and not is_ours(folder):
        return []
    with contextlib.suppress(OSError):
        return sorted(path for path in folder.iterdir() if not path.is_symlink() and _is_draft(path.name))
    return []


def _is_draft(name: str) -> bool:
    if _ENCODED_DRAFT.fullmatch(name) or _FETCH_DRAFT.fullmatch(name):
        return True
    found = _DRAFT.fullmatch(name)
    known: tuple[Callable[[str], object], ...] = tuple(
        pattern.fullmatch for pattern in (CHECKPOINT, WEIGHTS, AGAIN, _OF_RUNS, _OF_MODEL)
    )
    return found is not None and any(matches(found["name"]) for matches in known)


def check_folder(folder: Path) -> None:
    """Raise `ConfigError` where files of our results' names are there, and are somebody else's."""
    there = [path for name in (*RESULTS, MODEL) if (path := folder / name).exists()]
    if there and not is_ours(folder):
        raise ConfigError(f"{there[0]} is there and not lmsearch's; move it away, or give the study another --name")
