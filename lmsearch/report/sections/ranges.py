"""Is the range right: perplexity against each searched value."""

import functools
from dataclasses import asdict

import plotly.graph_objects as go

from lmsearch.report.page import Content
from lmsearch.report.plots import (
    PERPLEXITY,
    add_by_outcome,
    log_axis,
    need,
    new_figure,
    shown,
    y_range,
)
from lmsearch.report.topic import Figure, Topic
from lmsearch.results.commands import Command
from lmsearch.results.ranges import edge_line, edge_sentence, edges
from lmsearch.results.reading import Results
from lmsearch.space import Choice


def _write(results: Results, command: Command) -> Content:
    found = edges(results.record)
    if not results.record.count("complete"):
        return Content()
    words = [edge_sentence(edge) + "." for edge in found] or ["The best trials do not crowd an end of any range."]
    code = [
        f"# the changed line\n{edge_line(results.record, edge)}\n"
        + command(["lmsearch", "extend", results.name, "--set", edge.change])
        for edge in found
        if edge.wider is not None
    ]
    return Content(words=words, code=code)


def _slice(results: Results, path: str) -> go.Figure:
    """Plot perplexity against one searched value, each trial with its outcome."""
    value = results.record.info.spec.open[path]
    trials = [trial for trial in results.record.trials if trial.curve and path in trial.params]
    need(trials, "no trial has ended an epoch yet")
    low, high = y_range(trials)
    figure = new_figure(path, PERPLEXITY)
    add_by_outcome(figure, trials, results, high, lambda trial: shown(trial.params[path]))
    figure.update_yaxes(**log_axis(low, high * 1.02))
    if not isinstance(value, Choice) and value.log:
        figure.update_xaxes(**log_axis(value.low / 1.1, value.high * 1.1, most=5))
    figure.update_layout(height=300, showlegend=False)
    return figure


TOPIC = Topic(
    about="Ends of ranges that the best trials crowd, with the command that widens them; a figure for each searched "
    "value.",
    title="Is the range right?",
    write=_write,
    of_any=True,
    value_figure=lambda path: Figure(draw=functools.partial(_slice, path=path), title=path),
    data={"edges": lambda results: [asdict(edge) for edge in edges(results.record)]},
    small=True,
)
