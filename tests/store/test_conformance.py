"""Optuna's own conformance kit for storages, on ours: both databases, plain and cached, with and without leases."""

from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import FrozenTrial

from lmsearch.store.opening import open_storage
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import StudyRef
from lmsearch.store.tickets import Changes, Holder, NewTicket, change_tickets, claim
from lmsearch.store.url import parse_url

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


@pytest.fixture(params=["plain", "cached"])
def wrap(request: pytest.FixtureRequest) -> Any:
    return (lambda storage: storage) if request.param == "plain" else optuna.storages.get_storage


class TestFencedStorage(StorageTestCase):
    @pytest.fixture
    def storage(self, storage_url: str, wrap: Any) -> BaseStorage:
        opened: BaseStorage = wrap(open_storage(parse_url(storage_url)))
        return opened


class TestLeasedStorage(StorageTestCase):
    @pytest.fixture
    def storage(self, storage_url: str, wrap: Any) -> BaseStorage:
        opened: BaseStorage = wrap(LeasedStorage(parse_url(storage_url)))
        return opened
