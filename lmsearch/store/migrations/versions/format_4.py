"""lmsearch 0.4.0: tickets may be paused, for which an earlier version waits for ever; epochs say when they ended."""

import sqlalchemy as sa
from alembic import op

revision = "4"
down_revision = "3"


def upgrade() -> None:
    """Add the column; rows stay as they are."""
    op.add_column("lmsearch_epoch", sa.Column("ended", sa.Float(53)))
