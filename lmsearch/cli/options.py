"""Options that several commands share, and words that several print."""

import re
import shlex
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lmsearch.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_STORAGE = "sqlite:///runs/lmsearch.db"
RUNS = Path("runs")
_LONGEST_NAME = 200  # bytes; file systems allow 255, and drafts are longer


def storage_option(function: F) -> F:
    """Add --storage."""
    return click.option(
        "--storage",
        metavar="URL",
        envvar="LMSEARCH_STORAGE",
        default=DEFAULT_STORAGE,
        show_default=True,
        help="Where studies are kept: SQLite on one host, postgresql://… for several. Also LMSEARCH_STORAGE.",
    )(function)


def json_option(function: F) -> F:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")(function)


def parse_storage(text: str) -> "URL":
    """Read --storage."""
    from lmsearch.store.url import parse_url

    return parse_url(text)


def storage_words(url: "URL") -> list[str]:
    """Give the --storage part of a command to print: nothing for the default, and never a password."""
    from lmsearch.store import url as urls

    if url == parse_storage(DEFAULT_STORAGE) or urls.has_password(url):
        return []
    return ["--storage", urls.redact(url)]


def storage_hint(url: "URL") -> str:
    """Say how a printed command finds a store whose URL has a password."""
    from lmsearch.store import url as urls

    return " (with LMSEARCH_STORAGE set to the store's URL)" if urls.has_password(url) else ""


def command_text(words: list[str], url: "URL") -> str:
    """Give a command that a person can copy, with how it finds the store."""
    return shlex.join([*words, *storage_words(url)]) + storage_hint(url)


def duration(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Read a duration such as `3h50m` or `90s`, in seconds."""
    if value is None:
        return None
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", value.strip())
    if match is None or not value.strip():
        raise ConfigError(f"{value!r} is not a duration; write 3h50m, 45m or 90s")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + seconds


def spell_seconds(seconds: float) -> str:
    """Write a duration for a person: 0:42, 12:05, 3:20:00."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def spell_value(value: object) -> str:
    """Write a value for a person, as a study file would have it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def check_name(name: str) -> None:
    """Refuse a study name that cannot be the name of a folder."""
    if not name or name in (".", "..") or "/" in name or "\0" in name or name.startswith("-"):
        raise ConfigError(f"a study cannot be called {name!r}: its files lie in a folder of that name")
    if len(name.encode()) > _LONGEST_NAME or (RUNS / name).is_file():
        raise ConfigError(f"a study cannot be called {name!r}: that cannot be a folder in {RUNS}")


def timestamped(line: str) -> None:
    """Print a line with the time before it, for logs."""
    click.echo(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}")
