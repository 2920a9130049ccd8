"""A page of words, tables and plots in one file that asks no other host for anything."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from lmsearch.results.best import versions

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("lmsearch.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
)


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure with its name, which no other of the page has."""

    name: str
    caption: str = ""
    figure: go.Figure
    width: int = 0  # pixels below which it is moved sideways rather than made narrower

    @property
    def height(self) -> int:
        """Return its height in pixels, so that the page does not jump when it is drawn."""
        return int(self.figure.layout.height or 420)

    @property
    def json(self) -> Markup:
        """Return it as JSON that cannot end the element it stands in."""
        return Markup(self.figure.to_json().replace("<", "\\u003c"))


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under the names of their columns."""

    title: str = ""
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a part of a page says beside its plots."""

    words: Sequence[str] = ()
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


def render_page(title: str, sections: Sequence[Section]) -> str:
    """Return a page as HTML; all text is escaped, and a policy in the page lets no script run but its own."""
    return _ENVIRONMENT.get_template("page.html.j2").render(
        title=title,
        sections=sections,
        foot=f"lmsearch {versions().get('lmsearch', '')}",
        # No HTML parser ends a script but at this.
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")) if any(s.plots for s in sections) else "",
        nonce=secrets.token_hex(16),
    )
