"""Write the list of sections in docs/reading-a-report.md from `SECTIONS`; `--check` reports whether it is current."""

import sys
from pathlib import Path

from lmsearch.report.sections import SECTIONS
from lmsearch.report.topic import SLICE, Topic

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reading-a-report.md"
FIRST, LAST = "<!-- sections: made by .ci/report_sections.py -->\n", "<!-- end of sections -->"


def sections() -> str:
    """Return a table with a row for each section."""
    head = "| section | what it shows | `--figure` | JSON key |\n| --- | --- | --- | --- |\n"
    return head + "".join(map(_row, SECTIONS.values()))


def _row(topic: Topic) -> str:
    figures = [*topic.figures, *([f"{SLICE}SECTION.NAME"] if topic.value_figure is not None else [])]
    return f"| {topic.title or 'first lines'} | {topic.about} | {_names(figures)} | {_names(list(topic.data))} |\n"


def _names(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def main() -> None:
    """Write the page, or report that it is not current."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(FIRST)
    _, _, after = rest.partition(LAST)
    current = f"{before}{FIRST}\n{sections()}\n{LAST}{after}"
    if "--check" in sys.argv:
        sys.exit(0 if current == text else "not current; run: python .ci/report_sections.py")
    PAGE.write_text(current, encoding="utf-8")


if __name__ == "__main__":
    main()
