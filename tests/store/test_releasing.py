"""A worker's connection is let go of while nobody uses it."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import sqlalchemy as sa

from lmsearch.store.opening import open_storage
from lmsearch.store.outages import WaitUpTo
from lmsearch.store.releasing import ConnectionRelease
from lmsearch.store.url import parse_url
from tests.bureau import Bureau, wait_for
from tests.servers import Server


def connections(url: str) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'lmsearch' AND datname = current_database()"
        )
        found = connection.execute(query).fetchone()
    assert found is not None
    return int(found[0])


def test_an_unused_connection_is_closed_and_the_next_use_opens_another(postgres_url: str) -> None:
    storage = open_storage(parse_url(postgres_url), create=True)
    ConnectionRelease(storage.engine, 0.3)

    def use() -> int:
        return storage.do(lambda session: int(session.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()))

    first = use()
    assert connections(postgres_url) == 1 and use() == first
    wait_for(lambda: connections(postgres_url) == 0, 10)
    assert use() != first
    with storage.engine.connect() as held:
        time.sleep(1)
        assert held.execute(sa.text("SELECT 1")).scalar() == 1  # one that is in use is not closed
    wait_for(lambda: connections(postgres_url) == 0, 10)


def test_threads_that_use_it_at_all_times_meet_no_closed_connection(postgres_url: str) -> None:
    storage = open_storage(parse_url(postgres_url), create=True)
    ConnectionRelease(storage.engine, 0.02)
    wrong: list[BaseException] = []

    def use(pause: float) -> None:
        try:
            for _ in range(40):
                assert storage.do(lambda session: session.execute(sa.text("SELECT 1")).scalar_one()) == 1
                time.sleep(pause)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=use, args=(pause,)) for pause in (0.02, 0.021, 0.03)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_workers_that_train_hold_no_connection(tmp_path: Path, postgres_url: str) -> None:
    open_storage(parse_url(postgres_url), create=True).engine.dispose()
    bureau = Bureau(tmp_path, postgres_url)
    try:
        for _ in range(2):
            bureau.start_worker("--lease-seconds", "60", pause="5")
        wait_for(lambda: sum(ticket.is_running for ticket in bureau.tickets()) == 2)
        bureau.storage.engine.dispose()
        wait_for(lambda: connections(postgres_url) == 0, 20)
    finally:
        bureau.close()


def test_a_server_without_a_free_connection_gets_one_back_at_once(start_server: Callable[..., Server]) -> None:
    server = start_server(max_connections=4, superuser_reserved_connections=0, reserved_connections=0)
    storage = open_storage(parse_url(server.url), patience=WaitUpTo(20.0))
    ConnectionRelease(storage.engine, 60.0)
    storage.engine.dispose()

    def use() -> int:
        return storage.do(lambda session: int(session.execute(sa.text("SELECT 1")).scalar_one()))

    others = [psycopg.connect(server.url, autocommit=True) for _ in range(4)]
    threading.Timer(1.0, others[0].close).start()
    assert use() == 1  # it has waited for one
    time.sleep(0.5)
    others[0] = psycopg.connect(server.url, autocommit=True)  # which is free again
    for other in others:
        other.close()


def test_threads_that_ask_in_the_very_moment_of_a_release_are_not_left_waiting(postgres_url: str) -> None:
    storage = open_storage(parse_url(postgres_url), create=True)
    ConnectionRelease(storage.engine, 0.0)
    done: list[int] = []

    def use() -> None:
        for number in range(400):
            storage.do(lambda session: session.execute(sa.text("SELECT 1")).scalar_one())
            time.sleep(0.001 * (number % 3))
        done.append(1)

    threads = [threading.Thread(target=use, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == 3
    wait_for(lambda: connections(postgres_url) == 0, 10)
