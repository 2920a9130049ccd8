"""Is the winner real: the leaders on fresh seeds."""

from typing import Any

import plotly.graph_objects as go

from lmsearch.report.page import Content, Table
from lmsearch.report.plots import BEST, COLOURS, INK, PERPLEXITY, need, new_figure
from lmsearch.report.topic import Figure, Topic
from lmsearch.results.commands import Command
from lmsearch.results.confirmation import confirm_words, confirmation_document, confirmation_sentence
from lmsearch.results.reading import Results


def _write(results: Results, command: Command) -> Content:
    found = results.confirmation
    if found is None and results.record.done < results.record.total:
        return Content(
            words=["The winner is not known yet: not all trials have ended."], tables=_evaluations_table(results)
        )
    if found is None:
        words = [
            "Not confirmed yet. The best of many trials is usually also the luckiest: its perplexity is one training "
            "with one seed. This command trains the three best again, with three fresh seeds each, and compares them "
            "seed by seed:"
        ]
        return Content(words=words, code=[command(confirm_words(results.name))], tables=_evaluations_table(results))
    rows = []
    differences = [None, *(found.comparison.differences if found.comparison else ())]
    for rank, leader in enumerate(found.leaders):
        difference = differences[rank] if rank < len(differences) else None
        rows.append(
            (
                leader.trial.number,
                f"{leader.trial.perplexity:.2f}",
                f"{leader.mean:.2f}" if leader.perplexities else "lost",
                f"{leader.interval.low:.2f} to {leader.interval.high:.2f}" if leader.interval else "",
                f"{difference.mean:+.2f} ({difference.low:+.2f} to {difference.high:+.2f})" if difference else "",
                ", ".join(f"{seed}: {value:.2f}" for seed, value in leader.perplexities.items())
                + "".join(f", {seed}: {outcome}" for seed, outcome in leader.lost.items()),
            )
        )
    head = ("trial", "in the search", "mean", "95 % interval", "worse than the first by", "by seed")
    words = [
        confirmation_sentence(found),
        "The interval of a mean is that leader's own; the first of several equals is a little lucky here too. "
        "The differences are paired by seed. Their intervals hold together at 95 %, even if more seeds are requested "
        "later. An interval that reaches zero or below means a tie. The test split was not read for this.",
    ]
    return Content(
        words=words,
        tables=[Table(title="the leaders", head=head, rows=rows, numbers=(0, 1, 2)), *_evaluations_table(results)],
    )


def _evaluations_table(results: Results) -> list[Table]:
    if not results.evaluations:
        return []
    rows = [(one["when"], *_figures(one), *_figures(one.get("validation"))) for one in results.evaluations]
    head = ("when", "test perplexity", "of known words", "unknown", "in validation", "of known words", "unknown")
    title = "test evaluations (the splits are different text: both figures can be right)"
    return [Table(title=title, head=head, rows=rows, numbers=tuple(range(1, len(head))))]


def _figures(found: dict[str, Any] | None) -> tuple[str, str, str]:
    """Return a split's perplexity, that of its known words, and the share of the others; "" for what is not known."""
    if found is None:
        return "", "", ""
    if not found.get("unknown"):
        return f"{found['perplexity']:.2f}", "", ""
    share = f"{found['unknown'] / found['tokens']:.1%}"
    return f"{found['perplexity']:.2f}", f"{found['known_perplexity']:.2f}", share


def _draw(results: Results) -> go.Figure:
    """Plot each leader's perplexity by fresh seed, its mean and 95 % interval, beside what it had in the search."""
    found = results.confirmation
    need(found is not None and found.leaders, f"nothing is confirmed yet: lmsearch confirm {results.name}")
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
        error_y={"type": "data", "array": halves, "color": BEST, "thickness": 2, "width": 8},
        mode="markers",
        name="mean, 95 % interval",
        marker={"color": BEST, "size": 11, "symbol": "diamond"},
        hovertemplate="%{x}: mean %{y:.2f}<extra></extra>",
    )
    figure.add_scatter(
        x=names,
        y=[leader.trial.perplexity for leader in leaders],
        mode="markers",
        name="in the search",
        marker={"color": INK, "size": 10, "symbol": "x-thin-open", "line": {"width": 2, "color": INK}},
        hovertemplate="%{x} in the search: %{y:.2f}<extra></extra>",
    )
    return figure


def _document(results: Results) -> dict[str, Any] | None:
    again = results.confirmation
    return None if again is None else {"total": again.total, "done": again.done, **confirmation_document(again)}


TOPIC = Topic(
    about="The leaders on fresh seeds: which is really the best, or that it is a tie; every evaluation on the test "
    "split.",
    title="Is the winner real?",
    write=_write,
    figures={
        "confirmation": Figure(
            draw=_draw,
            title="The leaders on fresh seeds",
            caption="Each leader's perplexity with each fresh seed, their mean with its 95 % interval, and what it had "
            "in the search.",
            in_dashboard=True,
        )
    },
    data={"confirmation": _document, "looks": lambda results: list(results.evaluations)},
)
