"""What a search says before it starts and after it has ended."""

from typing import TYPE_CHECKING, Any

from lmsearch.spelling import count, spell_value
from lmsearch.terminal.output import say, say_wrapped

if TYPE_CHECKING:
    from lmsearch.results.best import ResultFiles
    from lmsearch.results.commands import Command
    from lmsearch.results.reading import Results
    from lmsearch.search.start import Prepared
    from lmsearch.store.records import StudyRecord


def print_plan(prepared: "Prepared") -> None:
    """Print what a search is about to do."""
    from lmsearch.search.plan import space_points
    from lmsearch.store.tickets import list_tickets
    from lmsearch.store.url import redact

    info, corpus, spec, devices = prepared.info, prepared.corpus, prepared.info.spec, prepared.devices
    splits = [f"{len(text.tokens):,}" for text in (corpus.train, corpus.valid, corpus.test) if text is not None]
    unfinished = [ticket for ticket in list_tickets(prepared.storage, info.ref) if not ticket.is_done]
    sampler = " and ".join(sorted({ticket.by for ticket in unfinished}))
    pruner = " and ".join(sorted({ticket.pruner for ticket in unfinished}))
    say_wrapped("study    ", f"{info.ref.name} in {redact(prepared.storage.store_url, here=True)}")
    say_wrapped(
        "corpus   ",
        f"{corpus.description}: {' / '.join(splits)} tokens, {len(corpus.vocabulary):,} words",
    )
    sizes = {point.parameters for point in space_points(spec, info.vocabulary_size)}
    spread = f"{min(sizes):,}" + (f" to {max(sizes):,}" if len(sizes) > 1 else "")
    say_wrapped("model    ", f"{spread} parameters, {spec.epochs} epochs a trial")
    for number, (path, value) in enumerate(spec.open.items()):
        say_wrapped(f"{'search' if number == 0 else '':8} ", f"{path}: {value}")
    if unfinished:
        workers = f"{count(len(devices), 'worker')} ({', '.join(sorted(set(devices)))})"
        say_wrapped("by       ", f"{sampler}, pruned by {pruner}, on {workers}")


def print_found(results: "Results", files: "ResultFiles", command: "Command") -> None:
    """Print what a search found and what to do next."""
    from lmsearch.results.best import file_lines
    from lmsearch.results.commands import next_steps
    from lmsearch.results.progress import count_line

    record = results.record
    say()
    say(count_line(record))
    best = record.best
    if best is not None:
        config = record.info.spec.close(best.params, record.info.vocabulary_size)
        parameters = config.model.count_parameters(record.info.vocabulary_size)
        say(
            f"best perplexity {best.perplexity:.2f}: trial {best.number} by {best.by}, epoch {best.best_epoch}, "
            f"{parameters:,} parameters"
        )
        if best.known_perplexity is not None:
            say(f"  of the known words alone {best.known_perplexity:.2f}")
        for path, value in best.params.items():
            say(f"  {path} = {spell_value(value)}")
    _print_samplers(record)
    if record.done == record.total:
        for sentence in results.importances.sentences():
            say_wrapped("", sentence)
    if failed := record.count("failed"):
        reasons = sorted({trial.reason for trial in record.trials if trial.outcome == "failed"})
        say(f"warning: {failed} trials failed: {'; '.join(reasons)}")
    if record.done < record.total:
        return  # whoever calls says how to resume
    say("files")
    for line in file_lines(files):
        say(line)
    if files.best_config is None:
        return  # whoever calls says what went wrong
    say("report")
    say(f"  {command(['lmsearch', 'report', record.info.ref.name, '--open'])}")
    for step in next_steps(results)[:1]:
        say(f"next: {step.why}")
        say(f"  {command(step.words)}")


def _print_samplers(record: "StudyRecord") -> None:
    """Compare who proposed the trials, where several took part."""
    groups: dict[str, list[Any]] = {}
    for trial in record.trials:
        groups.setdefault(trial.by or "another program", []).append(trial)
    if len(groups) < 2:
        return
    for name, trials in groups.items():
        complete = [trial.perplexity for trial in trials if trial.outcome == "complete"]
        found = f"best {min(complete):.2f}" if complete else "none complete"
        say(f"  {name}: {count(len(trials), 'trial')}, {len(complete)} complete, {found}")
