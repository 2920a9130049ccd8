"""Real servers, folders of their own, and the conformance kit's readable assertions."""

import contextlib
import gc
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from lmsearch.store.opening import open_storage
from lmsearch.store.url import parse_url
from tests import forks
from tests.bureau import Bureau
from tests.forks import Forked, ForkServer, can_fork
from tests.servers import HASTY, Server, new_folder

pytest.register_assert_rewrite("optuna.testing.pytest_storages")

# Under nohup the tests would have it ignored by whatever they start.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever lies in tests/slow is slow: a folder is not forgotten as a marker is."""
    for item in items:
        if SLOW in item.path.parents:
            item.add_marker("slow")
        heavy = item.get_closest_marker("heavy_on")
        if heavy and isinstance(item, pytest.Function) and heavy.args[0] in item.callspec.params.values():
            item.add_marker("heavy")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where LMSEARCH_NO_SKIPS is set (in `.ci/run`), a skipped test fails the session."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("LMSEARCH_NO_SKIPS") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


SLOW = Path(__file__).parent / "slow"
CHROMIUM = Path("/usr/bin/chromium")
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Start a real PostgreSQL; give the URL of its server with `{}` for the database.

    Its database `store` holds an empty store, to make others from.
    """
    with new_folder() as folder:
        server = Server(folder / "data", folder, **HASTY)
        yield f"postgresql://postgres@/{{}}?host={folder}"
        server.close()


def create_database(url: str, name: str, template: str = "store") -> None:
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
    create_database(url, name)
    return url.format(name)


@pytest.fixture(autouse=True, scope="module")
def frozen_heap() -> None:
    """Spare the collections of garbage the modules and items that are there to stay: they took most of the time."""
    gc.freeze()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep encoded corpora out of the user's cache, and the user's settings out of the tests."""
    monkeypatch.setenv("LMSEARCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("LMSEARCH_STORAGE", raising=False)


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """Load what our processes load, once, and fork from it."""
    forks.shared.append(server := ForkServer())
    yield server
    forks.shared.remove(server)
    server.close()


@pytest.fixture
def cli(tmp_path: Path, fork_server: ForkServer) -> Iterator[Cli]:
    """Run the real command in a folder of its own, and give what it said; none outlives the test."""
    started: list[Forked | subprocess.Popen[bytes]] = []

    def run(*words: str, cwd: Path = tmp_path, **environment: str) -> "subprocess.CompletedProcess[str]":
        environ = dict(os.environ) | environment
        with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complained:
            if can_fork(environment):
                with Path(os.devnull).open("rb") as nothing:
                    files = [file.fileno() for file in (nothing, said, complained)]
                    started.append(fork_server.start(words, cwd, environ, files))
            else:
                command = [sys.executable, "-m", "lmsearch.cli.main", *words]
                started.append(
                    subprocess.Popen(
                        command, cwd=cwd, env=environ, stdin=subprocess.DEVNULL, stdout=said, stderr=complained
                    )
                )
            code = started[-1].wait(timeout=480)
            texts = []
            for file in (said, complained):
                file.seek(0)
                texts.append(io.TextIOWrapper(file, encoding="utf-8").read())
        return subprocess.CompletedProcess(["lmsearch", *words], code, *texts)

    yield run
    for process in started:
        process.kill()  # its workers see it end, and leave


def at_work(cli: Cli, study: str, **environment: str) -> list[dict[str, Any]]:
    """Give what `lmsearch status` says of the trials that run or wait; nothing before the study is there."""
    said = cli("status", study, "--json", **environment)
    print(
        f"status: exit {said.returncode}, {said.stderr[-300:]!r}, {said.stdout[-1500:]!r}"
    )  # shown where a test fails
    found: list[dict[str, Any]] = json.loads(said.stdout)["at_work"] if said.returncode == 0 else []
    return found


def started(cli: Cli, study: str, count: int = 2, **environment: str) -> list[dict[str, Any]]:
    """Give the trials at work, once so many have made a step."""
    found = [r for r in at_work(cli, study, **environment) if r["state"] == "running" and (r["step"] or r["epoch"])]
    return found if len(found) >= count else []


@pytest.fixture
def bureau(
    tmp_path: Path, storage_url: str, monkeypatch: pytest.MonkeyPatch, fork_server: ForkServer
) -> Iterator[Bureau]:
    """Give a bureau on each database in turn."""
    monkeypatch.chdir(tmp_path)  # restored at the end
    opened = Bureau(tmp_path, storage_url, trials=6)
    yield opened
    opened.close()


@pytest.fixture
def sqlite_bureau(
    tmp_path: Path, prepared_sqlite: Path, monkeypatch: pytest.MonkeyPatch, fork_server: ForkServer
) -> Iterator[Bureau]:
    """Give a bureau for what does not depend on the database."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store.db").write_bytes(prepared_sqlite.read_bytes())
    opened = Bureau(tmp_path, f"sqlite:///{tmp_path / 'store.db'}", trials=6)
    yield opened
    opened.close()


@pytest.fixture
def start_server() -> Iterator[Callable[..., Server]]:
    """Start PostgreSQL servers that a test may stop, with settings of its own."""
    with contextlib.ExitStack() as ended:

        def start(data: Path | None = None, **settings: object) -> Server:
            folder = ended.enter_context(new_folder())
            server = Server(data or folder / "data", folder, **settings)
            ended.callback(server.close)
            return server

        yield start


@pytest.fixture
def browser() -> Iterator[Any]:
    """Give a headless Chromium, Debian's, that reaches nothing but what a test opens in it."""
    if not CHROMIUM.exists():
        pytest.skip(f"no page was looked at: there is no {CHROMIUM}; apt-get install chromium brings it")
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        yield opened
        opened.close()
