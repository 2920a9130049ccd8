"""Every plot of a study: functions from what was read of it to plotly figures, for the report and for notebooks.

A figure that the data does not support raises `NothingToShowError` with the reason.
"""

import html
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from statistics import quantiles

import numpy as np
import plotly.graph_objects as go
from scipy.interpolate import RBFInterpolator

from lmsearch.config import Value
from lmsearch.errors import ConfigError, NothingToShowError
from lmsearch.results.advice import (
    best_so_far,
    closeness,
    ended_in_order,
    lowest_by,
    place,
    random_draws,
)
from lmsearch.results.reading import Results
from lmsearch.space import Choice, FloatRange, IntRange
from lmsearch.spelling import nearest
from lmsearch.store.records import TrialRecord

PERPLEXITY = "validation perplexity"
COLOURS = {
    "complete": "#2f7ebc",
    "pruned": "#9a9a9a",
    "diverged": "#d1495b",
    "infeasible": "#e08e2b",
    "failed": "#8e4dbd",
    "running": "#4c9f70",
    "waiting": "#4c9f70",
}
SYMBOLS = {
    "complete": "circle",
    "pruned": "x-thin-open",
    "diverged": "triangle-up",
    "infeasible": "square",
    "failed": "diamond",
    "running": "circle-open",
    "waiting": "circle-open",
}
_BEST = "#e2711d"
_INK = "#808080"  # legible on white and on black; the report gives each theme its own
_GRID = "rgba(128,128,128,0.22)"
_LABELLED = 10  # curves that have a colour of their own
_HOVERED_POINTS = 20_000  # of all curves together: beyond, only the ten best tell their configuration
MOST_DRAWN = 1_500  # trials as points of one figure
_MOST_CURVES = 300  # of one kind
_CELLS = 40  # of a contour, along each axis
_LEAST_CONTOUR = 10


def sample(trials: Sequence[TrialRecord], most: int = MOST_DRAWN) -> list[TrialRecord]:
    """Return all of a few trials; of many a fixed sample: the best ones, and others at even distances."""
    if len(trials) <= most:
        return list(trials)
    best = sorted(trials, key=lambda trial: trial.perplexity)[: most // 10]
    chosen = {trial.number for trial in best}
    left = [trial for trial in trials if trial.number not in chosen]
    count = most - len(best)
    chosen |= {left[place * len(left) // count].number for place in range(count)}
    return [trial for trial in trials if trial.number in chosen]


def _told(name: str, drawn: int, of: int) -> str:
    """Return the name of a group in a legend, with how many of it are drawn where these are not all."""
    return name if drawn == of else f"{name} ({drawn:,} of {of:,} drawn)"


def history(results: Results) -> go.Figure:
    """Plot every trial's perplexity in the order of their start, and the best so far.

    What has none, such as a trial that ran out of memory, is drawn at the upper end.
    """
    trials = [trial for trial in results.record.trials if trial.curve]
    _need(trials, "no trial has ended an epoch yet")
    figure = new_figure("trial", PERPLEXITY)
    low, high = _y_range(trials)
    ended = [trial for trial in results.record.trials if trial.curve or trial.ended is not None]
    _add_by_outcome(figure, ended, results, high, lambda trial: trial.number)
    complete = [trial for trial in trials if trial.outcome == "complete"]
    if complete:
        figure.add_scatter(
            **_steps([trial.number for trial in complete], best_so_far(complete)),
            mode="lines",
            line={"shape": "hv", "color": _BEST, "width": 2},
            name="best so far",
            hoverinfo="skip",
        )
    figure.update_yaxes(type="log", range=[math.log10(low), math.log10(high * 1.02)])
    return figure


def curves(results: Results) -> go.Figure:
    """Plot the learning curves of all trials against epochs, seconds or tokens; pruned ones grey."""
    trials = [trial for trial in results.record.trials if trial.curve]
    _need(trials, "no trial has ended an epoch yet")
    complete = sorted((t for t in trials if t.outcome == "complete"), key=lambda trial: trial.perplexity)
    labelled, winner = complete[:_LABELLED], results.winner
    told = sum(len(trial.curve) for trial in trials) <= _HOVERED_POINTS
    groups = [
        ([t for t in trials if t.outcome in ("pruned", "diverged", "infeasible", "failed")], "stopped", "#8c8c8c", 1.0),
        ([t for t in trials if t.outcome in ("running", "waiting")], "at work", COLOURS["running"], 1.5),
        (complete[_LABELLED:], "complete", COLOURS["complete"], 1.0),
    ]
    figure = new_figure("epoch", PERPLEXITY)
    axes: list[tuple[list[float | None], list[float | None], list[float | None]]] = []
    for ones, name, colour, width in groups:
        if ones:
            drawn = sample(ones, _MOST_CURVES)
            named = _told(name, len(drawn), len(ones))
            axes.append(_add_curves(figure, drawn, named, colour, width, results if told else None))
    for rank, trial in reversed(list(enumerate(labelled, 1))):
        is_winner = winner is not None and trial.number == winner.number
        colour = _BEST if is_winner else _shade(rank)
        axes.append(_add_curves(figure, [trial], f"trial {trial.number}", colour, 3 if is_winner else 1.5, results))
    low, high = _y_range(trials)
    figure.update_yaxes(type="log", range=[math.log10(low), math.log10(high)])
    buttons = [
        {"label": label, "method": "update", "args": [{"x": [axis[n] for axis in axes]}, {"xaxis.title.text": title}]}
        for n, (label, title) in enumerate(
            (("epochs", "epoch"), ("seconds", "seconds of training"), ("tokens", "tokens trained"))
        )
    ]
    menu = {"type": "buttons", "direction": "right", "buttons": buttons, "x": 0, "y": 1.0, "yanchor": "bottom"}
    menu |= {
        "xanchor": "left",
        "pad": {"b": 6},
        "bgcolor": "#dde2e7",
        "bordercolor": _GRID,
        "font": {"color": "#1b1f24"},
    }
    figure.update_layout(updatemenus=[menu], margin={"t": 48})
    return figure


def _add_curves(
    figure: go.Figure, trials: Sequence[TrialRecord], name: str, colour: str, width: float, told: Results | None
) -> tuple[list[float | None], list[float | None], list[float | None]]:
    """Add several curves as one trace; return their positions by epochs, seconds and tokens."""
    epochs: list[float | None] = []
    seconds: list[float | None] = []
    tokens: list[float | None] = []
    values: list[float | None] = []
    texts: list[str] = []
    for trial in trials:
        rows = {row.epoch: row for row in trial.epochs}
        passed = read = 0.0
        for epoch, value in trial.curve.items():
            row = rows.get(epoch)
            passed += row.seconds if row else 0.0
            read += row.tokens if row else 0
            epochs.append(epoch)
            seconds.append(round(passed, 2) if row else None)
            tokens.append(read if row else None)
            values.append(value)
            texts.append(hover(trial, told) if told else f"trial {trial.number}: {trial.outcome}")
        for column in (epochs, seconds, tokens, values):
            column.append(None)
        texts.append("")
    figure.add_scatter(
        x=epochs,
        y=values,
        mode="lines+markers",
        line={"color": colour, "width": width},
        marker={"size": 4 if width < 2 else 6, "color": colour},
        name=name,
        text=texts,
        hovertemplate="%{x}: <b>%{y:.2f}</b><br>%{text}<extra></extra>",
        opacity=0.7 if name.startswith("stopped") else 1.0,
    )
    return epochs, seconds, tokens


def importance(results: Results) -> go.Figure:
    """Plot each searched value's share of the differences between trials (PED-ANOVA)."""
    _need(results.importances, "fewer than 6 trials are complete, too few to say what matters")
    paths = list(results.importances)[::-1]
    shares = [results.importances[path] for path in paths]
    figure = new_figure("share of the differences between trials (PED-ANOVA)", "")
    figure.add_bar(
        x=shares,
        y=paths,
        orientation="h",
        marker={"color": COLOURS["complete"]},
        text=[f"{share:.0%}" for share in shares],
        hovertemplate="%{y}: %{x:.3f}<extra></extra>",
    )
    figure.update_layout(height=max(180, 70 + 34 * len(paths)), margin={"l": 10})
    figure.update_xaxes(tickformat=".0%")
    figure.update_yaxes(automargin=True)
    return figure


def parallel(results: Results) -> go.Figure:
    """Plot each complete trial as a line through its values: the ten best in colour, the others grey."""
    # Not plotly's own parallel coordinates: they need WebGL and a page that may compile code.
    opened = results.record.info.spec.open
    trials = _complete_with(results, opened)
    _need(len(trials) > 1, "fewer than 2 trials are complete")
    logs = [math.log(trial.perplexity) for trial in trials]
    low, high = min(logs), max(*logs, min(logs) + 1e-9)
    ranked = sorted(trials, key=lambda trial: trial.perplexity)
    others = sample(ranked[_LABELLED:], _MOST_CURVES)
    named = _told("complete", len(others), len(ranked[_LABELLED:]))
    groups = [(others, named, "#a8a8a8", 1.0)] if others else []
    best = reversed(list(enumerate(ranked[:_LABELLED], 1)))
    winner = None if results.winner is None else results.winner.number
    groups += [([t], f"trial {t.number}", _BEST if t.number == winner else _shade(rank), 2.5) for rank, t in best]
    figure = new_figure("", "")
    for ones, name, colour, width in groups:
        heights: list[float | None] = []
        for trial in ones:
            heights += [_height(opened[path], trial.params[path]) for path in opened]
            heights += [(math.log(trial.perplexity) - low) / (high - low), None]
        figure.add_scatter(
            x=[*range(len(opened) + 1), None] * len(ones),
            y=heights,
            mode="lines",
            line={"color": colour, "width": width},
            name=name,
            text=[told for trial in ones for told in [hover(trial, results)] * (len(opened) + 2)],
            hovertemplate="%{text}<extra></extra>",
            opacity=0.5 if name.startswith("complete") else 1.0,
        )
    ends = [_spelled_ends(value) for value in opened.values()]
    ends.append((f"{math.exp(low):.2f}", f"{math.exp(high):.2f}"))
    notes = [
        {"x": at, "y": y, "text": html.escape(text), "showarrow": False, "yanchor": anchor, "font": {"size": 11}}
        for at, pair in enumerate(ends)
        for y, text, anchor in ((-0.02, pair[0], "top"), (1.02, pair[1], "bottom"))
    ]
    figure.update_layout(annotations=notes, margin={"b": 90, "l": 30, "r": 30}, legend={"y": -0.35})
    names = [path.replace(".", ".<br>") for path in opened]
    figure.update_xaxes(tickvals=list(range(len(opened) + 1)), ticktext=[*names, "perplexity"], gridcolor=_INK)
    figure.update_xaxes(tickangle=0)
    figure.update_yaxes(visible=False, range=[-0.12, 1.12])
    return figure


def _complete_with(results: Results, paths: Iterable[str]) -> list[TrialRecord]:
    """List the complete trials that have all of some values; those of another program may lack them."""
    wanted = set(paths)
    return [t for t in results.record.trials if t.outcome == "complete" and t.curve and wanted <= t.params.keys()]


def _height(value: FloatRange | IntRange | Choice, number: Value) -> float:
    if isinstance(value, Choice):
        return value.choices.index(number) / (len(value.choices) - 1)
    return place(value, number)


def _spelled_ends(value: FloatRange | IntRange | Choice) -> tuple[str, str]:
    low, high = (value.choices[0], value.choices[-1]) if isinstance(value, Choice) else (value.low, value.high)
    return str(_shown(low)), str(_shown(high))


def one_slice(results: Results, path: str) -> go.Figure:
    """Plot perplexity against one searched value, each trial with its outcome."""
    value = results.record.info.spec.open[path]
    trials = [trial for trial in results.record.trials if trial.curve and path in trial.params]
    _need(trials, "no trial has ended an epoch yet")
    low, high = _y_range(trials)
    figure = new_figure(path, PERPLEXITY)
    _add_by_outcome(figure, trials, results, high, lambda trial: _shown(trial.params[path]))
    figure.update_yaxes(type="log", range=[math.log10(low), math.log10(high * 1.02)])
    if not isinstance(value, Choice) and value.log:
        figure.update_xaxes(type="log", exponentformat="e")
    figure.update_layout(height=300, showlegend=False)
    return figure


def contour(results: Results) -> go.Figure:
    """Plot perplexity over the two searched numbers that matter most, smoothed between the complete trials."""
    opened = results.record.info.spec.open
    paths = [path for path in results.importances if not isinstance(opened[path], Choice)][:2]
    _need(len(paths) == 2, "fewer than two searched numbers have a known importance")
    complete = sample(_complete_with(results, paths))
    _need(len(complete) >= _LEAST_CONTOUR, f"fewer than {_LEAST_CONTOUR} trials are complete, too few for a surface")
    across, up = (opened[path] for path in paths)
    assert not isinstance(across, Choice) and not isinstance(up, Choice)
    points = np.array([[place(across, t.params[paths[0]]), place(up, t.params[paths[1]])] for t in complete])
    values = np.log([trial.perplexity for trial in complete])
    spread = np.linalg.matrix_rank(points - points.mean(axis=0), tol=1e-6)
    _need(spread == 2, "the trials lie on a line, which is no surface")
    surface = RBFInterpolator(points, values, smoothing=0.3, kernel="thin_plate_spline")
    cells = np.linspace(0, 1, _CELLS)
    grid = np.stack(np.meshgrid(cells, cells), axis=-1).reshape(-1, 2)
    heights = surface(grid)
    distances = np.min(np.linalg.norm(grid[:, None] - points[None], axis=-1), axis=1)
    # Far from every trial a surface would be made up; beyond what was reached it bends too far.
    heights = np.where(distances > 0.25, np.nan, np.clip(heights, values.min(), values.max()))
    figure = new_figure(paths[0], paths[1])
    figure.add_contour(
        x=[_at(across, cell) for cell in cells],
        y=[_at(up, cell) for cell in cells],
        z=np.round(np.exp(heights).reshape(_CELLS, _CELLS), 3).tolist(),
        colorscale="Viridis",
        contours={"coloring": "heatmap"},
        line={"width": 0.5},
        colorbar={"title": {"text": "perplexity"}, "thickness": 12},
        hovertemplate=f"{paths[0]} %{{x:.3g}}<br>{paths[1]} %{{y:.3g}}<br>about %{{z:.2f}}<extra></extra>",
    )
    figure.add_scatter(
        x=[trial.params[paths[0]] for trial in complete],
        y=[trial.params[paths[1]] for trial in complete],
        mode="markers",
        marker={"color": "white", "size": 6, "line": {"color": "black", "width": 1}},
        text=[hover(trial, results) for trial in complete],
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )
    for value, update in ((across, figure.update_xaxes), (up, figure.update_yaxes)):
        update(type="log" if value.log else "linear")
    return figure


def samplers(results: Results) -> go.Figure:
    """Plot what each sampler's complete trials reached, where several took part."""
    groups: dict[str, list[TrialRecord]] = {}
    for trial in results.record.trials:
        if trial.outcome == "complete":
            groups.setdefault(trial.by or "another program", []).append(trial)
    _need(len(groups) > 1, "one sampler has made all complete trials")
    figure = new_figure("", PERPLEXITY)
    for (name, all_trials), colour in zip(groups.items(), itertools.cycle(PALETTE), strict=False):
        trials = sample(all_trials)
        figure.add_box(
            y=[trial.perplexity for trial in trials],
            name=f"{name} ({len(all_trials)})",
            boxpoints="all",
            jitter=0.4,
            pointpos=0,
            marker={"color": colour, "size": 5},
            line={"width": 1.5},
            fillcolor="rgba(128,128,128,0.08)",
            text=[hover(trial, results) for trial in trials],
            hovertemplate="%{text}<extra></extra>",
        )
    low, high = _y_range([trial for trials in groups.values() for trial in trials])
    figure.update_yaxes(type="log", range=[math.log10(low), math.log10(high * 1.02)])
    figure.update_layout(showlegend=False)
    return figure


def by_parameters(results: Results) -> go.Figure:
    """Plot perplexity against the number of parameters, with the frontier: nothing smaller is as good."""
    return _frontier(results, "parameters", lambda trial: trial.parameters)


def by_seconds(results: Results) -> go.Figure:
    """Plot perplexity against the seconds of training, with the frontier: nothing faster is as good."""
    return _frontier(results, "seconds of training", lambda trial: trial.seconds or None)


def _frontier(results: Results, title: str, cost: Callable[[TrialRecord], float | None]) -> go.Figure:
    trials = [t for t in results.record.trials if t.outcome == "complete" and cost(t) is not None]
    _need(trials, "no complete trial has a known cost")
    figure = new_figure(title, PERPLEXITY)
    costs = [cost(trial) or 0.0 for trial in trials]
    drawn = sample(trials)
    figure.add_scatter(
        x=[cost(trial) or 0.0 for trial in drawn],
        y=[trial.perplexity for trial in drawn],
        mode="markers",
        name=_told("complete", len(drawn), len(trials)),
        marker={"color": COLOURS["complete"], "size": 7},
        text=[hover(trial, results) for trial in drawn],
        hovertemplate="%{text}<br>" + title + " %{x:,.0f}<extra></extra>",
    )
    best: list[tuple[float, float]] = []
    for price, trial in sorted(zip(costs, trials, strict=True), key=lambda pair: (pair[0], pair[1].perplexity)):
        if not best or trial.perplexity < best[-1][1]:
            best.append((price, trial.perplexity))
    figure.add_scatter(
        x=[price for price, _ in best],
        y=[value for _, value in best],
        mode="lines+markers",
        name="frontier",
        line={"shape": "hv", "color": _BEST, "width": 2},
        hoverinfo="skip",
    )
    figure.update_yaxes(type="log")
    return figure


def confirmation(results: Results) -> go.Figure:
    """Plot each leader's perplexity by fresh seed, its mean and 95 % interval, beside what it had in the search."""
    found = results.confirmation
    _need(found is not None and found.leaders, f"nothing is confirmed yet: lmsearch confirm {results.name}")
    assert found is not None
    leaders = [leader for leader in found.leaders if leader.perplexities]
    names = [f"trial {leader.trial.number}" for leader in leaders]
    figure = new_figure("", PERPLEXITY)
    seeds = [(name, leader, seed) for name, leader in zip(names, leaders, strict=True) for seed in leader.perplexities]
    figure.add_scatter(
        x=[name for name, _, _ in seeds],
        y=[leader.perplexities[seed] for _, leader, seed in seeds],
        mode="markers",
        name="a fresh seed",
        marker={"color": COLOURS["complete"], "size": 8, "opacity": 0.6},
        text=[f"seed {seed}" for _, _, seed in seeds],
        hovertemplate="%{x}, %{text}: %{y:.2f}<extra></extra>",
    )
    halves = [leader.interval.high - leader.mean if leader.interval else 0.0 for leader in leaders]
    figure.add_scatter(
        x=names,
        y=[leader.mean for leader in leaders],
        error_y={"type": "data", "array": halves, "color": _BEST, "thickness": 2, "width": 8},
        mode="markers",
        name="mean, 95 % interval",
        marker={"color": _BEST, "size": 11, "symbol": "diamond"},
        hovertemplate="%{x}: mean %{y:.2f}<extra></extra>",
    )
    figure.add_scatter(
        x=names,
        y=[leader.trial.perplexity for leader in leaders],
        mode="markers",
        name="in the search",
        marker={"color": _INK, "size": 10, "symbol": "x-thin-open", "line": {"width": 2, "color": _INK}},
        hovertemplate="%{x} in the search: %{y:.2f}<extra></extra>",
    )
    return figure


def budget(results: Results) -> go.Figure:
    """Plot the best found against the number of trials: each sampler as it ran, random search as it typically runs."""
    record = results.record
    trials = ended_in_order(record)
    _need(any(trial.outcome == "complete" for trial in trials), "no trial is complete yet")
    figure = new_figure("trials", "best validation perplexity")
    draws = random_draws(record)
    bands = [(n, band) for n in range(1, len(draws.values) // 2 + 1) if (band := draws.band(n)) is not None]
    if bands:
        figure.add_scatter(
            x=[n for n, _ in bands] + [n for n, _ in reversed(bands)],
            y=[band[1] for _, band in bands] + [band[0] for _, band in reversed(bands)],
            fill="toself",
            fillcolor="rgba(47,126,188,0.18)",
            line={"width": 0},
            name="where half of all estimates hold the typical best",
            hoverinfo="skip",
        )
        figure.add_scatter(
            x=[n for n, _ in bands],
            y=[draws.typical_best(n) for n, _ in bands],
            mode="lines",
            line={"dash": "dash", "color": COLOURS["complete"], "width": 2},
            name="typical best of so many random trials",
            hovertemplate="%{x} random trials: typically %{y:.2f}<extra></extra>",
        )
    groups = sorted({trial.by for trial in trials if trial.by})
    for name, colour in zip(groups, PALETTE, strict=False):
        path = best_so_far(ended_in_order(record, name))
        figure.add_scatter(
            **_steps(range(1, len(path) + 1), path),
            mode="lines",
            line={"shape": "hv", "color": colour, "width": 2.5},
            name=f"{name}, as it ran",
            hovertemplate=f"{html.escape(name)}, %{{x}} trials: %{{y:.2f}}<extra></extra>",
        )
    low, high = _y_range([trial for trial in trials if trial.outcome == "complete"])
    figure.update_yaxes(type="log", range=[math.log10(low), math.log10(high)])
    return figure


def pruning(results: Results) -> go.Figure:
    """Plot the winner's lowest perplexity epoch by epoch against the others', and the median that prunes."""
    found = closeness(results)
    _need(found, "no complete trial can be compared with the others")
    winner = results.winner
    assert winner is not None
    figure = new_figure("epoch", "lowest perplexity so far")
    others: list[float | None] = []
    epochs: list[float | None] = []
    rivals = [t for t in results.record.trials if t.outcome == "complete" and t.number != winner.number]
    drawn = sample(rivals, _MOST_CURVES)
    for trial in drawn:
        epochs += [*trial.curve, None]
        others += [*(lowest_by(trial, epoch) for epoch in trial.curve), None]
    figure.add_scatter(
        x=epochs,
        y=others,
        mode="lines",
        line={"color": "#a8a8a8", "width": 1},
        name=_told("complete", len(drawn), len(rivals)),
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=[one.epoch for one in found],
        y=[one.median for one in found],
        mode="lines",
        line={"color": COLOURS["diverged"], "dash": "dash", "width": 2},
        name="their median",
        hovertemplate="epoch %{x}: median %{y:.2f}<extra></extra>",
    )
    figure.add_scatter(
        x=[one.epoch for one in found],
        y=[one.perplexity for one in found],
        mode="lines+markers",
        line={"color": _BEST, "width": 3},
        name=f"trial {winner.number}",
        text=[f"place {one.rank} of {one.reached}" for one in found],
        hovertemplate="epoch %{x}: %{y:.2f}, %{text}<extra></extra>",
    )
    figure.update_yaxes(type="log")
    return figure


def timeline(results: Results) -> go.Figure:
    """Plot when each trial ran, in as many rows as ran at once."""
    trials = sorted(
        (t for t in results.record.trials if t.started and t.ended and not t.origin_trial),
        key=lambda trial: trial.started or datetime.min,
    )
    _need(trials, "no trial has ended yet")
    figure = new_figure("", "worker")
    free: list[datetime] = []
    lanes = []
    for trial in trials:
        assert trial.started is not None and trial.ended is not None
        lane = next((n for n, until in enumerate(free) if until <= trial.started), len(free))
        free[lane : lane + 1] = [trial.ended]
        lanes.append(lane + 1)
    drawn = {trial.number for trial in sample(trials)}
    for outcome, colour in COLOURS.items():
        all_ones = [(t, lane) for t, lane in zip(trials, lanes, strict=True) if t.outcome == outcome]
        ones = [(t, lane) for t, lane in all_ones if t.number in drawn]
        if ones:
            figure.add_bar(
                base=[t.started for t, _ in ones],
                x=[1e3 * (t.ended - t.started).total_seconds() for t, _ in ones if t.ended and t.started],
                y=[lane for _, lane in ones],
                orientation="h",
                name=_told(outcome, len(ones), len(all_ones)),
                marker={"color": colour, "line": {"color": "rgba(255,255,255,0.7)", "width": 1}},
                text=[hover(t, results) + _pace(t) for t, _ in ones],
                textposition="none",
                hovertemplate="%{text}<extra></extra>",
            )
    figure.update_xaxes(type="date")
    figure.update_yaxes(dtick=1, autorange="reversed")
    figure.update_layout(barmode="overlay", height=150 + 40 * len(free), legend={"y": -0.45})
    return figure


def _pace(trial: TrialRecord) -> str:
    tokens = sum(row.tokens for row in trial.epochs)
    return f"<br>{tokens / trial.seconds:,.0f} tokens a second" if trial.seconds else ""


FIGURES: dict[str, Callable[[Results], go.Figure]] = {
    "history": history,
    "curves": curves,
    "importance": importance,
    "parallel": parallel,
    "contour": contour,
    "samplers": samplers,
    "by-parameters": by_parameters,
    "by-seconds": by_seconds,
    "confirmation": confirmation,
    "budget": budget,
    "pruning": pruning,
    "timeline": timeline,
}
"""The figures that every study has; beside them each searched value has one, `slice-` and its path."""


def figure_names(results: Results) -> list[str]:
    """List the names of a study's figures."""
    return [*FIGURES, *(f"slice-{path}" for path in results.record.info.spec.open)]


def make_figure(results: Results, name: str) -> go.Figure:
    """Make a figure by its name; raises `NothingToShowError`, and `ConfigError` for a name that there is not."""
    if name not in results.figures:
        if name not in (known := figure_names(results)):
            raise ConfigError(f"there is no figure {name!r}{nearest(name, known)}")
        made = FIGURES[name](results) if name in FIGURES else one_slice(results, name.removeprefix("slice-"))
        results.figures[name] = made
    return results.figures[name]


def hover(trial: TrialRecord, results: Results) -> str:
    """Describe a trial for the mouse; what a person wrote is escaped, since plotly reads markup."""
    found = f", {trial.perplexity:.2f} in epoch {trial.best_epoch}" if trial.curve else ""
    lines = [f"<b>trial {trial.number}</b> {html.escape(trial.by)}: {trial.outcome}{found}"]
    for path in results.record.info.spec.open:
        if path in trial.params:
            lines.append(f"{path} = {html.escape(str(_shown(trial.params[path])))}")
    return "<br>".join(lines)


def _add_by_outcome(
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
                name=_told(outcome, len(ones), sum(trial.outcome == outcome for trial in trials)),
                marker={
                    "color": colour,
                    "symbol": SYMBOLS[outcome],
                    "size": 8,
                    "line": {"width": 1.5, "color": colour},
                },
                text=[hover(trial, results) for trial in ones],
                hovertemplate="%{text}<extra></extra>",
            )


PALETTE = ("#2f7ebc", "#e2711d", "#4c9f70", "#8e4dbd", "#d1495b", "#6c757d")


def new_figure(x: str, y: str) -> go.Figure:
    """Return an empty figure with titles for its axes, as all figures here look."""
    axis = {"gridcolor": _GRID, "zeroline": False, "linecolor": _GRID, "automargin": True}
    figure = go.Figure(
        layout={
            "template": None,
            "font": {"family": "system-ui, sans-serif", "size": 13, "color": _INK},
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


def _y_range(trials: Sequence[TrialRecord]) -> tuple[float, float]:
    """Return the part of the axis in which trials that came to something lie; what is above is drawn at its end."""
    values = sorted(t.perplexity for t in trials if t.outcome != "diverged") or [t.perplexity for t in trials]
    high = quantiles(values, n=20)[-1] if len(values) > 1 else values[0]
    low = values[0]
    return low / 1.01, max(high, low * 1.02) * 1.05


def _at(value: FloatRange | IntRange, share: float) -> float:
    if value.log:
        return float(value.low * (value.high / value.low) ** share)
    return float(value.low + share * (value.high - value.low))


def _shown(value: Value) -> Value:
    if isinstance(value, bool):
        return str(value).lower()
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _shade(rank: int) -> str:
    """Return a blue that is paler the worse a trial's rank."""
    light = 0.75 * (rank - 1) / _LABELLED
    parts = [round(channel + light * (225 - channel)) for channel in (31, 98, 158)]
    return "#" + "".join(f"{part:02x}" for part in parts)


def _steps(places: Sequence[float], values: Sequence[float]) -> dict[str, list[float]]:
    """Return the places at which a falling line steps, and its end."""
    kept = [
        (place, value)
        for number, (place, value) in enumerate(zip(places, values, strict=True))
        if math.isfinite(value) and (number in (0, len(values) - 1) or value != values[number - 1])
    ]
    return {"x": [place for place, _ in kept], "y": [value for _, value in kept]}


def _need(there: Iterable[object] | object, reason: str) -> None:
    if not there:
        raise NothingToShowError(f"nothing to show: {reason}")
