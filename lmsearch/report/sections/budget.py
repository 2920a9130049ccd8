"""Was the search worth it: the best result against the number of trials."""

import html
import itertools
from dataclasses import asdict

import plotly.graph_objects as go

from lmsearch.report.page import Content
from lmsearch.report.plots import (
    COLOURS,
    DASHES,
    PALETTE,
    PERPLEXITY,
    hover,
    log_axis,
    need,
    new_figure,
    sample,
    steps,
    y_range,
)
from lmsearch.report.topic import Figure, Topic
from lmsearch.results.budget import best_so_far, budget_sentences, ended_in_order, judge_budget, random_draws
from lmsearch.results.commands import Command
from lmsearch.results.reading import Results
from lmsearch.store.records import TrialRecord


def _write(results: Results, command: Command) -> Content:
    run = ["lmsearch", "run", f"runs/{results.name}/study.toml", "--name", results.name, "--sampler", "random"]
    judged = judge_budget(results.record)
    more = max((one.more for one in judged.samplers), default=0)
    code = (
        [f"{command([*run, '--more', str(more)])}    # compare with random search at twice the budget"]
        if more > 0
        else []
    )
    return Content(words=list(budget_sentences(judged)), code=code)


def _budget(results: Results) -> go.Figure:
    """Plot the best found against the number of trials: each sampler as it ran, random search as it typically runs."""
    record = results.record
    trials = ended_in_order(record)
    need(any(trial.outcome == "complete" for trial in trials), "no trial is complete yet")
    figure = new_figure("trials", "best validation perplexity")
    draws = random_draws(record)
    bands = [(n, band) for n in range(1, len(draws.values) // 2 + 1) if (band := draws.band(n)) is not None]
    if bands:
        figure.add_scatter(
            x=[n for n, _ in bands] + [n for n, _ in reversed(bands)],
            y=[band[1] for _, band in bands] + [band[0] for _, band in reversed(bands)],
            fill="toself",
            fillcolor="rgba(98,145,188,0.22)",
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
    for name, colour, dash in zip(groups, PALETTE, DASHES, strict=False):
        path = best_so_far(ended_in_order(record, name))
        figure.add_scatter(
            **steps(range(1, len(path) + 1), path),
            mode="lines",
            line={"shape": "hv", "color": colour, "width": 2.5, "dash": dash},
            name=f"{name}, as it ran",
            hovertemplate=f"{html.escape(name)}, %{{x}} trials: %{{y:.2f}}<extra></extra>",
        )
    low, high = y_range([trial for trial in trials if trial.outcome == "complete"])
    figure.update_yaxes(**log_axis(low, high))
    figure.update_xaxes(range=[0.5, 1.05 * len(trials) + 0.5])
    return figure


def _samplers(results: Results) -> go.Figure:
    """Plot what each sampler's complete trials reached, where several took part."""
    groups: dict[str, list[TrialRecord]] = {}
    for trial in results.record.trials:
        if trial.outcome == "complete":
            groups.setdefault(trial.by or "another program", []).append(trial)
    need(len(groups) > 1, "one sampler has made all complete trials")
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
    low, high = y_range([trial for trials in groups.values() for trial in trials])
    figure.update_yaxes(**log_axis(low, high * 1.02))
    figure.update_layout(showlegend=False)
    return figure


TOPIC = Topic(
    about="What the second half of the trials gave, and whether a sampler beat random search at twice its budget.",
    title="Was the search worth it?",
    write=_write,
    of_any=True,
    figures={
        "budget": Figure(
            draw=_budget,
            title="The best perplexity against the number of trials",
            caption="The best perplexity against the number of trials. The band is for random trials only, up to half "
            "of those that ended.",
            in_dashboard=True,
        ),
        "samplers": Figure(
            draw=_samplers, title="Perplexity by sampler", caption="Perplexity of each sampler's complete trials."
        ),
    },
    data={"budget": lambda results: asdict(judge_budget(results.record))},
)
