"""The first lines: the best configuration, how certain it is, what to try next."""

from lmsearch.report.page import Content, Table
from lmsearch.report.topic import Topic
from lmsearch.results.commands import Command, next_steps
from lmsearch.results.progress import count_line
from lmsearch.results.ranges import edge_sentence, edges
from lmsearch.results.reading import Results
from lmsearch.results.verdict import verdict
from lmsearch.spelling import spell_value
from lmsearch.store.records import OUTCOMES


def _write(results: Results, command: Command) -> Content:
    winner, record = results.winner, results.record
    tables = []
    if winner is not None:
        rows = [(path, spell_value(winner.params[path])) for path in record.info.spec.open if path in winner.params]
        tables.append(Table(title="the best configuration", head=("searched value", "best"), rows=rows))
    if record.info.is_plain:
        note = "Another program made this study with Optuna; what is called perplexity here is the value it minimises."
        return Content(words=[note, f"{count_line(record)}."], tables=tables)
    counts = ", ".join(f"{record.count(outcome)} {outcome}" for outcome in OUTCOMES if record.count(outcome))
    words = [*(f"About the text: {remark}." for remark in record.info.remarks), *verdict(results)]
    words += [f"{record.done} of {record.total} trials have ended: {counts or 'none has started'}."]
    words += [edge_sentence(edge) + "." for edge in edges(record)]
    following = [f"{command(step.words)}    # {step.why}" for step in next_steps(results)]
    return Content(words=words, tables=tables, code=["\n".join(following)] if following else [])


TOPIC = Topic(
    about="The best configuration, how certain it is, and what to try next.",
    write=_write,
    of_any=True,
    data={
        "verdict": lambda results: [] if results.record.info.is_plain else verdict(results),
        "remarks": lambda results: list(results.record.info.remarks),
        "best": lambda results: None if results.winner is None else results.winner.number,
    },
)
