"""`results.trials` as a table."""

from pathlib import Path

import pytest

from lmsearch.results.reading import read
from tests.results.made import make_study, some_trials


@pytest.mark.heavy
def test_the_table_has_a_row_for_each_trial_with_its_values(prepared_sqlite: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="no table was made: pip install 'lmsearch[pandas]'")
    (tmp_path / "store.db").write_bytes(prepared_sqlite.read_bytes())
    make_study(url := f"sqlite:///{tmp_path / 'store.db'}", some_trials(8))
    results = read("made", url)
    table = results.trials
    assert isinstance(table, pandas.DataFrame) and list(table.index) == list(range(8))
    for trial in results.record.trials:
        row = table.loc[trial.number]
        assert row["outcome"] == trial.outcome and row["perplexity"] == trial.perplexity
        assert {path: row[path] for path in trial.params} == trial.params
