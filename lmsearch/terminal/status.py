"""A study as `lmsearch status` shows it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmsearch.escapes import shown
from lmsearch.results.progress import State, count_line, spell_epochs, started_rows
from lmsearch.spelling import spell_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType

    from lmsearch.store.records import StudyRecord


def render_status(
    record: "StudyRecord",
    now: tuple[float, str],
    state: State,
    seconds_left: float | None,
    resume: str,
    lines: Sequence[str] = (),
) -> "RenderableType":
    """Draw the counts, where the study stands, a row for each trial that has started and not ended, and more lines.

    `resume` is the command that resumes the study, where nobody is at work on it.
    """
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(shown(count_line(record)))]
    if not record.info.is_plain:
        left = f", about {spell_seconds(seconds_left)} left" if seconds_left is not None and state.working else ""
        styles = {"stopped": "bold yellow", "idle": "yellow", "stopping": "yellow"}
        parts.append(Text(f"{state}{left}", style=styles.get(state.name, "")))
        if state.can_resume:
            parts.append(Text(shown(f"resume with: {resume}")))
    rows = started_rows(record, now)
    if held := [row for row in rows if row["state"] != "paused"]:
        parts.append(_table(held, record.info.spec.epochs))
    paused = sorted((row for row in rows if row["state"] == "paused"), key=lambda row: row["trial"] or 0)
    parts += [Text(f"trial {row['trial']} paused at epoch {row['epoch']}{_forecast(row)}") for row in paused]
    return Group(*parts, *(Text(shown(line)) for line in lines))


def _forecast(row: dict[str, Any]) -> str:
    low, high = row["forecast"] or (None, None)
    return "" if low is None else f", forecast {low:.1f} to {high:.1f}"


def _table(rows: Sequence[dict[str, Any]], epochs: int) -> "RenderableType":
    """Draw who works on what; how often a trial was started is shown where one was started more than once."""
    from rich.table import Table

    columns = ["trial", "state", "epoch", "perplexity", "tokens/s", "last seen", "host", "process", "device"]
    columns += ["attempts"] if any(row["attempts"] > 1 for row in rows) else []
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in columns:
        left = name in ("state", "host", "device")
        table.add_column(name, justify="left" if left else "right", overflow="fold", min_width=len(name))
    for row in rows:
        cells = worker_cells(row, epochs)
        table.add_row(*(cells[name] for name in columns))
    return table


def worker_cells(row: dict[str, Any], epochs: int) -> dict[str, str]:
    """Return what is shown of one of `started_rows`, by the names of the columns."""
    speed, silence = row["tokens_per_second"], row["seconds_since_sign_of_life"]
    running = row["state"] == "running"
    return {
        "trial": "-" if row["trial"] is None else str(row["trial"]),
        "state": row["state"] + (" (alone)" if row["alone"] else ""),
        "epoch": spell_epochs(row["epochs_done"], epochs),
        "perplexity": "" if row["perplexity"] is None else f"{row['perplexity']:.2f}",
        "tokens/s": "" if speed is None or not running else f"{speed:,.0f}",
        "last seen": "" if silence is None or not running else f"{spell_seconds(silence)} ago",
        "host": shown(row["host"] or ""),
        "process": str(row["process"] or ""),
        "device": shown(row["device"] or ""),
        "attempts": str(row["attempts"]),
    }
