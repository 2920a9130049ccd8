"""The documentation site: Sphinx with MyST and Furo, from these pages as they stand. `make site` builds it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from lmsearch.version import __version__

project = "lmsearch"
author = "The lmsearch authors"
copyright = "2026, the lmsearch authors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["conf.py"]
html_theme = "furo"
html_title = f"lmsearch {release}"
html_copy_source = False
pygments_style, pygments_dark_style = "bw", "github-dark"  # colours with contrast enough

myst_heading_anchors = 3  # links to headings work here as they do in a clone
myst_url_schemes = ["https", "http"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"


def setup(app):
    """Add what Sphinx leaves out for who reads by ear or by keyboard."""
    app.connect("html-page-context", _make_accessible, priority=900)  # after Furo has made the navigation


def _make_accessible(app, page, template, context, doctree):
    for name in ("furo_navigation_tree", "body"):
        context[name] = context.get(name, "").replace('role="heading">', 'role="heading" aria-level="2">')
    context["body"] = context["body"].replace("<pre>", '<pre tabindex="0">')  # wide lines are scrolled
