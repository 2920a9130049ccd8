"""A page of words, tables and plots in one file that asks no other host for anything."""

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from lmsearch.losses import json_text
from lmsearch.report.plots import DARK
from lmsearch.results.best import versions

_FIRST_ROWS = 25

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("lmsearch.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
)


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure with its name, which no other of the page has."""

    name: str
    title: str = ""
    caption: str = ""
    alternative: str = ""  # what it shows, for who cannot see it
    figure: go.Figure
    width: int = 0  # pixels below which it is moved sideways rather than made narrower

    @property
    def text(self) -> str:
        """Return what it shows in words."""
        return " ".join(filter(None, (self.caption, self.alternative))) or self.title or self.name

    @property
    def height(self) -> int:
        """Return its height in pixels, so that the page does not jump when it is drawn."""
        return int(self.figure.layout.height or 420)

    @property
    def json(self) -> Markup:
        """Return it, without its title, as JSON that cannot end the element it stands in."""
        figure = go.Figure(self.figure)
        figure.update_layout(title=None)
        return _json_element(figure.to_json())


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under the names of their columns; those of numbers stand at the right.

    One of trials (`is_grid`) has the trial's number first. The page shows its first rows, sorts and filters all.
    """

    title: str = ""
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    numbers: Collection[int] = ()  # columns
    is_grid: bool = False
    marked: int | None = None  # the number of the best trial, in a grid

    def is_number(self, column: int) -> bool:
        """Whether a column's cells are numbers."""
        return column in self.numbers

    @property
    def first(self) -> Sequence[Sequence[Any]]:
        """Return the rows that the page has without a script."""
        return (
            [["" if cell is None else cell for cell in row] for row in self.rows[:_FIRST_ROWS]]
            if self.is_grid
            else self.rows
        )

    @property
    def json(self) -> Markup:
        """Return all rows as JSON that cannot end the element it stands in."""
        return _json_element(json_text({"rows": self.rows, "marked": self.marked}))


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a part of a page says beside its plots."""

    words: Sequence[str] = ()
    numbers: Sequence[tuple[str, str]] = ()  # each with what it is
    code: Sequence[str] = ()
    quote: str = ""
    tables: Sequence[Table] = ()


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page; the first has no title and says what matters most."""

    id: str
    title: str = ""
    content: Content = Content()
    plots: Sequence[Plot] = ()
    small: bool = False  # plots stand beside each other where there is room


def render_page(title: str, sections: Sequence[Section], about: str = "") -> str:
    """Return a page as HTML; all text is escaped, and a policy in the page lets no script run but its own.

    A section without anything in it is left out. `about` is a line below the title.
    """
    there = [section for section in sections if section.plots or any(vars(section.content).values())]
    return _ENVIRONMENT.get_template("page.html.j2").render(
        title=title,
        about=about,
        sections=there,
        foot=f"lmsearch {versions().get('lmsearch', '')}",
        dark=_json_element(json_text(DARK)),
        # No HTML parser ends a script but at this.
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")) if any(s.plots for s in there) else "",
        nonce=secrets.token_hex(16),
    )


def _json_element(text: str) -> Markup:
    return Markup(text.replace("<", "\\u003c"))
