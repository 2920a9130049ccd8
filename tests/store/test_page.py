"""What docs/store.md says of the tables is what they are."""

import re
from pathlib import Path

import pytest
import sqlalchemy as sa

from lmsearch.store.tables import EPOCH, TICKET, WORKER
from lmsearch.store.url import parse_url
from tests.results.made import make_study, some_trials

PAGE = (Path(__file__).parents[2] / "docs/store.md").read_text()


@pytest.mark.parametrize("table", [TICKET, EPOCH, WORKER], ids=lambda table: table.name)
def test_each_column_stands_on_the_page_with_its_type(table: sa.Table) -> None:
    (part,) = re.findall(rf"^`{table.name}`, one row .*?\n\n(.*?)\n\n", PAGE, re.DOTALL | re.MULTILINE)
    columns: list[tuple[str, str]] = []
    for cell, kinds in re.findall(r"^\| (`[^|]*) \| ([^|]*) \|", part, re.MULTILINE):
        names, types = re.findall(r"`(\w+)`", cell), kinds.split(", ")
        columns += zip(names, types if len(types) == len(names) else types * len(names), strict=True)
    there = {column.name: str(column.type) for column in table.columns}
    assert sorted(name for name, _ in columns) == sorted(there)
    for name, kind in columns:
        assert there[name].startswith(kind), name


def test_the_pages_query_is_answered(storage_url: str) -> None:
    trials = some_trials(5)
    make_study(storage_url, trials, name="default")
    make_study(storage_url, some_trials(3), name="another")
    (query,) = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
    engine = sa.create_engine(parse_url(storage_url))
    with engine.connect() as connection:
        rows = connection.execute(sa.text(query)).all()
    engine.dispose()
    assert sorted(row.number for row in rows) == list(range(5))
    assert [row.best_nats for row in rows] == sorted(row.best_nats for row in rows)
    for row in rows:
        curve = trials[row.number].perplexities
        assert (row.epochs, row.seconds) == (len(curve), 10.0)
