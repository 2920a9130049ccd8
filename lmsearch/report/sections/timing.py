"""Where the time went."""

from datetime import datetime

import plotly.graph_objects as go

from lmsearch.report.page import Content
from lmsearch.report.plots import COLOURS, hover, legend, need, new_figure, sample
from lmsearch.report.topic import Figure, Topic
from lmsearch.results.commands import Command
from lmsearch.results.documents import optional
from lmsearch.results.reading import Results
from lmsearch.results.timing import time_sentences, timing, work_of
from lmsearch.store.records import TrialRecord


def _write(results: Results, command: Command) -> Content:
    return Content(words=list(time_sentences(results.record)))


def _timeline(results: Results) -> go.Figure:
    """Plot when each trial ran, in as many rows as ran at once."""
    trials = sorted(
        (t for t in results.record.trials if t.started and t.ended and not t.is_taken_over),
        key=lambda trial: trial.started or datetime.min,
    )
    need(trials, "no trial has ended yet")
    figure = new_figure("", "worker")
    pieces = sorted(
        ((trial, *piece) for trial in trials for piece in work_of(trial)), key=lambda piece: (piece[1], piece[0].number)
    )
    free: list[datetime] = []
    lanes = []
    for _, started, ended in pieces:
        lane = next((n for n, until in enumerate(free) if until <= started), len(free))
        free[lane : lane + 1] = [ended]
        lanes.append(lane + 1)
    drawn = {trial.number for trial in sample(trials)}
    for outcome, colour in COLOURS.items():
        count = sum(trial.outcome == outcome for trial in trials)
        shown = sum(trial.outcome == outcome and trial.number in drawn for trial in trials)
        ones = [
            (trial, started, ended, lane)
            for (trial, started, ended), lane in zip(pieces, lanes, strict=True)
            if trial.outcome == outcome and trial.number in drawn
        ]
        if ones:
            figure.add_bar(
                base=[started for _, started, _, _ in ones],
                x=[1e3 * (ended - started).total_seconds() for _, started, ended, _ in ones],
                y=[lane for _, _, _, lane in ones],
                orientation="h",
                name=legend(outcome, shown, count),
                marker={"color": colour, "line": {"color": "rgba(255,255,255,0.7)", "width": 1}},
                text=[hover(trial, results) + _pace(trial) for trial, _, _, _ in ones],
                customdata=[trial.number for trial, _, _, _ in ones],
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


TOPIC = Topic(
    about="How long the trials trained, tokens per second, and how long workers were idle.",
    title="Where the time went",
    write=_write,
    of_any=True,
    figures={
        "timeline": Figure(
            draw=_timeline,
            title="When each trial ran",
            caption="When each trial trained, a row for each worker; time in which a trial was paused or waited is "
            "left out.",
            in_dashboard=True,
        )
    },
    data={"timing": lambda results: optional(timing(results.record))},
)
