"""How plots look here: colours, samples of many trials, axes, and what the mouse shows."""

import html
import math
from collections.abc import Callable, Iterable, Sequence
from statistics import quantiles
from typing import Any

import plotly.graph_objects as go

from lmsearch.config import Value
from lmsearch.errors import NothingToShowError
from lmsearch.results.reading import Results
from lmsearch.store.records import TrialRecord

PERPLEXITY = "validation perplexity"
DARK = {
    "#1f6fb2": "#62b0f0",
    "#6b7280": "#a3abb5",
    "#c2334d": "#ff8a9b",
    "#8f5a00": "#e5a83b",
    "#8240b8": "#c9a0f2",
    "#2b7a4b": "#5ec48a",
    "#b4530f": "#ff9d57",
    "#0e7490": "#4fd0e8",
    "#a3326f": "#f28ac0",
    "#7a5c00": "#e6c84c",
}
"""Each colour of a figure, with a contrast of at least 4.5 on white, and the one in its place on the dark page."""

COLOURS = {
    "complete": "#1f6fb2",
    "pruned": "#6b7280",
    "diverged": "#c2334d",
    "infeasible": "#8f5a00",
    "failed": "#8240b8",
    "running": "#2b7a4b",
    "paused": "#2b7a4b",
    "waiting": "#2b7a4b",
}
SYMBOLS = {
    "complete": "circle",
    "pruned": "x-thin-open",
    "diverged": "triangle-up",
    "infeasible": "square",
    "failed": "diamond",
    "running": "circle-open",
    "paused": "circle-open",
    "waiting": "circle-open",
}
PALETTE = ("#1f6fb2", "#8f5a00", "#2b7a4b", "#8240b8", "#0e7490", "#a3326f")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")  # colours alone do not tell lines apart
BEST = "#b4530f"
GRID = "rgba(128,128,128,0.22)"
INK = "#6b7280"  # legible on white; the report gives each theme its own
LABELLED = 5  # curves that have a colour of their own
_LEAST_TICKS = 6  # of an axis, about
_FEW = 5.0  # between its ends: with less, an axis has ticks at preferred numbers, and below the next at even steps
_EVEN = 2.5
_PREFERRED = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)  # Renard's R10, rounded as is usual
_BELOW = 0.05  # of the axis's length, below its lowest point, for a marker to lie whole
MOST_DRAWN = 1_500  # trials as points of one figure
MOST_CURVES = 300  # of one kind


def new_figure(x: str, y: str) -> go.Figure:
    """Return an empty figure with titles for its axes, as all figures here look."""
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": GRID, "automargin": True}
    figure = go.Figure(
        layout={
            "template": None,
            "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 56, "r": 12, "t": 24, "b": 44},
            "height": 420,
            "hovermode": "closest",
            "hoverlabel": {"align": "left"},
            "legend": {"orientation": "h", "y": -0.24, "x": 0, "yanchor": "top"},
        }
    )
    figure.update_xaxes(title={"text": x}, **axis)
    figure.update_yaxes(title={"text": y}, **axis)
    return figure


def sample(trials: Sequence[TrialRecord], most: int = MOST_DRAWN) -> list[TrialRecord]:
    """Return all of a few trials; of many a fixed sample: the best ones, and others at even distances."""
    if len(trials) <= most:
        return list(trials)
    best = sorted(trials, key=lambda trial: trial.perplexity)[: most // 10]
    chosen = {trial.number for trial in best}
    left = [trial for trial in trials if trial.number not in chosen]
    count = most - len(best)
    chosen |= {left[index * len(left) // count].number for index in range(count)}
    return [trial for trial in trials if trial.number in chosen]


def legend(name: str, drawn: int, of: int) -> str:
    """Return the name of a group in a legend, with how many of it are drawn where these are not all."""
    return name if drawn == of else f"{name} ({drawn:,} of {of:,} drawn)"


def hover(trial: TrialRecord, results: Results) -> str:
    """Describe a trial for the mouse; what a person wrote is escaped, since plotly reads markup."""
    found = f", {trial.perplexity:.2f} in epoch {trial.best_epoch}" if trial.curve else ""
    lines = [f"<b>trial {trial.number}</b> {html.escape(trial.by)}: {trial.outcome}{found}"]
    for path in results.record.info.spec.open:
        if path in trial.params:
            lines.append(f"{path} = {html.escape(str(shown(trial.params[path])))}")
    return "<br>".join(lines)


def add_by_outcome(
    figure: go.Figure, trials: Sequence[TrialRecord], results: Results, high: float, x: Callable[[TrialRecord], Value]
) -> None:
    """Add the trials' perplexities as points, each outcome in its colour; what is above `high` is drawn there."""
    drawn = sample(trials)
    for outcome, colour in COLOURS.items():
        ones = [trial for trial in drawn if trial.outcome == outcome]
        if ones:
            figure.add_scatter(
                x=[x(trial) for trial in ones],
                y=[min(trial.perplexity, high) for trial in ones],
                mode="markers",
                name=legend(outcome, len(ones), sum(trial.outcome == outcome for trial in trials)),
                marker={
                    "color": colour,
                    "symbol": SYMBOLS[outcome],
                    "size": 8,
                    "line": {"width": 1.5, "color": colour},
                },
                text=[hover(trial, results) for trial in ones],
                customdata=[trial.number for trial in ones],
                hovertemplate="%{text}<extra></extra>",
            )
    mark_winner(figure, results, x, lambda trial: min(trial.perplexity, high))


def mark_winner(
    figure: go.Figure,
    results: Results,
    x: Callable[[TrialRecord], Value | None],
    y: Callable[[TrialRecord], Value | None],
) -> None:
    """Draw a ring around the winner's point, where it has one."""
    winner = results.winner
    if winner is None or (across := x(winner)) is None or (up := y(winner)) is None:
        return
    figure.add_scatter(
        x=[across],
        y=[up],
        mode="markers",
        name=f"best: trial {winner.number}",
        marker={"symbol": "circle-open", "size": 16, "color": BEST, "line": {"width": 3, "color": BEST}},
        customdata=[winner.number],
        text=[hover(winner, results)],
        hovertemplate="%{text}<extra></extra>",
    )


def complete_with(results: Results, paths: Iterable[str]) -> list[TrialRecord]:
    """List the complete trials that have all of some values; those of another program may lack them."""
    wanted = set(paths)
    return [t for t in results.record.trials if t.outcome == "complete" and t.curve and wanted <= t.params.keys()]


def leader_style(trial: TrialRecord, rank: int, results: Results) -> tuple[str, str, str]:
    """Return the name, colour and dash of one of the best trials' line; the winner's is of its own."""
    if results.winner is not None and trial.number == results.winner.number:
        return f"best: trial {trial.number}", BEST, "solid"
    return f"trial {trial.number}", PALETTE[rank], DASHES[rank]


def y_range(trials: Sequence[TrialRecord]) -> tuple[float, float]:
    """Return the part of the axis in which trials that came to something lie; what is above is drawn at its end."""
    known = [trial for trial in trials if math.isfinite(trial.perplexity) and trial.perplexity > 0]
    values = sorted(t.perplexity for t in known if t.outcome != "diverged") or [t.perplexity for t in known] or [1.0]
    high = quantiles(values, n=20)[-1] if len(values) > 1 else values[0]
    low = values[0]
    high = max(high, low * 1.02) * 1.05
    return low / max(1.03, (high / low) ** _BELOW), high


def log_axis(low: float, high: float, most: int = 12) -> dict[str, Any]:
    """Return a logarithmic axis from `low` to `high`, with at most so many ticks, at round numbers: 1, 2, 5, 10 …"""
    ticks = round_ticks(low, high, most)
    return {
        "type": "log",
        "range": [math.log10(low), math.log10(high)],
        "tickvals": ticks,
        "ticktext": [spell_tick(tick) for tick in ticks],
    }


def axis_around(values: Sequence[float]) -> dict[str, Any]:
    """Return a logarithmic axis that has all values, and a little room around them."""
    return log_axis(min(values) / 1.03, 1.03 * max(values))


def round_ticks(low: float, high: float, most: int) -> list[float]:
    """Return round numbers from `low` to `high`: 1, 2 and 5 times the powers of ten; more of them where few fit."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1,)) if high / low > _FEW else (_PREFERRED,):
        found = [digit * 10.0**power for power in powers for digit in digits]
        found = [tick for tick in found if low <= tick * (1 + 1e-9) and tick <= high * (1 + 1e-9)]
        if len(found) <= most:
            break
    if high / low > _EVEN:
        return found
    raw = (high - low) / _LEAST_TICKS
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(digit * size for digit in (1, 2, 5, 10) if digit * size >= raw)
    return [step * n for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def spell_tick(value: float) -> str:
    """Write a round number: 0.001, 20, 1e-7."""
    return f"{value:.6g}" if 1e-4 <= abs(value) < 1e6 or not value else f"{value:.0e}".replace("e-0", "e-")


def shown(value: Value) -> Value:
    """Return a value as the axes and the mouse show it: numbers with six digits."""
    if isinstance(value, bool):
        return str(value).lower()
    return float(f"{value:.6g}") if isinstance(value, float) else value


def steps(positions: Sequence[float], values: Sequence[float]) -> dict[str, list[float]]:
    """Return the positions at which a falling line steps, and its end."""
    kept = [
        (position, value)
        for number, (position, value) in enumerate(zip(positions, values, strict=True))
        if math.isfinite(value) and (number in (0, len(values) - 1) or value != values[number - 1])
    ]
    return {"x": [position for position, _ in kept], "y": [value for _, value in kept]}


def need(there: object, reason: str) -> None:
    """Raise `NothingToShowError` with a reason where there is nothing to draw."""
    if not there:
        raise NothingToShowError(f"nothing to show: {reason}")
