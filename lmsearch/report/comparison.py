"""Several searches side by side: the best each had found after so many trials, over its repetitions."""

import fnmatch
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev
from typing import Any

import plotly.graph_objects as go

from lmsearch.errors import StudyError
from lmsearch.report.page import Content, Plot, Section, Table, render_page
from lmsearch.report.plots import PALETTE, new_figure
from lmsearch.results.budget import best_so_far, ended_in_order
from lmsearch.spelling import nearest
from lmsearch.store.records import StudyInfo, StudyRecord, lmsearch_studies, open_study, readable_studies
from lmsearch.store.storage import FencedStorage
from lmsearch.store.trials import read_study


@dataclass(frozen=True, kw_only=True)
class Group:
    """A search and its repetitions: studies that one name or pattern fits."""

    name: str
    studies: tuple[str, ...]
    paths: tuple[tuple[float, ...], ...]  # of each study: the best complete perplexity after so many ended trials

    @property
    def budget(self) -> int:
        """Return the number of trials that all its studies have."""
        return min((len(path) for path in self.paths), default=0)

    def at(self, budget: int) -> list[float]:
        """Return what each study had found after so many trials; infinite where nothing was complete."""
        return [path[budget - 1] for path in self.paths]


def read_groups(storage: FencedStorage, patterns: Sequence[str]) -> list[Group]:
    """Read the studies that each name or pattern (`tpe-*`) fits. Raises `StudyError` where one fits none.

    One that cannot be read is left out of a pattern, and refused by its name. Raises `StudyError` too where two
    studies have another text, or trials of another number of epochs: their perplexities cannot be compared.
    """
    known = lmsearch_studies(storage)
    readable = [info.ref.name for info in readable_studies(storage)[0]]
    groups, first = [], None
    for pattern in patterns:
        names = [pattern] if pattern in known else sorted(fnmatch.filter(readable, pattern))
        infos = [open_study(storage, name) for name in names]
        if pattern in known:
            infos[0].require_search()
        infos = [info for info in infos if not info.confirms]
        if not infos:
            raise StudyError(f"there is no study {pattern!r} in the store{nearest(pattern, known)}")
        records = [read_study(storage, info) for info in infos]
        for record in records:
            first = first or record
            _check_comparable(first, record)
        paths = [tuple(best_so_far(ended_in_order(record))) for record in records]
        groups.append(Group(name=pattern, studies=tuple(info.ref.name for info in infos), paths=tuple(paths)))
    return groups


def _check_comparable(one: StudyRecord, other: StudyRecord) -> None:
    names = f"{one.info.ref.name} and {other.info.ref.name}"
    if one.info.fingerprint != other.info.fingerprint:
        raise StudyError(
            f"{names} cannot be compared: the one is on {one.info.corpus} (fingerprint {one.info.fingerprint}), the "
            f"other on {other.info.corpus} (fingerprint {other.info.fingerprint}){_other_words(one.info, other.info)}"
        )
    if one.info.spec.epochs != other.info.spec.epochs:
        raise StudyError(
            f"{names} cannot be compared: trials of the one have {one.info.spec.epochs} epochs, of the other "
            f"{other.info.spec.epochs}"
        )


def _other_words(one: StudyInfo, other: StudyInfo) -> str:
    """Return where one text is read with two vocabularies, which the fingerprints alone do not tell."""
    if one.corpus != other.corpus or one.vocabulary_size == other.vocabulary_size:
        return ""
    return f": their vocabularies differ, {one.vocabulary_size:,} and {other.vocabulary_size:,} words"


def budgets(groups: Sequence[Group]) -> list[int]:
    """Return the budgets at which to compare: 1, 2, 4, … and the largest that all have."""
    most = min((group.budget for group in groups), default=0)
    return sorted(
        {*(1 << power for power in range(most.bit_length()) if 1 << power <= most), *([most] if most else [])}
    )


def spread(values: Sequence[float]) -> str:
    """Return what some repetitions found: mean and standard deviation, or the one value."""
    if not all(math.isfinite(value) for value in values):
        return "none complete" if not any(math.isfinite(value) for value in values) else "some none complete"
    return f"{values[0]:.2f}" if len(values) == 1 else f"{mean(values):.2f} ± {stdev(values):.2f}"


def table(groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows: what each group had found after so many trials."""
    columns = budgets(groups)
    head = ["search", "repetitions", *(f"{n} trial{'s' if n > 1 else ''}" for n in columns)]
    rows = [
        [group.name, str(len(group.studies)), *(spread(group.at(budget)) for budget in columns)] for group in groups
    ]
    return head, rows


def best_against_budget(groups: Sequence[Group]) -> go.Figure:
    """Plot the median best over repetitions against the number of trials, from the worst to the best of them."""
    figure = new_figure("trials", "best validation perplexity")
    for group, colour in zip(groups, PALETTE * len(groups), strict=False):
        counts = [n for n in range(1, group.budget + 1) if all(math.isfinite(value) for value in group.at(n))]
        if not counts:
            continue
        lows = [min(group.at(n)) for n in counts]
        highs = [max(group.at(n)) for n in counts]
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
            line={"shape": "hv", "color": colour, "width": 2.5},
            name=f"{name} ({len(group.studies)})",
            hovertemplate=f"{name}, %{{x}} trials: %{{y:.2f}}<extra></extra>",
        )
    figure.update_yaxes(type="log")
    return figure


def write_comparison(groups: Sequence[Group]) -> str:
    """Return a comparison as a page of HTML."""
    head, rows = table(groups)
    words = [
        "The lowest validation perplexity of the complete trials after N trials have ended, in the order of their "
        "start. For a repeated search, the mean and standard deviation over its studies; the plot has the median, "
        "and the area from the worst to the best of them."
    ]
    if any(len(group.studies) == 1 for group in groups):
        words.append("A search that ran once says nothing about its spread: repeat it with other seeds.")
    section = Section(
        id="comparison",
        content=Content(words=words, tables=[Table(head=head, rows=rows)]),
        plots=[Plot(name="best-against-budget", figure=best_against_budget(groups))],
    )
    return render_page("lmsearch: " + " against ".join(group.name for group in groups), [section])


def comparison_document(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return a comparison as plain values; what is not finite is None."""
    return [
        {
            "search": group.name,
            "studies": [
                {"study": study, "best": [value if math.isfinite(value) else None for value in path]}
                for study, path in zip(group.studies, group.paths, strict=True)
            ],
        }
        for group in groups
    ]
