"""The topics of the report: a module each, gathered in `SECTIONS`.

Page, `--figure`, `--format json` and the list in docs/reading-a-report.md are all made from `SECTIONS`.
"""

from lmsearch.report.sections import (
    budget,
    confirmation,
    cost,
    importance,
    progress,
    provenance,
    ranges,
    timing,
    trials,
    trouble,
    verdict,
)
from lmsearch.report.topic import Topic
from lmsearch.results.reading import Results

SECTIONS: dict[str, Topic] = {
    "verdict": verdict.TOPIC,
    "confirmation": confirmation.TOPIC,
    "importance": importance.TOPIC,
    "ranges": ranges.TOPIC,
    "budget": budget.TOPIC,
    "trials": trials.TOPIC,
    "progress": progress.TOPIC,
    "cost": cost.TOPIC,
    "timing": timing.TOPIC,
    "trouble": trouble.TOPIC,
    "provenance": provenance.TOPIC,
}
"""The topics in the order of the page, by the name of the section there."""


def topics_of(results: Results) -> dict[str, Topic]:
    """Return the topics that a study has, by name: fewer for one that another program made."""
    return {name: topic for name, topic in SECTIONS.items() if topic.of_any or not results.record.info.is_plain}
