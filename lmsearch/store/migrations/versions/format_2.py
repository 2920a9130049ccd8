"""lmsearch 0.2.0: columns that early stores lack, a table of formats, and studies that say who wrote them."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"

_TICKET = (
    sa.Column("study_key", sa.String(32), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("study_id", sa.Integer, nullable=False),
    sa.Column("batch", sa.String(32), nullable=False),
    sa.Column("origin", sa.String(16), nullable=False),
    sa.Column("sampler", sa.String(16), nullable=False),
    sa.Column("pruner", sa.String(16), nullable=False),
    sa.Column("fixed", sa.JSON, nullable=False),
    sa.Column("retry_of", sa.Integer),
    sa.Column("state", sa.String(8), nullable=False),
    sa.Column("trial_id", sa.Integer),
    sa.Column("trial_number", sa.Integer),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("checkpoint", sa.Text),
    sa.Column("deaths", sa.Integer, nullable=False, server_default="0"),
    sa.Column("memory_failures", sa.Integer, nullable=False, server_default="0"),
    sa.Column("stalls", sa.Integer, nullable=False, server_default="0"),
    sa.Column("peak_memory", sa.BigInteger),
    sa.Column("lease", sa.Integer, nullable=False),
    sa.Column("worker", sa.String(128)),
    sa.Column("host", sa.String(128)),
    sa.Column("process", sa.Integer),
    sa.Column("device", sa.String(32)),
    sa.Column("boot", sa.String(64)),
    sa.Column("expires", sa.Float(53)),
    sa.Column("seen", sa.Float(53)),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("tokens_per_second", sa.Float(53)),
)
_EPOCH = (
    sa.Column("study_key", sa.String(32), primary_key=True),
    sa.Column("trial_number", sa.Integer, primary_key=True),
    sa.Column("epoch", sa.Integer, primary_key=True),
    sa.Column("study_id", sa.Integer, nullable=False),
    sa.Column("trial_id", sa.Integer, nullable=False),
    sa.Column("train_loss", sa.Float(53)),
    sa.Column("valid_loss", sa.Float(53)),
    sa.Column("seconds", sa.Float(53), nullable=False),
    sa.Column("tokens", sa.Integer, nullable=False),
    sa.Column("learning_rate", sa.Float(53), nullable=False),
)
_USER, _SYSTEM = (
    sa.table(f"study_{kind}_attributes", *map(sa.column, ("study_id", "key", "value_json")))
    for kind in ("user", "system")
)


def upgrade() -> None:
    """Add what is missing; rows stay as they are."""
    _complete("lmsearch_ticket", _TICKET)
    _complete("lmsearch_epoch", _EPOCH)
    op.create_table(
        "lmsearch_format",
        sa.Column("format", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("lmsearch", sa.String(40), nullable=False),
    )
    _lift_studies()


def _complete(name: str, columns: tuple[sa.Column[Any], ...]) -> None:
    inspector = sa.inspect(op.get_bind())
    if not inspector.has_table(name):  # its making was cut short
        op.create_table(name, *columns)
        return
    there = {column["name"] for column in inspector.get_columns(name)}
    for column in columns:
        if column.name not in there:
            op.add_column(name, column)


def _lift_studies() -> None:
    """Return what is kept of each study a format; the first commits kept it as a system attribute, without an id."""
    connection = op.get_bind()
    lifted: set[int] = set()
    for table in (_USER, _SYSTEM):  # where a study has both, the later one holds
        for study, text in connection.execute(
            sa.select(table.c.study_id, table.c.value_json).where(table.c.key == "lmsearch")
        ).all():
            kept = _read(text)
            if study in lifted or kept is None or "format" in kept:
                continue  # done, another program's, or unreadable: whoever opens the study says so
            lifted.add(study)
            kept = {"study_id": study, **kept, "format": 2, "lmsearch": "0.1.0", "defaults": "0.1.0"}
            connection.execute(sa.delete(table).where(table.c.study_id == study, table.c.key == "lmsearch"))
            connection.execute(sa.insert(_USER).values(study_id=study, key="lmsearch", value_json=json.dumps(kept)))


def _read(text: str) -> dict[str, Any] | None:
    try:
        kept = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return kept if isinstance(kept, dict) else None
