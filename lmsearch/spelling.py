"""Numbers, sizes, durations and lists, written for a person."""

import difflib
from collections import Counter
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
    """Write a duration as a person types one: 0.4s, 42s, 8m05s, 3h50m, 2d04h; its two largest units."""
    if seconds < 9.95:
        return f"{seconds:.1f}s" if seconds >= 0.05 else "0s"
    whole = round(seconds) if seconds < 3570 else 60 * round(seconds / 60)
    for name, size, below, part in (("d", 86_400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size}{name}" + (f"{rest:02}{below}" if rest else "")
    return f"{whole}s"


def exact_duration(seconds: float) -> str:
    """Write a duration for a command line, to the last digit: 3h50m, 90s as 1m30s, 0.5s."""
    parts = []
    for name, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        number, seconds = divmod(seconds, size)
        parts += [f"{number:.0f}{name}"] if number else []
    return "".join([*parts, f"{seconds:g}s"] if seconds or not parts else parts)


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Return dotted names without their sections, where what is left names one of them alone."""
    found = {path: path.rpartition(".")[2] for path in paths}
    often = Counter(found.values())
    return {path: short if often[short] == 1 else path for path, short in found.items()}


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?` for the known name closest to `name`, or the whole list where none is close."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are: {', '.join(known)}" if known else ""
