"""lmsearch 0.3.0: a table of workers, for people and launchers."""

import sqlalchemy as sa
from alembic import op

revision = "3"
down_revision = "2"


def upgrade() -> None:
    """Add the table; rows of the others stay as they are."""
    op.create_table(
        "lmsearch_worker",
        sa.Column("study_key", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("host", sa.String(128), nullable=False),
        sa.Column("process", sa.Integer, nullable=False),
        sa.Column("device", sa.String(32), nullable=False),
        sa.Column("launcher", sa.String(32), nullable=False),
        sa.Column("joined", sa.Float(53), nullable=False),
        sa.Column("seen", sa.Float(53), nullable=False),
        sa.Column("ended", sa.Float(53)),
        sa.Column("exit_code", sa.Integer),
        sa.Column("reason", sa.String(32)),
        sa.Column("sentence", sa.Text),
    )
