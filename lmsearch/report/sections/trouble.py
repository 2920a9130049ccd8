"""What went wrong."""

from dataclasses import asdict

from lmsearch.report.page import Content, Table
from lmsearch.report.topic import Topic
from lmsearch.results.commands import Command
from lmsearch.results.reading import Results
from lmsearch.results.trouble import troubles


def _write(results: Results, command: Command) -> Content:
    found = troubles(results.record)
    if not found:
        return Content()
    rows = [(one.outcome, one.reason, len(one.trials), ", ".join(map(str, one.trials))) for one in found]
    head = ("outcome", "reason", "trials", "which")
    return Content(tables=[Table(title="trials without a result", head=head, rows=rows, numbers=(2,))])


TOPIC = Topic(
    about="Failed, diverged and infeasible trials by their reason.",
    title="What went wrong",
    write=_write,
    of_any=True,
    data={"trouble": lambda results: [asdict(one) for one in troubles(results.record)]},
)
