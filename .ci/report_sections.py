"""Write the list of sections in docs/reading-a-report.md from `SECTIONS`; `--check` reports whether it is current."""

from pathlib import Path

from pages import keep_current, with_part

from lmsearch.report.sections import SECTIONS
from lmsearch.report.topic import SLICE, Topic

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reading-a-report.md"


def sections() -> str:
    """Return a table with a row for each section."""
    head = "| section | what it shows | `--figure` | JSON key |\n| --- | --- | --- | --- |\n"
    return head + "".join(map(_row, SECTIONS.values()))


def _row(topic: Topic) -> str:
    figures = [*topic.figures, *([f"{SLICE}SECTION.NAME"] if topic.value_figure is not None else [])]
    return f"| {topic.title or 'first lines'} | {topic.about} | {_names(figures)} | {_names(list(topic.data))} |\n"


def _names(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    keep_current({PAGE: with_part(PAGE.read_text(encoding="utf-8"), "sections", sections())})
