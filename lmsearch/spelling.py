"""Numbers, sizes, durations and lists, written for a person."""

import difflib
from collections.abc import Iterable, Sequence


def count(number: int, singular: str, plural: str = "") -> str:
    """Write a number with its word."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def listed(things: Sequence[object], most: int = 6) -> str:
    """Write the first few of a list, and how many more there are."""
    text = ", ".join(map(str, things[:most]))
    return text if len(things) <= most else f"{text} and {len(things) - most} more"


def spell_bytes(size: float) -> str:
    """Write a size for a person: 3.2 GB, 45 MB, 12 kB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}" if size < 10 * unit else f"{size / unit:,.0f} {name}"
    return f"{size / 1e3:,.0f} kB"


def spell_value(value: object) -> str:
    """Write a value for a person, as a study file would have it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def spell_seconds(seconds: float) -> str:
    """Write a duration for a person: 0:42, 12:05, 3:20:00."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def spell_duration(seconds: float) -> str:
    """Write a duration in words: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?` for the known name closest to `name`, or the whole list where none is close."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are: {', '.join(known)}" if known else ""
