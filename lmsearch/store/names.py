"""The names of a store's studies, read without loading Optuna: for a shell that completes them."""

from pathlib import Path

import sqlalchemy as sa

from lmsearch.errors import LmsearchError
from lmsearch.store.url import parse_url

_SECONDS = 2  # of waiting, at the most: a person has pressed a key


def study_names(storage: str) -> list[str]:
    """List the names of the studies in a store; nothing where it cannot be read at once."""
    try:
        url = parse_url(storage)
        if url.get_backend_name() == "sqlite":
            if not Path(url.database or "").is_file():
                return []
            engine = sa.create_engine(url, connect_args={"timeout": _SECONDS})
        else:
            engine = sa.create_engine(url, connect_args={"connect_timeout": _SECONDS})
        with engine.connect() as connection:
            return [
                str(name) for (name,) in connection.execute(sa.text("SELECT study_name FROM studies ORDER BY study_id"))
            ]
    except (LmsearchError, sa.exc.SQLAlchemyError):
        return []
