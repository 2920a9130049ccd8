"""The report of a study as a page and as JSON: is it working, what has it learned, is the winner real."""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from lmsearch.errors import NothingToShowError
from lmsearch.report.figures import figures_of, make_figure
from lmsearch.report.page import Plot, Section, render_page
from lmsearch.report.sections import topics_of
from lmsearch.report.topic import Figure
from lmsearch.results.commands import Command
from lmsearch.results.reading import Results
from lmsearch.results.timing import search_line
from lmsearch.results.verdict import verdict


def write_report(results: Results, command: Command) -> str:
    """Return a study's report as HTML; raises `StudyError` for a confirmation, which is part of its study's report."""
    results.record.info.require_search()
    sections = [
        Section(
            id=name,
            title=topic.title,
            content=topic.write(results, command),
            plots=_plots(results, topic.figures_of(results)),
            small=topic.small,
        )
        for name, topic in topics_of(results).items()
    ]
    return render_page(f"lmsearch: {results.name}", sections, search_line(results.record))


def write_figure(results: Results, name: str) -> str:
    """Return one figure of a study as HTML; raises `LmsearchError` for an unknown name, or without data for it."""
    figure = make_figure(results, name)
    about = figures_of(results)[name]
    plot = _plot(results, name, about, figure)
    return render_page(f"{results.name}: {about.title}", [Section(id="figure", plots=[plot])])


def _plots(results: Results, figures: Mapping[str, Figure]) -> list[Plot]:
    """Make those figures that the study has something for."""
    plots = []
    for name, figure in figures.items():
        try:
            made = make_figure(results, name)
        except NothingToShowError:
            continue
        plots.append(_plot(results, name, figure, made))
    return plots


def _plot(results: Results, name: str, figure: Figure, made: go.Figure) -> Plot:
    return Plot(
        name=name,
        title=figure.title,
        caption=figure.caption,
        alternative=" ".join(verdict(results)[:1]),
        figure=made,
        width=figure.width(results),
    )


def document(results: Results) -> dict[str, Any]:
    """Return all that a report is made from as one document of plain values."""
    found = {"study": results.name, "total": results.record.total, "done": results.record.done}
    return found | {key: make(results) for topic in topics_of(results).values() for key, make in topic.data.items()}
