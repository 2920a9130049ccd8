"""The first lines: the best configuration, how certain it is, what to try next."""

from lmsearch.report.page import Content, Table
from lmsearch.report.sections.progress import history
from lmsearch.report.topic import Figure, Topic
from lmsearch.results.commands import Command, next_steps
from lmsearch.results.progress import count_line
from lmsearch.results.ranges import edge_sentence, edges
from lmsearch.results.reading import Results
from lmsearch.results.timing import timing
from lmsearch.results.verdict import verdict
from lmsearch.spelling import count, spell_seconds, spell_value
from lmsearch.store.records import OUTCOMES


def _write(results: Results, command: Command) -> Content:
    winner, record = results.winner, results.record
    tables = []
    if winner is not None:
        rows = [(path, spell_value(winner.params[path])) for path in record.info.spec.open if path in winner.params]
        tables.append(Table(title="the best configuration", head=("searched value", "best"), rows=rows, numbers=(1,)))
    if record.info.is_plain:
        note = "Another program made this study with Optuna; what is called perplexity here is the value it minimises."
        return Content(words=[note, f"{count_line(record)}."], tables=tables)
    counts = ", ".join(f"{record.count(outcome)} {outcome}" for outcome in OUTCOMES if record.count(outcome))
    words = [*(f"About the text: {remark}." for remark in record.info.remarks), *verdict(results)]
    words += [f"{record.done} of {record.total} trials have ended: {counts or 'none has started'}."]
    words += [edge_sentence(edge) + "." for edge in edges(record)]
    following = [f"{command(step.words)}    # {step.why}" for step in next_steps(results)]
    return Content(
        words=words, numbers=_numbers(results), tables=tables, code=["\n".join(following)] if following else []
    )


def _numbers(results: Results) -> list[tuple[str, str]]:
    """Return the three numbers of a search: the best perplexity, how sure it is, and what the search cost."""
    winner, again, spent = results.winner, results.confirmation, timing(results.record)
    if winner is None:
        return []
    leader = None if again is None else again.winner
    found = [
        (f"{winner.perplexity:.2f}", f"best validation perplexity (trial {winner.number}, epoch {winner.best_epoch})")
    ]
    if leader is None:
        found.append(("not confirmed", "one training with one seed"))
    elif leader.interval is None:
        found.append((f"{leader.mean:.2f}", "with one fresh seed"))
    else:
        ends = f"{leader.interval.low:.2f} to {leader.interval.high:.2f}"
        found.append((ends, f"95 % interval of its mean {leader.mean:.2f} over {len(leader.perplexities)} fresh seeds"))
    if spent is not None:
        epochs = sum(len(trial.curve) for trial in results.record.trials if not trial.is_taken_over)
        cost = f"{count(spent.trials, 'trial')}, {epochs:,} epochs, {spent.tokens / 1e6:,.1f} million tokens trained"
        found.append((spell_seconds(spent.seconds), cost))
    return found


TOPIC = Topic(
    about="The best configuration, how certain it is, and what to try next.",
    write=_write,
    of_any=True,
    figures={
        "history": Figure(
            draw=history,
            title="Every trial",
            caption="Every trial in the order of its start; values beyond the axis are drawn at its upper edge. Click "
            "a point for its row in the table of trials.",
        )
    },
    data={
        "verdict": lambda results: [] if results.record.info.is_plain else verdict(results),
        "remarks": lambda results: list(results.record.info.remarks),
        "best": lambda results: None if results.winner is None else results.winner.number,
    },
)
