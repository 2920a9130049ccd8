"""What the log of a worker says of its end."""

import re
from pathlib import Path

_LOG_TAIL = 4_000  # bytes of a log that are looked through for the last words of a worker


def ended_by_faulthandler(log: Path) -> bool:
    """Whether the C runtime ended a worker, whose interpreter a library held."""
    return re.search(r"^Timeout \(\d+:", _tail(log, 25 * _LOG_TAIL), re.MULTILINE) is not None


def _tail(log: Path, size: int) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def last_words(log: Path) -> str:
    """Return the end of a worker's log: its error sentence, or the last line of its traceback."""
    lines = _tail(log, _LOG_TAIL).splitlines()
    for number in range(len(lines) - 1, -1, -1):
        if lines[number].startswith("lmsearch: "):
            return "\n".join(lines[number:])
    return lines[-1] if lines else f"it printed nothing; its log is {log}"
