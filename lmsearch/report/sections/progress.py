"""What happened: every trial, the learning curves, and pruning."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median

import plotly.graph_objects as go

from lmsearch.report.page import Content
from lmsearch.report.plots import (
    BEST,
    COLOURS,
    GRID,
    LABELLED,
    MOST_CURVES,
    MOST_DRAWN,
    PERPLEXITY,
    add_by_outcome,
    axis_around,
    hover,
    leader_style,
    legend,
    log_axis,
    need,
    new_figure,
    sample,
    steps,
    y_range,
)
from lmsearch.report.topic import Figure, Topic
from lmsearch.results.budget import best_so_far
from lmsearch.results.commands import Command
from lmsearch.results.documents import optional
from lmsearch.results.forecasts import paused_sentences
from lmsearch.results.pruning import closeness, lowest_by, pruning_sentences, saving
from lmsearch.results.reading import Results
from lmsearch.results.repeats import repeat_sentences, repeats
from lmsearch.store.records import TrialRecord

_HOVERED_POINTS = 20_000  # of all curves together: beyond, only the ten best tell their configuration


def _write(results: Results, command: Command) -> Content:
    record = results.record
    return Content(
        words=[*_sampled(results), *repeat_sentences(record), *pruning_sentences(results), *paused_sentences(record)]
    )


def _sampled(results: Results) -> list[str]:
    """Return a sentence where the figures do not draw every trial."""
    count = len(results.record.trials)
    if count <= MOST_DRAWN:
        return []
    return [
        f"Of {count:,} trials each figure draws a fixed sample: the best ones, and others at even distances. All "
        "trials are used for what is computed, and all are in the data behind this page."
    ]


def history(results: Results) -> go.Figure:
    """Plot every trial's perplexity in the order of their start, and the best so far.

    What has none, such as a trial that ran out of memory, is drawn at the upper end.
    """
    trials = [trial for trial in results.record.trials if trial.curve]
    need(trials, "no trial has ended an epoch yet")
    figure = new_figure("trial", PERPLEXITY)
    low, high = y_range(trials)
    ended = [trial for trial in results.record.trials if trial.curve or trial.ended is not None]
    add_by_outcome(figure, ended, results, high, lambda trial: trial.number)
    complete = [trial for trial in trials if trial.outcome == "complete"]
    if complete:
        figure.add_scatter(
            **steps([trial.number for trial in complete], best_so_far(complete)),
            mode="lines",
            line={"shape": "hv", "color": BEST, "width": 2},
            name="best so far",
            hoverinfo="skip",
        )
    figure.update_yaxes(**log_axis(low, high * 1.02))
    return figure


def _curves(results: Results) -> go.Figure:
    """Plot the learning curves of all trials against epochs, seconds or tokens; pruned ones grey."""
    trials = [trial for trial in results.record.trials if trial.curve]
    need(trials, "no trial has ended an epoch yet")
    complete = sorted((t for t in trials if t.outcome == "complete"), key=lambda trial: trial.perplexity)
    labelled = complete[:LABELLED]
    in_detail = sum(len(trial.curve) for trial in trials) <= _HOVERED_POINTS
    groups = [
        ([t for t in trials if t.outcome in ("pruned", "diverged", "infeasible", "failed")], "stopped",
         COLOURS["pruned"], 1.0),
        ([t for t in trials if t.is_open], "not ended", COLOURS["running"], 1.5),
        (complete[LABELLED:], "complete", COLOURS["complete"], 1.0),
    ]  # fmt: skip
    figure = new_figure("epoch", PERPLEXITY)
    axes: list[tuple[list[float | None], list[float | None], list[float | None]]] = []
    for ones, name, colour, width in groups:
        if ones:
            drawn = sample(ones, MOST_CURVES)
            named = legend(name, len(drawn), len(ones))
            axes.append(_add_curves(figure, drawn, named, colour, width, results if in_detail else None))
    for rank, trial in reversed(list(enumerate(labelled))):
        name, colour, dash = leader_style(trial, rank, results)
        axes.append(_add_curves(figure, [trial], name, colour, 3 if colour == BEST else 2, results, dash))
    low, high = y_range(trials)
    firsts = [next(iter(trial.curve.values())) for trial in trials if trial.outcome != "diverged"]
    figure.update_yaxes(**log_axis(low, max(high, 1.05 * median(firsts)) if firsts else high))
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
        "bordercolor": GRID,
        "font": {"color": "#1b1f24"},
    }
    figure.update_layout(updatemenus=[menu], margin={"t": 48})
    return figure


def _add_curves(
    figure: go.Figure,
    trials: Sequence[TrialRecord],
    name: str,
    colour: str,
    width: float,
    detail: Results | None,
    dash: str = "solid",
) -> tuple[list[float | None], list[float | None], list[float | None]]:
    """Add several curves as one trace; return their positions by epochs, seconds and tokens."""
    epochs: list[float | None] = []
    seconds: list[float | None] = []
    tokens: list[float | None] = []
    values: list[float | None] = []
    texts: list[str] = []
    numbers: list[int | None] = []
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
            texts.append(hover(trial, detail) if detail else f"trial {trial.number}: {trial.outcome}")
            numbers.append(trial.number)
        for column in (epochs, seconds, tokens, values):
            column.append(None)
        texts.append("")
        numbers.append(None)
    figure.add_scatter(
        x=epochs,
        y=values,
        mode="lines+markers",
        line={"color": colour, "width": width, "dash": dash},
        marker={"size": 4 if width < 2 else 6, "color": colour},
        name=name,
        text=texts,
        customdata=numbers,
        hovertemplate="%{x}: <b>%{y:.2f}</b><br>%{text}<extra></extra>",
    )
    return epochs, seconds, tokens


def _pruning(results: Results) -> go.Figure:
    """Plot the winner's lowest perplexity epoch by epoch against the others', and the median that prunes."""
    found = closeness(results)
    need(found, "no complete trial can be compared with the others")
    winner = results.winner
    assert winner is not None
    figure = new_figure("epoch", "lowest perplexity so far")
    others: list[float | None] = []
    epochs: list[float | None] = []
    rivals = [t for t in results.record.trials if t.outcome == "complete" and t.number != winner.number]
    drawn = sample(rivals, MOST_CURVES)
    for trial in drawn:
        epochs += [*trial.curve, None]
        others += [*(lowest_by(trial, epoch) for epoch in trial.curve), None]
    figure.add_scatter(
        x=epochs,
        y=others,
        mode="lines",
        line={"color": COLOURS["pruned"], "width": 1},
        name=legend("complete", len(drawn), len(rivals)),
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
        line={"color": BEST, "width": 3},
        name=f"best: trial {winner.number}",
        text=[f"place {one.rank} of {one.reached}" for one in found],
        hovertemplate="epoch %{x}: %{y:.2f}, %{text}<extra></extra>",
    )
    values = [value for value in others if value is not None] + [one.perplexity for one in found]
    figure.update_yaxes(**axis_around(values))
    return figure


TOPIC = Topic(
    about="Every trial, the learning curves, what pruning saved, and whether it would have stopped the winner.",
    title="What happened",
    write=_write,
    of_any=True,
    figures={
        "curves": Figure(
            draw=_curves,
            title="Learning curves",
            caption="Learning curves: the five best complete trials in a colour and a dash of their own, stopped "
            "ones in grey.",
        ),
        "pruning": Figure(
            draw=_pruning,
            title="Would pruning have stopped the winner?",
            caption="The winner epoch by epoch against the median of all other complete trials, above which the median "
            "pruner stops.",
            in_dashboard=True,
        ),
    },
    data={
        "repeats": lambda results: asdict(repeats(results.record)),
        "pruning": lambda results: {
            "winner": [asdict(one) for one in closeness(results)],
            "saved": optional(saving(results.record)),
        },
    },
)
