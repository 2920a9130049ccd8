"""The report of a study: is it working, what has it learned, can the winner be believed."""

import csv
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmsearch.errors import NothingToShowError
from lmsearch.escapes import cell
from lmsearch.report.figures import MOST_DRAWN, make_figure
from lmsearch.report.page import Plot, Section, Table, render_page
from lmsearch.results.advice import (
    Command,
    Edge,
    budget_sentences,
    confirm_words,
    confirmation_sentence,
    edge_line,
    edge_sentence,
    edges,
    pruning_sentences,
    time_sentences,
    verdict,
)
from lmsearch.results.best import confirmation_document, source_commit, versions
from lmsearch.results.documents import trial_document
from lmsearch.results.reading import Results
from lmsearch.spelling import spell_value
from lmsearch.store.records import OUTCOMES

_SHOWN_TRIALS = 20


def write_report(results: Results, command: Command) -> str:
    """Return a study's report as HTML; raises `StudyError` for a confirmation, which is part of its study's report."""
    results.record.info.require_search()
    sections = [
        _verdict(results, command),
        _confirmation(results, command),
        _progress(results),
        _what_matters(results),
        _ranges(results, command),
        _budget(results, command),
        _cost(results),
        _time(results),
        _trouble(results),
        _trials(results),
        _provenance(results, command),
    ]
    return render_page(f"lmsearch: {results.name}", sections)


def write_figure(results: Results, name: str) -> str:
    """Return one figure of a study as HTML; raises `LmsearchError` for an unknown name, or without data for it."""
    figure = make_figure(results, name)
    section = Section(id="figure", plots=[Plot(name=name, figure=figure, width=_width(results, name))])
    return render_page(f"{results.name}: {name}", [section])


def next_commands(results: Results) -> list[list[str]]:
    """List the commands that a person may want next, most useful first."""
    name = results.name
    found: list[list[str]] = []
    if results.record.done < results.record.total:
        found.append(["lmsearch", "worker", name])
    if results.winner is None:
        return found
    found += [] if (words := confirm_next(results)) is None else [words]
    if results.confirmation is not None and results.confirmation.verdict == "none":
        return found
    changes = [word for e in edges(results.record) if e.wider is not None for word in ("--set", _change(e))]
    if changes:
        found.append(["lmsearch", "extend", name, *changes])
    found.append(["lmsearch", "train", f"runs/{name}/best-config.json", "--seeds", "3", "--name", f"{name}-final"])
    found.append(["lmsearch", "test", name])
    return found


def confirm_next(results: Results) -> list[str] | None:
    """Return the command that helps to decide whether the winner is real; None where there is a winner."""
    again = results.confirmation
    if again is None:
        return confirm_words(results.name)
    top, seeds = again.top, again.asked
    if again.done == again.total:
        if again.verdict not in ("tie", "none"):
            return None
        top, seeds = (2 * top, seeds) if again.verdict == "none" else (top, 2 * seeds)
    return ["lmsearch", "confirm", results.name, "--top", str(top), "--seeds", str(seeds)]


def _change(edge: Edge) -> str:
    return f"{edge.path}.{edge.end}={spell_value(edge.wider)}"


def _verdict(results: Results, command: Command) -> Section:
    winner, record = results.winner, results.record
    tables = []
    if winner is not None:
        rows = [(path, spell_value(winner.params[path])) for path in record.info.spec.open if path in winner.params]
        tables.append(Table(title="the best configuration", head=("searched value", "best"), rows=rows))
    counts = ", ".join(f"{record.count(outcome)} {outcome}" for outcome in OUTCOMES if record.count(outcome))
    words = [*(f"About the text: {remark}." for remark in record.info.remarks), *verdict(results)]
    words += [f"{record.done} of {record.total} trials have ended: {counts or 'none has started'}."]
    words += [edge_sentence(edge) + "." for edge in edges(record)]
    following = "\n".join(command(words) for words in next_commands(results))
    return Section(id="verdict", words=words, tables=tables, code=[f"# what to try next\n{following}"])


def _confirmation(results: Results, command: Command) -> Section:
    found = results.confirmation
    title = "Is the winner real?"
    if found is None:
        words = [
            "Not confirmed yet. The best of many trials is usually also the luckiest: its perplexity is one training "
            "with one seed. This command trains the three best again, with three fresh seeds each, and compares them "
            "seed by seed:"
        ]
        return Section(
            id="confirmation",
            title=title,
            words=words,
            code=[command(confirm_words(results.name))],
            tables=_looks(results),
        )
    rows = []
    differences = [None, *(found.comparison.differences if found.comparison else ())]
    for rank, leader in enumerate(found.leaders):
        difference = differences[rank] if rank < len(differences) else None
        rows.append(
            (
                leader.trial.number,
                f"{leader.trial.perplexity:.2f}",
                f"{leader.mean:.2f}" if leader.perplexities else "lost",
                f"{leader.interval.low:.2f} to {leader.interval.high:.2f}" if leader.interval else "",
                f"{difference.mean:+.2f} ({difference.low:+.2f} to {difference.high:+.2f})" if difference else "",
                ", ".join(f"{seed}: {value:.2f}" for seed, value in leader.perplexities.items())
                + "".join(f", {seed}: {outcome}" for seed, outcome in leader.lost.items()),
            )
        )
    head = ("trial", "in the search", "mean", "95 % interval", "worse than the first by", "by seed")
    words = [
        confirmation_sentence(found),
        "The interval of a mean is that leader's own; the first of several equals is a little lucky here too. "
        "The differences are paired by seed. Their intervals hold together at 95 %, even if more seeds are requested "
        "later. An interval that reaches zero or below means a tie.",
        "The test split was not read for this. Evaluate on it once, at the very end, with:",
    ]
    return Section(
        id="confirmation",
        title=title,
        words=words,
        code=[command(["lmsearch", "test", results.name])],
        plots=_plots(results, {"confirmation": ""}),
        tables=[Table(head=head, rows=rows), *_looks(results)],
    )


def _looks(results: Results) -> list[Table]:
    if not results.looks:
        return [Table(title="test evaluations", head=("none",), rows=())]
    rows = [(look["when"], f"{look['perplexity']:.2f}", f"{look['tokens']:,}") for look in results.looks]
    return [Table(title="test evaluations", head=("when", "test perplexity", "tokens"), rows=rows)]


def _progress(results: Results) -> Section:
    captions = {
        "history": "Every trial in the order of its start; values beyond the axis are drawn at its upper edge.",
        "curves": "Learning curves: the ten best complete trials in colour, pruned ones in grey.",
        "pruning": "Would pruning have stopped the winner?",
    }
    return Section(
        id="progress",
        title="What happened",
        words=[*_sampled(results), *_repeated(results), *pruning_sentences(results)],
        plots=_plots(results, captions),
    )


def _sampled(results: Results) -> list[str]:
    """Say so where the figures do not draw every trial."""
    count = len(results.record.trials)
    if count <= MOST_DRAWN:
        return []
    return [
        f"Of {count:,} trials each figure draws a fixed sample: the best ones, and others at even distances. All "
        "trials are used for what is computed, and all are in the data behind this page."
    ]


def _repeated(results: Results) -> list[str]:
    """Say how many trials repeat an earlier one's values: with one seed they give the same perplexity, bit for bit."""
    keys = [
        tuple(sorted(trial.params.items()))
        for trial in results.record.trials
        if trial.outcome in ("complete", "pruned") and trial.params
    ]
    repeated = len(keys) - len(set(keys))
    if not repeated:
        return []
    return [
        f"{repeated} of {len(keys)} trials repeat the values of another, and so its perplexity: they gave no new "
        "information. The space has few points: widen it, or stop here."
    ]


def _what_matters(results: Results) -> Section:
    captions = {
        "importance": "How much of the differences between trials each searched value explains.",
        "parallel": "Each complete trial is a line through its values: the ten best in colour.",
        "contour": "The two searched numbers that matter most; smoothed, and blank where no trial is near.",
    }
    return Section(
        id="what-matters",
        title="Which hyperparameters matter",
        plots=_plots(results, captions),
        words=[] if results.importances else ["Too few trials are complete to say."],
    )


def _ranges(results: Results, command: Command) -> Section:
    found = edges(results.record)
    words = [edge_sentence(edge) + "." for edge in found] or ["The best trials do not crowd an end of any range."]
    code = [
        f"# the changed line\n{edge_line(results.record, edge)}\n"
        + command(["lmsearch", "extend", results.name, "--set", _change(edge)])
        for edge in found
        if edge.wider is not None
    ]
    slices = {f"slice-{path}": "" for path in results.record.info.spec.open}
    return Section(
        id="ranges", title="Is the range right?", words=words, code=code, plots=_plots(results, slices), small=True
    )


def _budget(results: Results, command: Command) -> Section:
    run = ["lmsearch", "run", f"runs/{results.name}/study.toml", "--name", results.name, "--sampler", "random"]
    words = list(budget_sentences(results.record, lambda more: command([*run, "--more", str(more)])))
    captions = {
        "budget": "The best perplexity against the number of trials. The band is for random trials only, up to half of "
        "those that ended.",
        "samplers": "Perplexity of each sampler's complete trials.",
    }
    return Section(id="budget", title="Was the search worth it?", words=words, plots=_plots(results, captions))


def _cost(results: Results) -> Section:
    captions = {
        "by-parameters": "Perplexity against size. Pareto frontier: no smaller model is better.",
        "by-seconds": "Perplexity against training time. Pareto frontier: no faster training is better.",
    }
    return Section(id="cost", title="What a better model costs", plots=_plots(results, captions), small=True)


def _time(results: Results) -> Section:
    return Section(
        id="time",
        title="Where the time went",
        words=list(time_sentences(results.record)),
        plots=_plots(results, {"timeline": ""}),
    )


def _trouble(results: Results) -> Section:
    groups: dict[tuple[str, str], list[int]] = {}
    for trial in results.record.trials:
        if trial.outcome in ("failed", "diverged", "infeasible"):
            groups.setdefault((trial.outcome, trial.reason), []).append(trial.number)
    rows = [
        (outcome, reason if reason != outcome else "", len(numbers), ", ".join(str(number) for number in numbers))
        for (outcome, reason), numbers in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
    words = [] if rows else ["No trial failed, diverged or ran out of memory."]
    tables = [Table(head=("outcome", "reason", "trials", "which"), rows=rows)] if rows else []
    return Section(id="trouble", title="What went wrong", words=words, tables=tables)


def _trials(results: Results) -> Section:
    paths = list(results.record.info.spec.open)
    complete = sorted((t for t in results.record.trials if t.outcome == "complete"), key=lambda t: t.perplexity)
    rows = [
        (t.number, t.by, f"{t.perplexity:.2f}", t.best_epoch, *(spell_value(t.params.get(path, "")) for path in paths))
        for t in complete[:_SHOWN_TRIALS]
    ]
    title = f"the {len(rows)} best complete trials"
    tables = [Table(title=title, head=("trial", "by", "perplexity", "epoch", *paths), rows=rows)]
    quote = results.winner.sample if results.winner is not None else ""
    words = ["Text generated by the best model:"] if quote else []
    return Section(id="trials", title="The best trials", words=words, quote=quote, tables=tables)


def _provenance(results: Results, command: Command) -> Section:
    info = results.record.info
    rows = [
        ("corpus", f"{info.corpus} (fingerprint {info.fingerprint})"),
        ("vocabulary", f"{info.vocabulary_size:,} words"),
        ("study key", info.ref.key),
        *versions().items(),
        ("commit", source_commit() or "unknown"),
        ("made with", command(["lmsearch", "report", results.name])),
    ]
    return Section(
        id="provenance",
        title="The study file and the origin of this report",
        code=[info.spec.text_from(Path("runs") / results.name)],
        tables=[Table(head=("what", "which"), rows=rows)],
    )


def _plots(results: Results, captions: dict[str, str]) -> list[Plot]:
    """Make those figures that the study has something for."""
    plots = []
    for name, caption in captions.items():
        try:
            figure = make_figure(results, name)
        except NothingToShowError:
            continue
        plots.append(Plot(name=name, caption=caption, figure=figure, width=_width(results, name)))
    return plots


def _width(results: Results, name: str) -> int:
    return 110 * (len(results.record.info.spec.open) + 1) if name == "parallel" else 0


def document(results: Results) -> dict[str, Any]:
    """Return all that a report is made from as one document of plain values."""
    again = results.confirmation
    return {
        "study": results.name,
        "total": results.record.total,
        "done": results.record.done,
        "verdict": verdict(results),
        "remarks": list(results.record.info.remarks),
        "best": None if results.winner is None else results.winner.number,
        "confirmation": None
        if again is None
        else {"total": again.total, "done": again.done, **confirmation_document(again)},
        "edges": [asdict(edge) for edge in edges(results.record)],
        "importances": results.importances,
        "looks": list(results.looks),
        "trials": [trial_document(trial) for trial in results.record.trials],
    }


def epochs_csv(results: Results) -> str:
    """Return all that a report is made from as one table, a row for each epoch of each trial."""
    paths = list(results.record.info.spec.open)
    own = ("trial", "outcome", "by", "parameters", "reason")
    figures = ("epoch", "perplexity", "train_loss", "valid_loss", "seconds", "tokens", "learning_rate")
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow([*own, *paths, *figures])
    for trial in results.record.trials:
        shared = [trial.number, trial.outcome, trial.by, trial.parameters or "", trial.reason]
        shared += [trial.params.get(path, "") for path in paths]
        rows = [
            [row.epoch, trial.curve.get(row.epoch, ""), *(getattr(row, name) for name in figures[2:])]
            for row in trial.epochs
        ]
        for row in rows or [[""] * len(figures)]:
            writer.writerow(map(cell, [*shared, *row]))
    return output.getvalue()
