"""lmsearch 0.4.0: tickets may be paused; an earlier version would wait for one for ever."""

revision = "4"
down_revision = "3"


def upgrade() -> None:
    """Change nothing but the number: a state is a text."""
