"""Optuna's own conformance kit for storages, on ours: both databases, plain and cached, with and without leases."""

import itertools
import shutil
from collections.abc import Callable
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.storages import BaseStorage
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import FrozenTrial
from sqlalchemy.engine import URL

from lmsearch.store.opening import open_storage
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import StudyRef
from lmsearch.store.tickets import Changes, Holder, NewTicket, change_tickets, claim
from lmsearch.store.url import parse_url
from tests.conftest import create_database, new_name

HOLDER = Holder(worker="kit", host="here", process=1, device="cpu")


class LeasedStorage(FencedStorage):
    """A storage in which every trial that is created has a ticket and is under a lease on it."""

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        trial = super()._create_new_trial(study_id, template_trial)
        if trial.state.is_finished():
            return trial
        study = StudyRef(name=self.get_study_name_from_id(study_id), id=study_id, key=f"key{study_id}")
        new = NewTicket(origin="search", sampler="random", pruner="none")
        change_tickets(self, study, lambda _: Changes(add=[new]))
        ticket = claim(self, study, HOLDER)
        assert ticket is not None
        self.leases[trial._trial_id] = ticket
        return trial


@pytest.fixture(scope="module")
def kept_url(postgres: str) -> str:
    """Give one PostgreSQL database for all tests here: to empty it is ten times as fast as to make another."""
    name = new_name()
    create_database(postgres, name)
    return postgres.format(name)


def empty_store(request: pytest.FixtureRequest, database: str) -> URL:
    """Return the URL of an empty store on this database."""
    if database == "sqlite":
        path = request.getfixturevalue("tmp_path") / "store.db"
        shutil.copy(request.getfixturevalue("prepared_sqlite"), path)
        return parse_url(f"sqlite:///{path}")
    url: str = request.getfixturevalue("kept_url")
    engine = sa.create_engine(parse_url(url), poolclass=sa.pool.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text("SET LOCAL lock_timeout = '10s'"))
        own = "pid <> pg_backend_pid() AND datname = current_database()"
        connection.execute(sa.text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {own}"))
        tables = connection.execute(sa.text("SELECT relname FROM pg_stat_user_tables")).scalars()
        names = [name for name in tables if "version" not in name and name != "lmsearch_format"]  # these say what it is
        connection.execute(sa.text(f"TRUNCATE {', '.join(names)} RESTART IDENTITY CASCADE"))
    return parse_url(url)


def combinations(*often: str) -> list[Any]:
    """Return each database, plain and cached; all but those named here are heavy.

    Of the eight with leases and without, the four that are run each time have every two of these properties together.
    """
    every = map("-".join, itertools.product(["sqlite", "postgresql"], ["plain", "cached"]))
    return [pytest.param(one, marks=() if one in often else pytest.mark.heavy) for one in every]


def opened(request: pytest.FixtureRequest, kind: Callable[[URL], BaseStorage]) -> BaseStorage:
    database, wrap = request.param.split("-")
    storage = kind(empty_store(request, database))
    return storage if wrap == "plain" else optuna.storages.get_storage(storage)


class TestFencedStorage(StorageTestCase):
    @pytest.fixture(params=combinations("sqlite-plain", "postgresql-cached"))
    def storage(self, request: pytest.FixtureRequest) -> BaseStorage:
        return opened(request, open_storage)


class TestLeasedStorage(StorageTestCase):
    @pytest.fixture(params=combinations("sqlite-cached", "postgresql-plain"))
    def storage(self, request: pytest.FixtureRequest) -> BaseStorage:
        return opened(request, LeasedStorage)
