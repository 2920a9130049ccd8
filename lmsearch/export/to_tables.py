"""A study's ended trials as one table, a row for each epoch."""

from pathlib import Path
from typing import Any

from lmsearch.export.runs import Exported
from lmsearch.extras import load
from lmsearch.files import replace_file
from lmsearch.results.epochs import epoch_table, epochs_csv
from lmsearch.store.records import TrialRecord


def export_csv(study: Exported, target: str) -> int:
    """Write the table as a CSV file; what was there is replaced."""
    replace_file(Path(target), csv_text(study))
    return len(study.runs)


def csv_text(study: Exported) -> str:
    """Return the table as CSV."""
    return epochs_csv(study.results, _ended(study))


def export_parquet(study: Exported, target: str) -> int:
    """Write the table as a Parquet file; what was there is replaced."""
    pyarrow, parquet = load("pyarrow", "parquet"), load("pyarrow.parquet", "parquet")
    columns, rows = epoch_table(study.results, _ended(study))
    table = pyarrow.table({name: _column([row[at] for row in rows]) for at, name in enumerate(columns)})
    content = pyarrow.BufferOutputStream()
    parquet.write_table(table, content)
    replace_file(Path(target), content.getvalue().to_pybytes())
    return len(study.runs)


def _ended(study: Exported) -> list[TrialRecord]:
    return [trial for trial in study.results.record.trials if not trial.is_open]


def _column(values: list[Any]) -> list[Any]:
    """Return values of one type: numbers stay numbers, choices of several kinds become text."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) <= 1:
        return values
    if kinds == {int, float}:
        return [None if value is None else float(value) for value in values]
    return [None if value is None else str(value) for value in values]
