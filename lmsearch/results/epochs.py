"""All that is known of a study's trials as one table, a row for each epoch."""

import csv
import io
from collections.abc import Iterable
from typing import Any

from lmsearch.escapes import cell
from lmsearch.results.reading import Results
from lmsearch.store.records import TrialRecord

_OWN = ("trial", "outcome", "by", "parameters", "reason")
_FIGURES = ("epoch", "perplexity", "train_loss", "valid_loss", "seconds", "tokens", "learning_rate")


def epoch_table(results: Results, trials: Iterable[TrialRecord] | None = None) -> tuple[list[str], list[list[Any]]]:
    """Return the columns' names and the rows, with None for what is not known; a trial without an epoch is one row."""
    paths = list(results.record.info.spec.open)
    rows = []
    for trial in results.record.trials if trials is None else trials:
        own = [trial.number, trial.outcome, trial.by, trial.parameters, trial.reason]
        own += [trial.params.get(path) for path in paths]
        rows += [
            [*own, row.epoch, trial.curve.get(row.epoch), *(getattr(row, name) for name in _FIGURES[2:])]
            for row in trial.epochs
        ] or [[*own, *([None] * len(_FIGURES))]]
    return [*_OWN, *paths, *_FIGURES], rows


def epochs_csv(results: Results, trials: Iterable[TrialRecord] | None = None) -> str:
    """Return that table as CSV."""
    columns, rows = epoch_table(results, trials)
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(["" if value is None else cell(value) for value in row])
    return output.getvalue()
