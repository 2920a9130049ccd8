"""A topic of the report: what it says, draws and gives as data, in one place."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go

from lmsearch.report.page import Content
from lmsearch.results.commands import Command
from lmsearch.results.reading import Results

SLICE = "slice-"
"""Begins the name of a searched value's figure; its path follows."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """How a figure is made of a study."""

    draw: Callable[[Results], go.Figure]  # raises `NothingToShowError` where the study has too little for it
    title: str
    caption: str = ""
    width: Callable[[Results], int] = lambda _: 0  # pixels below which it is moved sideways rather than made narrower
    in_dashboard: bool = False  # whether it is stored for optuna-dashboard, which has its own of the others


@dataclass(frozen=True, kw_only=True)
class Topic:
    """A topic: a section of the page, figures that can be written alone, and keys of the JSON document."""

    about: str  # a sentence for the documentation
    title: str = ""  # of the section; the first has none
    write: Callable[[Results, Command], Content]
    figures: Mapping[str, Figure] = field(default_factory=dict)  # by name
    value_figure: Callable[[str], Figure] | None = None  # by a searched value's path: a figure for each of them
    data: Mapping[str, Callable[[Results], Any]] = field(default_factory=dict)  # plain values by key
    of_any: bool = False  # whether it is shown of a study that another program made with Optuna, too
    small: bool = False  # its figures stand beside each other where there is room

    def figures_of(self, results: Results) -> dict[str, Figure]:
        """Return all figures of the topic for a study, by name."""
        found = dict(self.figures)
        if self.value_figure is not None:
            found |= {f"{SLICE}{path}": self.value_figure(path) for path in results.record.info.spec.open}
        return found
