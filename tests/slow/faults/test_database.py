"""Rows 5 to 8 of docs/reliability.md: a PostgreSQL that crashes, is cut off, goes for good, or is full."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy

from lmsearch.chaos.proxy import Mode, Proxy, server_address
from lmsearch.errors import StoreGoneError
from lmsearch.search.begin import begin
from lmsearch.search.budget import Request
from lmsearch.store.opening import open_storage
from lmsearch.store.outages import WaitUpTo
from lmsearch.store.tables import RUNNING
from lmsearch.store.tickets import list_tickets
from lmsearch.store.url import creation_lock, full_text, parse_url
from tests.bureau import Bureau, check_whole, ended, meanwhile, wait_for
from tests.conftest import Cli, create_database, new_name, started
from tests.factories import TINY_STUDY, write_study
from tests.servers import Server

StartServer = Callable[..., Server]
OpenBureau = Callable[..., Bureau]
ONCE = list(range(1, 16))  # the steps of a trial of the stub's


@pytest.fixture
def open_bureau(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenBureau]:
    monkeypatch.chdir(tmp_path)
    opened: list[Bureau] = []

    def make(url: str, trials: int) -> Bureau:
        opened.append(Bureau(tmp_path, url, trials=trials))
        return opened[-1]

    yield make
    for bureau in opened:
        bureau.close()


@pytest.fixture
def proxy(postgres: str) -> Iterator[Proxy]:
    """Give a proxy before the test server."""
    opened = Proxy(server_address(parse_url(postgres.format("postgres"))))
    yield opened
    opened.close()


@pytest.fixture
def direct(postgres: str) -> str:
    """Give the URL of a new empty store on the test server."""
    name = new_name()
    create_database(postgres, name)
    return postgres.format(name)


def through(proxy: Proxy, direct: str) -> str:
    return full_text(proxy.url(parse_url(direct)))


@pytest.mark.parametrize("seconds", [5, *(pytest.param(seconds, marks=pytest.mark.heavy) for seconds in (0, 20, 60))])
def test_row_5_a_crashed_server_costs_eight_workers_nothing_and_gives_an_idle_ninth_nothing(
    start_server: StartServer, open_bureau: OpenBureau, seconds: int
) -> None:
    """I1 to I5: no step is computed twice, though every lease ran out meanwhile."""
    server = start_server()
    bureau = open_bureau(server.url, trials=8)
    crash = threading.Thread(target=server.restart_after, args=(seconds,))
    notices: list[str] = []
    before: dict[int, object] = {}
    for snapshot in bureau.search(9, ["--lease-seconds", "5"], pause="0.5"):
        notices += snapshot.notices
        assert before.items() <= ended(snapshot.record).items()  # I1
        before = ended(snapshot.record)
        at_work = [ticket for ticket in snapshot.record.tickets if ticket.state == RUNNING and ticket.epoch]
        if len(at_work) == 8 and crash.ident is None:
            crash.start()
    crash.join()
    check_whole(bureau.record())
    assert all(steps == ONCE for steps in bureau.steps())
    assert {ticket.lease for ticket in bureau.tickets()} == {1}  # the ninth took nothing
    assert not any("died" in notice for notice in notices)
    if seconds:
        waits = [notice for notice in notices if notice.startswith("waiting for the store: the store postgresql://")]
        assert len(waits) == 1
        assert bureau.logs().count("waiting for the store") == 9  # one line each


def test_row_5_connections_that_the_server_ends_cost_nothing(
    postgres: str, direct: str, open_bureau: OpenBureau
) -> None:
    bureau = open_bureau(direct, trials=8)
    name = parse_url(direct).database
    kills = 0

    def terminate() -> None:
        nonlocal kills
        found = admin.execute(ends, [name]).fetchone()
        kills += found[0] if found else 0

    ends = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s"
    with psycopg.connect(postgres.format("postgres"), autocommit=True) as admin, meanwhile(terminate, 0.3):
        notices = [n for s in bureau.search(4, ["--lease-seconds", "5"], pause="0.1") for n in s.notices]
    assert kills > 20
    check_whole(bureau.record())
    assert all(steps == ONCE for steps in bureau.steps())
    assert not any("died" in notice for notice in notices)


def test_row_6_a_commit_whose_answer_is_lost_is_recognised_as_done(
    proxy: Proxy, direct: str, open_bureau: OpenBureau
) -> None:
    bureau = open_bureau(through(proxy, direct), trials=8)

    def cut() -> None:
        proxy.commits_to_cut = 1

    with meanwhile(cut, 0.5):  # a repeated call has time to come through
        notices = [n for s in bureau.search(4, ["--lease-seconds", "5"], pause="0.2") for n in s.notices]
    proxy.commits_to_cut = 0
    assert proxy.commits_cut >= 10
    check_whole(bureau.record())
    assert all(steps == ONCE for steps in bureau.steps())
    assert not any("died" in notice for notice in notices)


@pytest.mark.heavy
def test_row_6_half_a_second_of_latency_costs_time_alone(proxy: Proxy, direct: str, open_bureau: OpenBureau) -> None:
    bureau = open_bureau(through(proxy, direct), trials=2)
    proxy.delay = 0.25  # each way
    notices = [n for s in bureau.search(2, ["--lease-seconds", "30"]) for n in s.notices]
    proxy.delay = 0.0
    check_whole(bureau.record())
    assert all(steps == ONCE for steps in bureau.steps()) and notices == []


def test_row_6_a_peer_that_never_answers_is_noticed_within_30_s(
    proxy: Proxy, direct: str, open_bureau: OpenBureau
) -> None:
    """The proxy acknowledges what it is sent, so that no keepalive and no timeout of TCP finds it."""
    bureau = open_bureau(through(proxy, direct), trials=2)
    worker = bureau.start_worker("--lease-seconds", "30", pause="0.2")
    storage = open_storage(parse_url(direct))
    wait_for(lambda: any(ticket.epoch for ticket in list_tickets(storage, bureau.info.ref)))
    proxy.mode = Mode.SWALLOW
    began = time.monotonic()
    wait_for(lambda: "waiting for the store" in bureau.said_by_hand(), 35)
    # It trained on until it had an epoch to report, which is 1 s; then its call was due.
    print(f"noticed after {time.monotonic() - began:.1f} s")
    assert time.monotonic() - began < 31
    assert worker.poll() is None
    proxy.mode = Mode.FORWARD
    proxy.cut()
    assert worker.wait(timeout=90) == 0
    check_whole(bureau.record())
    assert all(steps == ONCE for steps in bureau.steps())


@pytest.mark.parametrize("moment", ["while it waits for the lock", "while it makes the tables"])
def test_row_6_a_search_that_begins_notices_a_peer_that_never_answers(
    proxy: Proxy, postgres_url: str, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr("lmsearch.store.watchdog.ANSWER_SECONDS", 2.0)
    create_all = sqlalchemy.MetaData.create_all

    def fall_silent(*args: Any, **kwargs: Any) -> None:
        proxy.mode = Mode.SWALLOW
        create_all(*args, **kwargs)

    began = time.monotonic()
    with contextlib.ExitStack() as held:
        if moment == "while it waits for the lock":
            held.enter_context(creation_lock(parse_url(postgres_url), WaitUpTo(30.0)))
            timer = threading.Timer(1.0, setattr, (proxy, "mode", Mode.SWALLOW))
            timer.start()
        else:
            monkeypatch.setattr("sqlalchemy.MetaData.create_all", fall_silent)
        with pytest.raises(StoreGoneError, match="cannot be used"):
            open_storage(parse_url(through(proxy, postgres_url)), create=True, patience=WaitUpTo(1.0))
    assert 2 < time.monotonic() - began < 15  # a second connection has ten seconds of its own
    proxy.mode = Mode.FORWARD
    monkeypatch.undo()
    open_storage(parse_url(through(proxy, postgres_url)), create=True)


def test_row_6_a_silent_network_is_found_by_what_the_open_socket_is_set_to(proxy: Proxy, direct: str) -> None:
    storage = open_storage(parse_url(through(proxy, direct)))
    with storage.engine.connect() as connection:
        raw = connection.connection.dbapi_connection
        assert isinstance(raw, psycopg.Connection)
        with socket.fromfd(raw.fileno(), socket.AF_INET, socket.SOCK_STREAM) as end:
            assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            tcp = {name: end.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in (
                "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT",
            )}  # fmt: skip
    # Idle: 10 s, then three probes 5 s apart; with data under way: 25 s.
    assert tcp == {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 25_000}


def test_row_7_a_store_gone_for_good_is_reported_with_the_command_that_goes_on(
    cli: Cli, tmp_path: Path, start_server: StartServer, open_bureau: OpenBureau
) -> None:
    """I1, I3 and I5 for workers with a stub; the command itself is below."""
    server = start_server()
    bureau = open_bureau(server.url, trials=4)
    worker = bureau.start_worker("--store-timeout", "3s", pause="0.2")
    wait_for(lambda: any(ticket.epoch for ticket in bureau.tickets()))
    server.stop()
    stopped = time.monotonic()
    assert worker.wait(timeout=60) == 75
    assert 3 < time.monotonic() - stopped < 20
    last = bureau.said_by_hand().splitlines()[-1]
    assert last.startswith("lmsearch: the store postgresql://") and "progress is saved. Resume with: " in last
    assert "lmsearch worker tiny" in last and "--store-timeout 3s" in last
    server.start()
    again = bureau.start_worker()
    assert again.wait(timeout=60) == 0
    check_whole(bureau.record())
    assert all(set(steps) == set(ONCE) and len(steps) <= 20 for steps in bureau.steps())  # at most one epoch again


def test_row_7_the_run_exits_75_and_other_commands_wait_ten_seconds(
    cli: Cli, tmp_path: Path, start_server: StartServer
) -> None:
    server = start_server()
    write_study(tmp_path, TINY_STUDY.replace("epochs = 3", "epochs = 300"))
    words = ["run", "tiny.toml", "--workers", "2", "--store-timeout", "3s"]

    def stop_in_mid_search() -> None:
        wait_for(lambda: started(cli, "tiny", LMSEARCH_STORAGE=server.url))
        server.stop()

    stopper = threading.Thread(target=stop_in_mid_search)
    stopper.start()
    said = cli(*words, LMSEARCH_STORAGE=server.url)
    stopper.join()
    assert said.returncode == 75
    assert re.search(
        r"lmsearch: the store postgresql://.* cannot be used: .*; progress is saved. Resume with: "
        r"lmsearch run tiny.toml --workers 2 --store-timeout 3s",
        said.stderr,
    )
    began = time.monotonic()
    waited = cli("status", "tiny", LMSEARCH_STORAGE=server.url)
    assert waited.returncode == 75 and 10 < time.monotonic() - began < 25
    assert "Traceback" not in said.stderr + waited.stderr
    server.start()
    status = json.loads(cli("status", "tiny", "--json", LMSEARCH_STORAGE=server.url).stdout)
    assert status["total"] == 3 and len(status["at_work"]) == 2
    assert {row["attempts"] for row in status["at_work"]} == {1}


@pytest.mark.heavy
def test_row_7_a_run_that_is_interrupted_while_the_store_is_away_ends_as_interrupted(
    tmp_path: Path, cli: Cli, start_server: StartServer
) -> None:
    """Its document then has what was known."""
    server = start_server()
    write_study(tmp_path, TINY_STUDY.replace("epochs = 3", "epochs = 4000"))
    command = [sys.executable, "-m", "lmsearch.cli.main", "run", "tiny.toml", "--workers", "1", "--json"]
    command += ["--store-timeout", "60s"]
    environment = dict(os.environ) | {"LMSEARCH_STORAGE": server.url}
    with (tmp_path / "said").open("w") as said:
        search = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=said)
        try:
            wait_for(lambda: started(cli, "tiny", 1, LMSEARCH_STORAGE=server.url))
            server.stop()
            search.terminate()
            assert search.wait(timeout=60) == 143
        finally:
            search.kill()
            search.wait()
    document = json.loads((tmp_path / "said").read_text())
    assert (document["done"], document["total"]) == (0, 3) and document["at_work"][0]["trial"] == 0


@pytest.mark.heavy
def test_row_8_twelve_workers_on_eight_connections_answer_every_ticket_once(
    start_server: StartServer, open_bureau: OpenBureau
) -> None:
    """I2: those who find no connection wait; I5: the message names the setting."""
    server = start_server(max_connections=8, superuser_reserved_connections=0, reserved_connections=0)
    bureau = open_bureau(server.url, trials=24)
    notices = [n for s in bureau.search(12, ["--lease-seconds", "30"], pause="0.05") for n in s.notices]
    check_whole(bureau.record())
    assert all(steps == ONCE for steps in bureau.steps())
    assert not any("died" in notice for notice in notices)
    assert "raise the server's max_connections" in bureau.logs()


def test_row_8_a_full_server_is_not_a_store_that_is_gone(start_server: StartServer, open_bureau: OpenBureau) -> None:
    """A child waits beyond --store-timeout, one started by hand leaves with 75 and the setting's name."""
    server = start_server(max_connections=4, superuser_reserved_connections=0, reserved_connections=0)
    bureau = open_bureau(server.url, trials=2)
    begin(bureau.storage, "tiny", bureau.info.spec, bureau.info.folder, bureau.corpus, Request(trials=2))
    held = [psycopg.connect(f"host={server.sockets} user=postgres dbname=store") for _ in range(3)]

    by_hand = bureau.start_worker("--store-timeout", "2s")

    def close_once_it_left() -> None:
        by_hand.wait(timeout=60)
        time.sleep(4)
        for connection in held:
            connection.close()

    free = threading.Thread(target=close_once_it_left)
    free.start()
    try:
        list(bureau.search(1, ["--store-timeout", "2s"]))
    finally:
        free.join()
    check_whole(bureau.record())
    assert by_hand.returncode == 75
    assert "max_connections" in bureau.said_by_hand()


def test_row_8_a_worker_needs_one_connection(postgres: str, direct: str, open_bureau: OpenBureau) -> None:
    bureau = open_bureau(direct, trials=8)
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND application_name = 'lmsearch'"
    seen = []
    with psycopg.connect(postgres.format("postgres"), autocommit=True) as admin:
        for _ in bureau.search(4, pause="0.1"):
            found = admin.execute(query, [parse_url(direct).database]).fetchone()
            seen.append(found[0] if found else 0)
    assert 4 <= max(seen) <= 5  # and one for the parent


@pytest.mark.heavy
def test_row_7_the_parent_of_a_search_gives_up_with_its_workers(
    start_server: StartServer, open_bureau: OpenBureau
) -> None:
    server = start_server()
    bureau = open_bureau(server.url, trials=4)
    stopper = threading.Timer(4, server.stop)
    stopper.start()
    with pytest.raises(StoreGoneError, match="cannot be used"):
        list(bureau.search(2, ["--store-timeout", "2s"], {"store_timeout": 2.0}, pause="0.3"))
    stopper.join()
    server.start()
    list(bureau.search(2))
    check_whole(bureau.record())
