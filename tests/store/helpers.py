"""A store with one study and some tickets, as the tests of the scheme need it."""

from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from lmsearch.store.opening import open_storage
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import EpochRow, HeldTicket, Progress, StudyRef, Ticket
from lmsearch.store.tickets import Changes, Holder, NewTicket, change_tickets, claim
from lmsearch.store.url import parse_url

RANGE = FloatDistribution(0.0, 1.0)


def holder(name: str) -> Holder:
    return Holder(worker=name, host="here", process=1, device="cpu")


def template(**fixed: float) -> FrozenTrial:
    distributions: dict[str, Any] = dict.fromkeys(fixed, RANGE)
    return create_trial(
        state=TrialState.RUNNING, params=fixed, distributions=distributions, user_attrs={"origin": "test"}
    )


def epoch_row(number: int, loss: float = 1.0) -> EpochRow:
    return EpochRow(epoch=number, train_loss=loss, valid_loss=loss, seconds=0.1, tokens=10, learning_rate=0.1)


class Bench:
    """One worker's view of a store: its storage, the study, and what it does with tickets."""

    def __init__(self, url: str, name: str = "worker", study: StudyRef | None = None) -> None:
        self.storage: FencedStorage = open_storage(parse_url(url))
        self.name = name
        if study is None:
            study_id = self.storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "bench")
            study = StudyRef(name="bench", id=study_id, key="k" * 32)
        self.ref = study
        self.optuna = optuna.load_study(study_name="bench", storage=self.storage)

    def other(self, url: str, name: str = "other") -> "Bench":
        """Give a second worker on the same study."""
        return Bench(url, name, self.ref)

    def queue(self, count: int = 1, **values: Any) -> list[Ticket]:
        new = NewTicket(**({"origin": "search", "sampler": "random", "pruner": "none"} | values))
        return change_tickets(self.storage, self.ref, lambda _: Changes(add=[new] * count))

    def claim(self) -> HeldTicket | None:
        return claim(self.storage, self.ref, holder(self.name))

    def take(self) -> HeldTicket:
        ticket = self.claim()
        assert ticket is not None
        return ticket

    def ask(self, ticket: HeldTicket, **fixed: float) -> optuna.Trial:
        with self.storage.asking(ticket, template(**fixed)):
            return self.optuna.ask()

    def report(self, trial: optuna.Trial, epoch: int, value: float, checkpoint: str | None = None) -> None:
        progress = Progress(epoch=epoch, step=10 * epoch, tokens_per_second=5.0)
        with self.storage.reporting(epoch_row(epoch, value), progress, checkpoint):
            trial.report(value, epoch)

    def may_take_over(self) -> None:
        """Pretend to have been connected for longer than any lease."""
        self.storage.connected_since = -1e9

    def expire(self, lease_seconds: float = -1.0) -> None:
        """Let the leases that are taken or renewed from now on be expired at once."""
        self.storage.lease_seconds = lease_seconds
