"""What a better model costs: perplexity against size and training time."""

from collections.abc import Callable

import plotly.graph_objects as go

from lmsearch.report.page import Content
from lmsearch.report.plots import (
    BEST,
    COLOURS,
    PERPLEXITY,
    axis_around,
    hover,
    legend,
    mark_winner,
    need,
    new_figure,
    sample,
)
from lmsearch.report.topic import Figure, Topic
from lmsearch.results.commands import Command
from lmsearch.results.reading import Results
from lmsearch.store.records import TrialRecord


def _write(results: Results, command: Command) -> Content:
    return Content()


def _by_parameters(results: Results) -> go.Figure:
    """Plot perplexity against the number of parameters, with the frontier: nothing smaller is as good."""
    return _frontier(results, "parameters", lambda trial: trial.parameters)


def _by_seconds(results: Results) -> go.Figure:
    """Plot perplexity against the seconds of training, with the frontier: nothing faster is as good."""
    return _frontier(results, "seconds of training", lambda trial: trial.seconds or None)


def _frontier(results: Results, title: str, cost: Callable[[TrialRecord], float | None]) -> go.Figure:
    trials = [t for t in results.record.trials if t.outcome == "complete" and cost(t) is not None]
    need(trials, "no complete trial has a known cost")
    figure = new_figure(title, PERPLEXITY)
    costs = [cost(trial) or 0.0 for trial in trials]
    drawn = sample(trials)
    figure.add_scatter(
        x=[cost(trial) or 0.0 for trial in drawn],
        y=[trial.perplexity for trial in drawn],
        mode="markers",
        name=legend("complete", len(drawn), len(trials)),
        marker={"color": COLOURS["complete"], "size": 7},
        text=[hover(trial, results) for trial in drawn],
        customdata=[trial.number for trial in drawn],
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
        line={"shape": "hv", "color": BEST, "width": 2},
        hoverinfo="skip",
    )
    mark_winner(figure, results, cost, lambda trial: trial.perplexity)
    figure.update_yaxes(**axis_around([trial.perplexity for trial in trials]))
    return figure


TOPIC = Topic(
    about="Perplexity against the size of the model and against training time, with the Pareto frontiers.",
    title="What a better model costs",
    write=_write,
    figures={
        "by-parameters": Figure(
            draw=_by_parameters,
            title="Perplexity against size",
            caption="Perplexity against size. Pareto frontier: no smaller model is better.",
            in_dashboard=True,
        ),
        "by-seconds": Figure(
            draw=_by_seconds,
            title="Perplexity against training time",
            caption="Perplexity against training time. Pareto frontier: no faster training is better.",
            in_dashboard=True,
        ),
    },
    small=True,
)
