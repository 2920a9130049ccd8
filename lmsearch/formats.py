"""The format of everything that is stored: its number, and beside it the lmsearch version that wrote it.

A newer format is refused in one sentence that names the version that reads it. Whoever meets one leaves it as it is: it
is not damaged, not restarted, not removed. An older one is read, and written in today's format when it is next written.
"""

import hashlib
import re
from typing import Any

from lmsearch.errors import LmsearchError
from lmsearch.version import __version__

PLAIN = 0
"""Stands for the format of a database that plain Optuna made: there is nothing of ours in it."""

FORMATS_OF: dict[str, dict[str, int]] = {
    "0.1.0": {
        "store": 1,
        "study": 1,
        "checkpoint": 1,
        "training state": 1,
        "encoded corpus": 2,
        "model": 1,
        "config": 1,
        "study file": 1,
    },
    "0.2.0": {
        "store": 2,  # says so in a table
        "study": 2,  # names the version whose defaults hold in it, and whose trials it takes over
        "checkpoint": 2,  # says for which config and text it is
        "training state": 2,
        "encoded corpus": 2,
        "model": 2,  # says for which study, trial, config and text it is
        "config": 2,  # best-config.json: says of which store's study it is
        "study file": 1,
    },
    "0.3.0": {
        "store": 3,  # has a table of workers
        "study": 2,
        "checkpoint": 2,
        "training state": 2,
        "encoded corpus": 3,  # says what of the text was lost, and what marks it has of its own
        "model": 2,
        "config": 2,
        "study file": 1,
    },
    "0.4.0": {
        "store": 4,  # tickets may be paused
        "study": 2,
        "checkpoint": 2,
        "training state": 2,
        "encoded corpus": 3,
        "model": 2,
        "config": 2,
        "study file": 1,
    },
}
"""What each version that changed a format writes, the oldest first. A changed number needs a line and a new version."""

FORMATS = list(FORMATS_OF.values())[-1]
"""What this version writes, and the newest that it reads."""

FIRST = "0.1.0"  # wrote no version beside what it stored

_VERSION = re.compile(r"\d[\w.+!-]{0,39}", re.ASCII)
_HEAD = re.compile(rb"lmsearch-(?P<kind>[a-z-]+)-(?P<number>\d{1,9})(?: (?P<version>\S+))? (?P<digest>[0-9a-f]{64})")


class NewerFormatError(LmsearchError):
    """Something was written by a later lmsearch, in a format that this one does not know."""


class DamagedError(Exception):
    """Bytes that are not what was written."""


def stamp(kind: str) -> dict[str, Any]:
    """Return what stands in each JSON document that is stored: its format, and who wrote it."""
    return {"format": FORMATS[kind], "lmsearch": __version__}


def check_stamp(kind: str, source: str, document: dict[str, Any]) -> int:
    """Return the format of a JSON document; one without a number is of the first format.

    Raises `NewerFormatError`, and `LmsearchError` for a number that is none.
    """
    number = document.get("format", 1)
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise LmsearchError(f"{source} has the format {str(number)[:40]!r}, which is no whole number from 1")
    check_number(kind, source, number, document.get("lmsearch"))
    return number


def check_number(kind: str, source: str, number: int, version: object) -> None:
    """Raise `NewerFormatError` for a format that a later lmsearch wrote; `version` is what stands beside it."""
    if number <= FORMATS[kind]:
        return
    writer = known_version(version, "")
    by, use = (f" (lmsearch {writer} wrote it)", f"lmsearch {writer} or later") if writer else ("", "a later lmsearch")
    raise NewerFormatError(
        f"{source} is of format {number}{by}, and lmsearch {__version__} reads up to format {FORMATS[kind]}; it is "
        f"left as it is: use {use}"
    )


def known_version(version: object, otherwise: str = FIRST) -> str:
    """Return a version that was read from somewhere, `otherwise` where it is none."""
    return version if isinstance(version, str) and _VERSION.fullmatch(version) else otherwise


def seal(kind: str, content: bytes) -> bytes:
    """Return `content` under a line with its format, the version that wrote it and its checksum."""
    digest = hashlib.sha256(content).hexdigest()
    return f"lmsearch-{kind.replace(' ', '-')}-{FORMATS[kind]} {__version__} {digest}\n".encode() + content


def unseal(kind: str, source: str, data: bytes) -> tuple[int, bytes]:
    """Return format and content of what `seal` wrote, also in its first format, which had no version.

    Raises `NewerFormatError`, before anything behind the first line is looked at, and `DamagedError`.
    """
    line, _, content = data.partition(b"\n")
    head = _HEAD.fullmatch(line[:200])
    if head is None or head["kind"].decode() != kind.replace(" ", "-"):
        raise DamagedError(f"it does not begin as a {kind} does")
    number = int(head["number"])
    check_number(kind, source, number, (head["version"] or b"").decode("ascii", "replace"))
    if hashlib.sha256(content).hexdigest().encode() != head["digest"]:
        raise DamagedError("its checksum is another")
    return number, content
