"""Which hyperparameters matter."""

import html
import math

import numpy as np
import plotly.graph_objects as go
from scipy.interpolate import RBFInterpolator

from lmsearch.config import Value
from lmsearch.report.page import Content
from lmsearch.report.plots import (
    COLOURS,
    INK,
    LABELLED,
    MOST_CURVES,
    complete_with,
    hover,
    leader_style,
    legend,
    log_axis,
    mark_winner,
    need,
    new_figure,
    sample,
    shown,
)
from lmsearch.report.topic import Figure, Topic
from lmsearch.results.commands import Command
from lmsearch.results.ranges import position
from lmsearch.results.reading import Results
from lmsearch.space import Choice, FloatRange, IntRange

_CELLS = 40  # of a contour, along each axis
_LEAST_CONTOUR = 10


def _write(results: Results, command: Command) -> Content:
    return Content(words=results.importances.sentences())


def _importance(results: Results) -> go.Figure:
    """Plot the share of the differences between trials that each searched value explains, with its interval."""
    values = results.importances.values[::-1]
    need(values, "too few trials to say what matters")
    figure = new_figure("share that it explains alone, 90 % interval", "")
    figure.add_bar(
        x=[value.share for value in values],
        y=[value.path for value in values],
        orientation="h",
        marker={"color": [COLOURS["complete" if value.stands_out else "pruned"] for value in values]},
        error_x={
            "type": "data",
            "array": [max(0.0, value.high - value.share) for value in values],
            "arrayminus": [max(0.0, value.share - value.low) for value in values],
            "color": INK,
            "thickness": 1,
            "width": 3,
        },
        customdata=[
            f"{value.share:.0%}, {value.low:.0%} to {value.high:.0%}"
            + ("" if value.stands_out else "; no more than chance gives")
            for value in values
        ],
        hovertemplate="%{y}: %{customdata}<extra></extra>",
    )
    figure.update_layout(height=max(180, 70 + 34 * len(values)), margin={"l": 10})
    figure.update_xaxes(tickformat=".0%")
    figure.update_yaxes(automargin=True)
    return figure


def _parallel(results: Results) -> go.Figure:
    """Plot each complete trial as a line through its values: the ten best in colour, the others grey."""
    # Not plotly's own parallel coordinates: they need WebGL and a page that may compile code.
    opened = results.record.info.spec.open
    trials = complete_with(results, opened)
    need(len(trials) > 1, "fewer than 2 trials are complete")
    logs = [math.log(trial.perplexity) for trial in trials]
    low, high = min(logs), max(*logs, min(logs) + 1e-9)
    ranked = sorted(trials, key=lambda trial: trial.perplexity)
    others = sample(ranked[LABELLED:], MOST_CURVES)
    named = legend("complete", len(others), len(ranked[LABELLED:]))
    drawn = [(trial, named, COLOURS["pruned"], "solid", 1.0) for trial in others]
    for rank, trial in reversed(list(enumerate(ranked[:LABELLED]))):
        drawn.append((trial, *leader_style(trial, rank, results), 2.5))
    figure = new_figure("", "")
    for number, (trial, name, colour, dash, width) in enumerate(drawn):
        heights = [_height(opened[path], trial.params[path]) for path in opened]
        figure.add_scatter(
            x=list(range(len(opened) + 1)),
            y=[*heights, (math.log(trial.perplexity) - low) / (high - low)],
            mode="lines",
            line={"color": colour, "width": width, "dash": dash},
            name=name,
            legendgroup=name,
            showlegend=number == 0 or name != named,
            text=[hover(trial, results)] * (len(opened) + 1),
            customdata=[trial.number] * (len(opened) + 1),
            hovertemplate="%{text}<extra></extra>",
        )
    ends = [_spelled_ends(value) for value in opened.values()]
    ends.append((f"{math.exp(low):.2f}", f"{math.exp(high):.2f}"))
    notes = [
        {"x": at, "y": y, "text": html.escape(text), "showarrow": False, "yanchor": anchor, "font": {"size": 11}}
        for at, pair in enumerate(ends)
        for y, text, anchor in ((-0.02, pair[0], "top"), (1.02, pair[1], "bottom"))
    ]
    # The page lets a person drag along an axis, and fades the lines that miss what was dragged over.
    figure.update_layout(
        annotations=notes, margin={"b": 90, "l": 30, "r": 30}, legend={"y": -0.35}, dragmode=False,
        meta={"brush": len(opened) + 1},
    )  # fmt: skip
    names = [path.replace(".", ".<br>") for path in opened]
    figure.update_xaxes(tickvals=list(range(len(opened) + 1)), ticktext=[*names, "perplexity"], gridcolor=INK)
    figure.update_xaxes(tickangle=0)
    figure.update_yaxes(visible=False, range=[-0.12, 1.12])
    return figure


def _height(value: FloatRange | IntRange | Choice, number: Value) -> float:
    if isinstance(value, Choice):
        return value.choices.index(number) / (len(value.choices) - 1)
    return position(value, number)


def _spelled_ends(value: FloatRange | IntRange | Choice) -> tuple[str, str]:
    low, high = (value.choices[0], value.choices[-1]) if isinstance(value, Choice) else (value.low, value.high)
    return str(shown(low)), str(shown(high))


def _contour(results: Results) -> go.Figure:
    """Plot perplexity over the two searched numbers that matter most, smoothed between the complete trials."""
    opened = results.record.info.spec.open
    paths = [value.path for value in results.importances.values if not isinstance(opened[value.path], Choice)][:2]
    need(len(paths) == 2, "fewer than two searched numbers have a known importance")
    complete = sample(complete_with(results, paths))
    need(len(complete) >= _LEAST_CONTOUR, f"fewer than {_LEAST_CONTOUR} trials are complete, too few for a surface")
    across, up = (opened[path] for path in paths)
    assert not isinstance(across, Choice) and not isinstance(up, Choice)
    points = np.array([[position(across, t.params[paths[0]]), position(up, t.params[paths[1]])] for t in complete])
    values = np.log([trial.perplexity for trial in complete])
    spread = np.linalg.matrix_rank(points - points.mean(axis=0), tol=1e-6)
    need(spread == 2, "the trials lie on a line, which is no surface")
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
        customdata=[trial.number for trial in complete],
        showlegend=False,
    )
    mark_winner(figure, results, lambda trial: trial.params.get(paths[0]), lambda trial: trial.params.get(paths[1]))
    figure.update_layout(showlegend=False)
    for value, update in ((across, figure.update_xaxes), (up, figure.update_yaxes)):
        update(**(log_axis(value.low, value.high) if value.log else {"range": [value.low, value.high]}))
    return figure


def _at(value: FloatRange | IntRange, share: float) -> float:
    if value.log:
        return float(value.low * (value.high / value.low) ** share)
    return float(value.low + share * (value.high - value.low))


TOPIC = Topic(
    about="How much of the differences between trials each searched value explains alone, and what stands out.",
    title="Which hyperparameters matter",
    write=_write,
    of_any=True,
    figures={
        "importance": Figure(
            draw=_importance,
            title="What explains the differences between trials",
            caption="How much of the differences between trials each searched value explains alone; grey: no more than "
            "chance gives.",
        ),
        "parallel": Figure(
            draw=_parallel,
            title="Each complete trial through its values",
            caption="Each complete trial is a line through its values: the five best in a colour and a dash of their "
            "own. Drag along an axis to keep only the trials that pass there; double-click to keep all.",
            width=lambda results: 110 * (len(results.record.info.spec.open) + 1),
        ),
        "contour": Figure(
            draw=_contour,
            title="Perplexity over the two numbers that matter most",
            caption="The two searched numbers that matter most; smoothed, and blank where no trial is near.",
            in_dashboard=True,
        ),
    },
    data={"importances": lambda results: results.importances.document()},
)
