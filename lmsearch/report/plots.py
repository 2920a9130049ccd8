"""How plots look here: colours, samples of many trials, axes, and what the mouse shows."""

import html
import math
from collections.abc import Callable, Iterable, Sequence
from statistics import quantiles

import plotly.graph_objects as go

from lmsearch.config import Value
from lmsearch.errors import NothingToShowError
from lmsearch.results.reading import Results
from lmsearch.store.records import TrialRecord

PERPLEXITY = "validation perplexity"
COLOURS = {
    "complete": "#2f7ebc",
    "pruned": "#9a9a9a",
    "diverged": "#d1495b",
    "infeasible": "#e08e2b",
    "failed": "#8e4dbd",
    "running": "#4c9f70",
    "paused": "#4c9f70",
    "waiting": "#4c9f70",
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
PALETTE = ("#2f7ebc", "#e2711d", "#4c9f70", "#8e4dbd", "#d1495b", "#6c757d")
BEST = "#e2711d"
INK = "#808080"  # legible on white and on black; the report gives each theme its own
GRID = "rgba(128,128,128,0.22)"
LABELLED = 10  # curves that have a colour of their own
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
                hovertemplate="%{text}<extra></extra>",
            )


def complete_with(results: Results, paths: Iterable[str]) -> list[TrialRecord]:
    """List the complete trials that have all of some values; those of another program may lack them."""
    wanted = set(paths)
    return [t for t in results.record.trials if t.outcome == "complete" and t.curve and wanted <= t.params.keys()]


def y_range(trials: Sequence[TrialRecord]) -> tuple[float, float]:
    """Return the part of the axis in which trials that came to something lie; what is above is drawn at its end."""
    values = sorted(t.perplexity for t in trials if t.outcome != "diverged") or [t.perplexity for t in trials]
    high = quantiles(values, n=20)[-1] if len(values) > 1 else values[0]
    low = values[0]
    return low / 1.01, max(high, low * 1.02) * 1.05


def shown(value: Value) -> Value:
    """Return a value as the axes and the mouse show it: numbers with six digits."""
    if isinstance(value, bool):
        return str(value).lower()
    return float(f"{value:.6g}") if isinstance(value, float) else value


def shade(rank: int) -> str:
    """Return a blue that is paler the worse a trial's rank."""
    light = 0.75 * (rank - 1) / LABELLED
    parts = [round(channel + light * (225 - channel)) for channel in (31, 98, 158)]
    return "#" + "".join(f"{part:02x}" for part in parts)


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
