"""What lmsearch 0.1.0 wrote, in whichever of its shapes: its stores have no version."""

revision = "1"
down_revision = None


def upgrade() -> None:
    """Change nothing: a store without a version is taken for this one."""
