"""A store that goes away: calls are repeated, what was already done is recognised, and patience ends."""

import sqlite3
import threading
import time
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from optuna.storages._rdb.models import BaseModel
from optuna.trial import TrialState, create_trial

from lmsearch.errors import StoreGoneError
from lmsearch.store import url as urls
from lmsearch.store.opening import open_storage
from lmsearch.store.outages import Outage, WaitUpTo, is_transient
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import DONE, OPEN
from lmsearch.store.tickets import Holder, claim, list_tickets, lock_study
from tests.conftest import create_database, new_name
from tests.store.helpers import Bench


def lose_replies(bench: Bench, count: int = 1) -> None:
    """Let the next `count` commits succeed and look as if they had not."""
    left = [count]
    storage = bench.storage
    base = storage.scoped_session.session_factory.class_

    class Lossy(base):  # type: ignore[misc, valid-type]
        def commit(self) -> None:
            super().commit()
            if left[0] > 0:
                left[0] -= 1
                raise sa.exc.OperationalError("COMMIT", {}, psycopg.OperationalError("the connection is lost"))

    storage.scoped_session.remove()
    storage.scoped_session.session_factory.class_ = Lossy


def test_a_claim_whose_reply_is_lost_is_not_made_twice(storage_url: str) -> None:
    bench = Bench(storage_url)
    bench.queue(3)
    lose_replies(bench)
    ticket = bench.take()
    states = [(t.number, t.state, t.lease) for t in list_tickets(bench.storage, bench.ref)]
    assert states == [(0, "running", 1), (1, OPEN, 0), (2, OPEN, 0)] and ticket.number == 0


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_creation_whose_reply_is_lost_makes_one_trial(storage_url: str, lost: int) -> None:
    bench = Bench(storage_url)
    bench.queue()
    ticket = bench.take()
    lose_replies(bench, lost)
    trial = bench.ask(ticket, x=0.5)
    assert [t.number for t in bench.optuna.get_trials()] == [trial.number] == [0]


def test_a_trial_taken_over_whose_reply_is_lost_is_taken_over_once(storage_url: str) -> None:
    bench = Bench(storage_url)
    for number in range(2):
        lose_replies(bench)
        taken = create_trial(value=1.0, user_attrs={"from": f"other/{number}"})
        bench.storage.create_new_trial(bench.ref.id, taken)
    assert [trial.user_attrs["from"] for trial in bench.optuna.get_trials()] == ["other/0", "other/1"]


def test_what_a_frozen_worker_holds_in_mid_transaction_is_set_free_by_the_server(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own commit fails then, and is repeated as after any lost connection."""
    name = new_name()
    create_database(postgres, name)
    assert "idle_in_transaction_session_timeout = '25s'" in urls._SERVER_SETTINGS
    monkeypatch.setattr(urls, "_SERVER_SETTINGS", ("idle_in_transaction_session_timeout = '1s'",))
    bench = Bench(postgres.format(name))
    bench.queue(2)
    other = open_storage(urls.parse_url(postgres.format(name)))
    calls: list[float] = []

    tried: list[bool] = []

    def freeze_once() -> None:
        tried.append(True)
        with bench.storage.transaction() as session:
            lock_study(session, bench.ref)
            if len(tried) == 1:
                began = time.monotonic()
                assert claim(other, bench.ref, Holder(worker="o", host="h", process=2, device="cpu")) is not None
                calls.append(time.monotonic() - began)
            session.execute(sa.select(1))

    bench.storage.repeat(freeze_once)
    assert len(calls) == 1 and 0.5 < calls[0] < 5


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_store_that_is_just_being_made_is_waited_for(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A command that looked in between once waited two minutes for a second connection of its own."""
    text = f"sqlite:///{tmp_path}/store.db" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    url = urls.parse_url(text)
    opened: list[float] = []

    def look() -> None:
        began = time.monotonic()
        open_storage(url).engine.dispose()
        opened.append(time.monotonic() - began)

    looker = threading.Thread(target=look)
    with urls.creation_lock(url, WaitUpTo(30.0)):
        engine = sa.create_engine(url, **urls.engine_options(url, 1))
        BaseModel.metadata.create_all(engine)  # Optuna's tables, and neither its revision nor ours
        engine.dispose()
        looker.start()
        time.sleep(1)
        assert looker.is_alive()
        FencedStorage(url, create=True, connections=2).engine.dispose()
    looker.join(10)
    assert len(opened) == 1 and opened[0] >= 1


def test_a_report_and_an_end_whose_replies_are_lost_happen_once(storage_url: str) -> None:
    bench = Bench(storage_url)
    bench.queue()
    trial = bench.ask(bench.take())
    lose_replies(bench)
    bench.report(trial, 1, 2.5)
    lose_replies(bench)
    bench.optuna.tell(trial, 2.5)
    (stored,) = bench.optuna.get_trials()
    assert (stored.state, stored.value, stored.intermediate_values) == (TrialState.COMPLETE, 2.5, {1: 2.5})
    assert list_tickets(bench.storage, bench.ref)[0].state == DONE


def test_tickets_whose_reply_is_lost_are_added_once(storage_url: str) -> None:
    bench = Bench(storage_url)
    lose_replies(bench)
    assert len(bench.queue(4)) == 4
    assert len(list_tickets(bench.storage, bench.ref)) == 4


def test_giving_back_whose_reply_is_lost_is_done(storage_url: str) -> None:
    bench = Bench(storage_url)
    bench.queue()
    ticket = bench.take()
    lose_replies(bench)
    bench.storage.release(ticket, "here:/file", None)
    (stored,) = list_tickets(bench.storage, bench.ref)
    assert (stored.state, stored.checkpoint) == (OPEN, "here:/file")


def test_connections_that_the_server_ends_are_made_again(postgres: str) -> None:
    name = new_name()
    create_database(postgres, name)
    bench = Bench(postgres.format(name))
    bench.queue(1)
    trial = bench.ask(bench.take())
    with psycopg.connect(postgres.format("postgres"), autocommit=True) as admin:
        for epoch in range(1, 6):
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            bench.report(trial, epoch, 1.0 / epoch)
    assert list(bench.optuna.get_trials()[0].intermediate_values) == [1, 2, 3, 4, 5]


def test_a_study_that_is_just_being_written_to_is_deleted_all_the_same(postgres_url: str) -> None:
    """Optuna passes over the error of the trial that came between, and keeps the study."""
    open_storage(urls.parse_url(postgres_url), create=True)
    bench = Bench(postgres_url)
    (study,) = bench.storage.get_all_studies()
    trials = BaseModel.metadata.tables["trials"]
    deleting = threading.Thread(target=bench.storage.delete_study, args=(study._study_id,))
    with sa.create_engine(bench.storage.engine.url).connect() as other:
        # A row that refers to the study, not yet committed: the deletion waits for it, and then finds it in its way.
        other.execute(trials.insert().values(number=7, study_id=study._study_id, state="RUNNING"))
        deleting.start()
        with psycopg.connect(postgres_url.replace("postgresql+psycopg", "postgresql"), autocommit=True) as third:
            waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            while third.execute(waits).fetchone() is None:
                time.sleep(0.01)
        other.commit()
    deleting.join(timeout=30)
    assert bench.storage.get_all_studies() == []


def test_a_locked_sqlite_file_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "_LOCK_SECONDS", 0.2)
    url = f"sqlite:///{tmp_path}/store.db"
    open_storage(urls.parse_url(url), create=True).engine.dispose()
    bench = Bench(url)
    bench.queue()
    ticket = bench.take()
    held = sqlite3.connect(tmp_path / "store.db", check_same_thread=False, isolation_level=None)
    held.execute("BEGIN IMMEDIATE")
    reasons: list[str] = []

    def patience(outage: Outage) -> bool:
        reasons.append(outage.reason)
        return outage.gone < 30

    bench.storage.patience = patience
    release = threading.Timer(1.5, lambda: held.execute("ROLLBACK"))
    release.start()
    bench.report(bench.ask(ticket), 1, 2.0)
    release.join()
    assert reasons and "database is locked" in reasons[0]
    assert bench.optuna.get_trials()[0].intermediate_values == {1: 2.0}


def test_patience_ends_with_the_store_gone_and_a_grace_begins_when_it_is_back(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    open_storage(urls.parse_url(url), create=True).engine.dispose()
    bench = Bench(url)
    bench.storage.patience = WaitUpTo(0.3)
    failing = [True]

    def call() -> str:
        if failing[0]:
            raise sa.exc.OperationalError("SELECT", {}, psycopg.OperationalError("away"))
        return "back"

    with pytest.raises(StoreGoneError, match="away"):
        bench.storage.repeat(call)
    assert bench.storage.connected_since is None
    failing[0] = False
    before = time.monotonic()
    assert bench.storage.repeat(call) == "back"
    assert bench.storage.connected_since is not None and bench.storage.connected_since >= before


def database_error(cause: Exception) -> sa.exc.DBAPIError:
    return sa.exc.OperationalError("SELECT 1", {}, cause)


class SqlState(psycopg.OperationalError):
    """An error of the server's with a code."""

    def __init__(self, state: str) -> None:
        super().__init__(state)
        self.sqlstate = state


@pytest.mark.parametrize(
    ("state", "passes"),
    [
        *((state, True) for state in ("08006", "40P01", "53300", "57P01", "55P03", "58030")),
        *((state, False) for state in ("28P01", "3D000", "42P01", "23505", "22001")),
    ],
)
def test_errors_of_the_server_pass_or_do_not_by_their_class(state: str, passes: bool) -> None:
    wrapped = StorageInternalError("Optuna's words")
    wrapped.__cause__ = database_error(SqlState(state))
    assert is_transient(database_error(SqlState(state))) == is_transient(wrapped) == passes


@pytest.mark.parametrize(
    ("words", "passes"),
    [
        ("FATAL:  the database system is starting up", True),
        ("FATAL:  sorry, too many clients already", True),
        ("connection refused", True),
        ('FATAL:  database "nowhere" does not exist', False),
        ('FATAL:  password authentication failed for user "me"', False),
    ],
)
def test_a_refused_connection_passes_or_does_not_by_its_words(words: str, passes: bool) -> None:
    assert is_transient(database_error(psycopg.OperationalError(words))) == passes


def test_a_missing_table_does_not_pass_though_sqlite_calls_it_operational(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError) as error:
        sqlite3.connect(tmp_path / "x.db").execute("SELECT * FROM nothing")
    assert not is_transient(database_error(error.value))
    assert not is_transient(ValueError("a bug"))
    assert is_transient(sa.exc.PendingRollbackError("a session that an earlier error left"))
