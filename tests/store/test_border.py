"""What a person names as a store is judged at the border: one sentence for what no waiting makes right."""

import json
import shutil
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from lmsearch.errors import LmsearchError, StoreError, StoreGoneError
from lmsearch.store import url as urls
from lmsearch.store.opening import creating, open_storage
from lmsearch.store.outages import WaitUpTo
from lmsearch.store.records import create_study, find_study
from lmsearch.store.url import explain, parse_url
from tests.conftest import Cli, create_database, new_name
from tests.factories import TINY_STUDY, make_spec, write_corpus


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("postgresql://me:p@ss@db/lm", "write %40 for @"),
        ("postgresql://me:p@ss/w:r?d@db/lm", "write %40 for @"),
        ("postgresql://me:se@cret@db:5432/lm?sslmode=require", "write %40 for @"),
        ("postgresql://me@db/lm?prepare_threshold=0", "has an option 'prepare_threshold'"),
        ("postgresql://me@db/lm?row_factory=x", "has an option 'row_factory'"),
        ("postgresql://me@db/lm?ssl_mode=require", "did you mean sslmode?"),
        ("sqlite:///q?x=1.db", "write %3F for a question mark"),
        ("sqlite:///~nobody-of-that-name/x.db", "is not a path: Could not determine home"),
        ("sqlite:///a%00b.db", "has a byte of zero"),
        ("sqlite:///bad\udcff.db", "is not a storage URL"),
        ("redis://x", "is not supported"),
    ],
)
def test_a_url_that_cannot_be_is_reported_without_any_part_of_a_password(text: str, said: str) -> None:
    with pytest.raises(LmsearchError) as refused:
        parse_url(text)
    assert said in str(refused.value)
    for secret in ("p@ss", "ss@", "ss/", "w:r", "cret"):
        assert secret not in str(refused.value)


def test_the_drivers_that_optunas_pages_name_are_taken() -> None:
    assert parse_url("postgresql+psycopg2://me@db/lm") == parse_url("postgresql://me@db/lm")
    assert parse_url("sqlite+pysqlite:///x.db") == parse_url("sqlite:///x.db")
    assert parse_url("postgresql://me:a%40b@db/lm?options=-csearch_path%3Dteam").password == "a@b"


def test_a_loop_of_links_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "a.db").symlink_to(tmp_path / "b.db")
    (tmp_path / "b.db").symlink_to(tmp_path / "a.db")
    with pytest.raises(LmsearchError, match="is not a path: Symlink loop"):
        parse_url(f"sqlite:///{tmp_path}/a.db")


def test_a_short_password_is_hidden_as_a_word_and_not_within_others() -> None:
    error = RuntimeError('role "x" already exists; x')
    assert explain(parse_url("postgresql://me:x@db/lm"), error).endswith('role "***" already exists; ***')


@pytest.mark.parametrize(
    "query",
    ["sslmode=requir", "service=no-such-service", "port=99999"],
)
def test_what_no_waiting_makes_right_is_refused_at_once(query: str) -> None:
    began = time.monotonic()
    with pytest.raises(StoreError):
        open_storage(parse_url(f"postgresql://me@127.0.0.1:1/lm?{query}"), create=True, patience=WaitUpTo(60.0))
    assert time.monotonic() - began < 5


def test_a_password_that_is_missing_is_refused_at_once_and_a_server_that_is_away_is_waited_for(
    postgres: str, tmp_path: Path
) -> None:
    with socket.socket() as listener:  # a server that asks for a password in clear, as libpq speaks to it
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"postgresql://me@127.0.0.1:{listener.getsockname()[1]}/lm?sslmode=disable&gssencmode=disable"

        def answer() -> None:
            while True:
                try:
                    taken, _ = listener.accept()
                except OSError:
                    return
                with taken:
                    taken.recv(1000)
                    taken.sendall(b"R\0\0\0\x08\0\0\0\x03")  # AuthenticationCleartextPassword
                    taken.recv(1000)

        threading.Thread(target=answer, daemon=True).start()
        began = time.monotonic()
        with pytest.raises(StoreError, match="no password supplied"):
            open_storage(parse_url(url), create=True, patience=WaitUpTo(60.0))
        assert time.monotonic() - began < 10
    with pytest.raises(StoreGoneError):
        open_storage(parse_url("postgresql://me@127.0.0.1:1/lm"), create=True, patience=WaitUpTo(1.0))


# Databases of others.


def dump(url: str) -> list[tuple[str, ...]]:
    """Give all tables and columns of a database."""
    engine = sa.create_engine(parse_url(url))
    try:
        inspector = sa.inspect(engine)
        return [
            (table, *sorted(column["name"] for column in inspector.get_columns(table)))
            for table in sorted(inspector.get_table_names())
        ]
    finally:
        engine.dispose()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE trials (id integer)"],
        ["CREATE TABLE studies (name text)", "CREATE TABLE users (id integer)"],
        ["CREATE TABLE alembic_version (version_num varchar(32))", "INSERT INTO alembic_version VALUES ('0f2a')"],
        ["CREATE TABLE trial_params (trial text, name text)"],
        ["CREATE TABLE patients (id integer)", "CREATE VIEW trials AS SELECT id FROM patients"],
        ["CREATE TABLE trials (trial_id integer primary key)", "CREATE TABLE studies (study_id integer primary key)"],
    ],
)
def test_a_database_of_another_program_is_looked_at_and_left_as_it_is(
    kind: str, statements: list[str], tmp_path: Path, cli: Cli, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/other.db" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    engine = sa.create_engine(parse_url(url))
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()
    before = dump(url)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for options in ({"create": True}, {}, {"write": True}):
        with pytest.raises(StoreError, match="belongs to another program"):
            open_storage(parse_url(url), **options)  # type: ignore[arg-type]
    # Not a byte of its file, no lock and no log beside it.
    assert kind != "sqlite" or {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert dump(url) == before


def test_tables_of_other_names_are_no_hindrance(storage_url: str, postgres_url: str, tmp_path: Path) -> None:
    with psycopg.connect(postgres_url.replace("postgresql+psycopg", "postgresql")) as connection:
        connection.execute("CREATE TABLE experiments (id integer)")
    open_storage(parse_url(postgres_url), create=True).engine.dispose()
    assert "experiments" in [table for table, *_ in dump(postgres_url)]


def test_databases_of_other_encodings_work(postgres: str, tmp_path: Path) -> None:
    for encoding in ("SQL_ASCII", "LATIN1"):
        name = new_name()
        create_database(postgres, name, f"template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'")
        opened = open_storage(parse_url(postgres.format(name)), create=True)
        write_corpus(tmp_path / "corpus")
        called = "naïve"
        create_study(opened, called, make_spec(tmp_path, TINY_STUDY), str(tmp_path), "text", "ab", 9)
        found = find_study(opened, called)
        if encoding == "LATIN1":
            with pytest.raises(StoreError, match="has no equivalent in encoding"):
                create_study(opened, "日本", make_spec(tmp_path, TINY_STUDY), str(tmp_path), "text", "ab", 9)
        assert found is not None and found.ref.name == called
        opened.engine.dispose()


# The lock under which studies are made.


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_wait_for_another_creator_ends_with_a_sentence(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = parse_url(f"sqlite:///{tmp_path}/store.db" if kind == "sqlite" else request.getfixturevalue("postgres_url"))
    storage = open_storage(url, create=True, patience=WaitUpTo(1.0))
    began = time.monotonic()
    refused = pytest.raises(StoreGoneError, match="another process is creating")
    with urls.creation_lock(url, WaitUpTo(1.0)), refused, creating(storage):
        pass
    assert 1 <= time.monotonic() - began < 10
    with creating(storage):  # and it is free again
        pass
    storage.engine.dispose()


def test_a_folder_that_takes_no_file_is_reported_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(StoreError, match=r"/proc/x.db.lock: No such file|Permission denied"):
        open_storage(parse_url("sqlite:////proc/x.db"), create=True, patience=WaitUpTo(60.0))
    assert time.monotonic() - began < 5


# A pooler.


@pytest.fixture
def pooled(postgres: str, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Start PgBouncer in transaction mode; give the URL through it and the one without it."""
    if shutil.which("pgbouncer") is None:
        pytest.skip("no pooler was tried: there is no pgbouncer; apt-get install pgbouncer brings it")
    name = new_name()
    create_database(postgres, name, "template1")
    sockets = postgres.partition("host=")[2]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tmp_path.chmod(0o755)
    (tmp_path / "users.txt").write_text('"postgres" ""\n')
    (tmp_path / "pgbouncer.ini").write_text(
        f"[databases]\n{name} = host={sockets} dbname={name} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {port}\nunix_socket_dir =\nauth_type = any\nauth_file = {tmp_path}/users.txt\n"
        "pool_mode = transaction\ndefault_pool_size = 3\nmax_client_conn = 100\n"
    )
    for path in (tmp_path / "pgbouncer.ini", tmp_path / "users.txt", *tmp_path.parents):
        if "pytest" in str(path):
            path.chmod(path.stat().st_mode | 0o055)
    log = (tmp_path / "pgbouncer.log").open("wb")
    words = ["pgbouncer", "-u", "pgserver", str(tmp_path / "pgbouncer.ini")]
    with log, subprocess.Popen(words, stdout=log, stderr=log) as process:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline and process.poll() is None, (tmp_path / "pgbouncer.log").read_text()
                time.sleep(0.1)
        yield f"postgresql://postgres@127.0.0.1:{port}/{name}", postgres.format(name)
        process.terminate()


@pytest.mark.slow
def test_a_search_works_through_a_pooler_that_gives_a_connection_per_transaction(
    pooled: tuple[str, str], tmp_path: Path, cli: Cli
) -> None:
    """Prepared statements, settings and locks of a session would go to another one's server connection."""
    through, past = pooled
    write_corpus(tmp_path / "corpus")
    (tmp_path / "tiny.toml").write_text(TINY_STUDY)
    for number, more in enumerate(([], ["--more", "3"])):
        ran = cli("run", "tiny.toml", "--workers", "4", "--json", "--storage", through, *more)
        assert ran.returncode == 0, ran.stderr
        assert json.loads(ran.stdout)["counts"]["complete"] == 3 * (number + 1)
    with psycopg.connect(past) as connection:
        held = connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone()
        prepared = connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()
    assert held == (0,) and prepared == (0,)
    status = cli("status", "tiny", "--storage", through)
    assert "6 of 6 trials, 6 complete" in status.stdout


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_a_locked_file_is_waited_for_and_not_taken_for_a_read_only_one(tmp_path: Path, journal: str) -> None:
    path = tmp_path / "x.db"
    open_storage(parse_url(f"sqlite:///{path}"), create=True).engine.dispose()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute(f"PRAGMA journal_mode={journal}")
    holder.execute("PRAGMA locking_mode=EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    holder.execute("CREATE TABLE newer (id integer)")
    with pytest.raises(StoreGoneError, match="locked"):
        open_storage(parse_url(f"sqlite:///{path}"), patience=WaitUpTo(0.5))
    holder.close()
    open_storage(parse_url(f"sqlite:///{path}")).engine.dispose()


def test_a_store_that_is_only_a_lock_file_yet_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "x.db.lock").touch()
    with pytest.raises(StoreError, match="there is no store"):
        open_storage(parse_url(f"sqlite:///{tmp_path}/x.db"))
    with sqlite3.connect(tmp_path / "x.db") as empty:
        empty.execute("PRAGMA user_version = 1")
    with pytest.raises(StoreError, match="was not made by lmsearch"):
        open_storage(parse_url(f"sqlite:///{tmp_path}/x.db"))
