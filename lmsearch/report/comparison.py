"""Several searches side by side, as a table and as a page."""

import html
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import plotly.graph_objects as go

from lmsearch.errors import NothingToShowError
from lmsearch.report.page import Content, Plot, Section, Table, render_page
from lmsearch.report.plots import DASHES, PALETTE, axis_around, need, new_figure, steps
from lmsearch.results.searches import Group, budgets, common_budget, spread, verdict
from lmsearch.results.timing import timing
from lmsearch.spelling import count, listed, spell_seconds, spell_value
from lmsearch.store.records import OUTCOMES, StudyRecord, TrialRecord
from lmsearch.study.differences import changed_settings

_MILLION = 1e6
_TOLD = 4  # searches that have a number on the first screen


def table(groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows: what each group had found after so many trials."""
    columns = budgets(groups)
    head = ["search", "repetitions", *(count(n, "trial") for n in columns)]
    rows = [
        [group.name, str(len(group.studies)), *(spread(group.at(budget)) for budget in columns)] for group in groups
    ]
    return head, rows


def write_comparison(groups: Sequence[Group]) -> str:
    """Return a comparison as a page of HTML."""
    sections = [_lead(groups), _by_tokens(groups), _found(groups), _cost(groups), _spaces(groups)]
    return render_page("lmsearch: " + " against ".join(group.name for group in groups), sections, _about(groups))


def _about(groups: Sequence[Group]) -> str:
    record = groups[0].records[0]
    studies = listed([study for group in groups for study in group.studies], 12)
    return "; ".join(filter(None, (record.info.corpus, f"{count(record.info.spec.epochs, 'epoch')} a trial", studies)))


# What each search found: the first screen.


def _lead(groups: Sequence[Group]) -> Section:
    head, rows = table(groups)
    return Section(
        id="comparison",
        content=Content(
            words=[*verdict(groups)],
            numbers=_numbers(groups),
            tables=[Table(head=head, rows=rows, numbers=range(1, len(head)))],
        ),
        plots=_plots(
            groups,
            best_against_budget,
            name="best-against-budget",
            title="The best after so many trials",
            caption="The lowest validation perplexity of the complete trials after so many have ended, in the order of "
            "their start. Of a repeated search the line is the median, and the area reaches from its worst study to "
            "its best.",
        ),
    )


def _numbers(groups: Sequence[Group]) -> list[tuple[str, str]]:
    budget = common_budget(groups)
    if not budget:
        return []
    after = f"after {count(budget, 'trial')}"
    return [(spread(group.at(budget)), f"{group.name} {after}" + _repetitions(group)) for group in groups[:_TOLD]]


def _repetitions(group: Group) -> str:
    return f", {len(group.studies)} studies" if len(group.studies) > 1 else ""


def best_against_budget(groups: Sequence[Group]) -> go.Figure:
    """Plot the median best over repetitions against the number of trials, from the worst to the best of them."""
    figure = new_figure("trials", "best validation perplexity")
    drawn: list[float] = []
    for group, colour, dash in _styles(groups):
        counts = [n for n in range(1, group.budget + 1) if all(math.isfinite(value) for value in group.at(n))]
        if not counts:
            continue
        lows = [min(group.at(n)) for n in counts]
        highs = [max(group.at(n)) for n in counts]
        drawn += [*lows, *highs]
        if len(group.studies) > 1:
            figure.add_scatter(
                x=counts + counts[::-1],
                y=highs + lows[::-1],
                fill="toself",
                fillcolor=colour,
                opacity=0.18,
                line={"width": 0},
                showlegend=False,
                hoverinfo="skip",
            )
        name = html.escape(group.name)
        figure.add_scatter(
            x=counts,
            y=[median(group.at(n)) for n in counts],
            mode="lines",
            line={"shape": "hv", "color": colour, "width": 2.5, "dash": dash},
            name=f"{name} ({count(len(group.studies), 'study', 'studies')})",
            hovertemplate=f"{name}, %{{x}} trials: %{{y:.2f}}<extra></extra>",
        )
    need(drawn, "no search has a complete trial in each of its studies")
    return figure.update_yaxes(**axis_around(drawn))


# Against what it cost: also pruned trials count, with what they had reached.


def _by_tokens(groups: Sequence[Group]) -> Section:
    return Section(
        id="by-tokens",
        title="Against the tokens that were trained",
        plots=_plots(
            groups,
            best_against_tokens,
            name="best-against-tokens",
            title="The best after so many tokens",
            caption="The lowest validation perplexity of any epoch, also of a pruned or paused trial, against the "
            "tokens that all trials had trained by then; a line for each study. The sizes of models cost time that "
            "tokens do not show.",
        ),
    )


def best_against_tokens(groups: Sequence[Group]) -> go.Figure:
    """Plot the best of any epoch against the tokens trained until it ended, a line for each study."""
    figure = new_figure("million tokens", "best validation perplexity")
    drawn: list[float] = []
    for group, colour, dash in _styles(groups):
        for number, record in enumerate(group.records):
            tokens, best = _token_path(record)
            if not tokens:
                continue
            line = steps(tokens, best)
            drawn += line["y"]
            name, study = html.escape(group.name), html.escape(record.info.ref.name)
            figure.add_scatter(
                **line,
                mode="lines",
                line={"shape": "hv", "color": colour, "width": 2, "dash": dash},
                name=name,
                legendgroup=name,
                showlegend=number == 0,
                hovertemplate=f"{study}, %{{x:.2f}} million tokens: %{{y:.2f}}<extra></extra>",
            )
    need(drawn, "no epoch with a known end")
    return figure.update_yaxes(**axis_around(drawn))


def _token_path(record: StudyRecord) -> tuple[list[float], list[float]]:
    """Return the million tokens trained when each epoch of a study had ended, and the best perplexity so far.

    Empty where an epoch's end is not known, as before lmsearch 0.4.0.
    """
    ended = []
    for trial in record.trials:
        if trial.is_taken_over:
            continue
        for row in trial.epochs:
            if row.ended is None:
                return [], []
            ended.append((row.ended, row.tokens / _MILLION, trial.curve.get(row.epoch, math.inf)))
    ended.sort()
    tokens = list(itertools.accumulate(tokens for _, tokens, _ in ended))
    return tokens, list(itertools.accumulate((value for _, _, value in ended), min))


# What was found, and what it cost, one column a search.


def _found(groups: Sequence[Group]) -> Section:
    winners = [group.best for group in groups]
    paths = list(dict.fromkeys(path for found in winners if found for path in found[0].info.spec.open))
    rows = [["validation perplexity", *("" if found is None else f"{found[1].perplexity:.2f}" for found in winners)]]
    rows.append(
        ["trial", *("" if found is None else f"{found[0].info.ref.name}/{found[1].number}" for found in winners)]
    )
    rows.append(["epoch", *("" if found is None else str(found[1].best_epoch) for found in winners)])
    rows.append(
        [
            "parameters",
            *("" if found is None or found[1].parameters is None else f"{found[1].parameters:,}" for found in winners),
        ]
    )
    rows += [[path, *("" if found is None else _value(*found, path) for found in winners)] for path in paths]
    return Section(
        id="found",
        title="The best configuration of each",
        content=Content(tables=[_columns(groups, rows)] if any(winners) else []),
    )


def _value(record: StudyRecord, trial: TrialRecord, path: str) -> str:
    value = trial.params.get(path, record.info.spec.fixed.get(path))
    return "" if value is None else spell_value(value)


def _cost(groups: Sequence[Group]) -> Section:
    rows: list[list[str]] = []
    for name, tell in _COSTS.items():
        rows.append([name, *(tell(group) for group in groups)])
    return Section(id="cost", title="What each search cost", content=Content(tables=[_columns(groups, rows)]))


def _strategies(group: Group) -> str:
    return ", ".join(
        dict.fromkeys(f"{r.info.spec.settings.sampler}, {r.info.spec.settings.pruner}" for r in group.records)
    )


def _outcomes(group: Group) -> str:
    counts = {outcome: sum(record.count(outcome) for record in group.records) for outcome in OUTCOMES}
    return ", ".join(f"{number} {outcome}" for outcome, number in counts.items() if number)


def _epochs(group: Group) -> str:
    return f"{sum(len(t.curve) for record in group.records for t in record.trials if not t.is_taken_over):,}"


def _tokens(group: Group) -> str:
    return f"{sum(spent.tokens for record in group.records if (spent := timing(record))) / _MILLION:,.1f} million"


def _time(group: Group) -> str:
    return spell_seconds(sum(spent.seconds for record in group.records if (spent := timing(record))))


_COSTS: dict[str, Callable[[Group], str]] = {
    "sampler and pruner of the file": _strategies,
    "trials": _outcomes,
    "epochs": _epochs,
    "tokens trained": _tokens,
    "training and evaluation": _time,
}


def _spaces(groups: Sequence[Group]) -> Section:
    """Say in which settings the searches differ, each from the first."""
    return Section(
        id="spaces",
        title="Where the study files differ",
        content=Content(tables=[*_space_tables(groups)]),
    )


def _space_tables(groups: Sequence[Group]) -> Iterator[Table]:
    first = groups[0].records[0].info
    for group in groups[1:]:
        other = group.records[0].info
        changed = [one for one in changed_settings(first.spec, other.spec) if one[0] != "data.corpus"]
        if changed:
            yield Table(head=["setting", first.ref.name, other.ref.name], rows=[list(one) for one in changed])


def _columns(groups: Sequence[Group], rows: Sequence[Sequence[str]]) -> Table:
    return Table(head=["", *(group.name + _repetitions(group) for group in groups)], rows=rows)


def _styles(groups: Sequence[Group]) -> Iterator[tuple[Group, str, str]]:
    return zip(groups, itertools.cycle(PALETTE), itertools.cycle(DASHES), strict=False)


def _plots(
    groups: Sequence[Group], draw: Callable[[Sequence[Group]], go.Figure], *, name: str, title: str, caption: str
) -> list[Plot]:
    try:
        figure = draw(groups)
    except NothingToShowError:
        return []
    return [Plot(name=name, title=title, caption=caption, alternative=" ".join(verdict(groups)), figure=figure)]
