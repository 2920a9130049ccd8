"""Every figure of a study by its name: from what was read of it to a plotly figure, for the report and for notebooks.

A figure that the data does not support raises `NothingToShowError` with the reason.
"""

import functools
import textwrap
from collections.abc import Callable

import plotly.graph_objects as go

from lmsearch.errors import ConfigError
from lmsearch.report.sections import SECTIONS, topics_of
from lmsearch.report.topic import Figure
from lmsearch.results.reading import Results
from lmsearch.spelling import nearest

FIGURES: dict[str, Figure] = {name: figure for topic in SECTIONS.values() for name, figure in topic.figures.items()}
"""The figures that every study has; beside them each searched value has one: `slice-`, then its path."""


def figures_of(results: Results) -> dict[str, Figure]:
    """Return all figures of a study by name."""
    return {name: figure for topic in topics_of(results).values() for name, figure in topic.figures_of(results).items()}


def make_figure(results: Results, name: str) -> go.Figure:
    """Make a figure by its name; raises `NothingToShowError`, and `ConfigError` for a name that there is not."""
    if name not in results.figures:
        known = figures_of(results)
        if name not in known:
            raise ConfigError(f"there is no figure {name!r}{nearest(name, known)}")
        figure = known[name].draw(results)
        figure.update_layout(title={"text": known[name].title, "x": 0, "xref": "paper"})
        results.figures[name] = figure
    return results.figures[name]


def dashboard_figures() -> dict[str, Callable[[Results], go.Figure]]:
    """Return those that are stored for optuna-dashboard, by name, each with what makes it of a study."""
    return {name: functools.partial(_in_dashboard, name=name) for name, one in FIGURES.items() if one.in_dashboard}


def _in_dashboard(results: Results, name: str) -> go.Figure:
    """Make a figure with its caption below its title, in the font of optuna-dashboard's page."""
    figure = go.Figure(make_figure(results, name))
    lines = textwrap.wrap(FIGURES[name].caption, 110)
    title = "<br>".join([FIGURES[name].title, *(f"<sup>{line}</sup>" for line in lines)])
    font = {"family": "Roboto, Helvetica, Arial, sans-serif"}
    return figure.update_layout(title={"text": title}, font=font, margin={"t": 56 + 18 * len(lines)})
