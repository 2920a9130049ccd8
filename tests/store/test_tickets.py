"""The ticket scheme: one owner at a time, one trial a ticket, nothing written by who lost the lease."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from lmsearch.store import tickets
from lmsearch.store.opening import open_storage
from lmsearch.store.storage import LeaseLostError
from lmsearch.store.tables import DONE, EPOCH, OPEN, RUNNING, TICKET, Progress
from lmsearch.store.tickets import Changes, list_tickets
from lmsearch.store.trials import read_epochs
from lmsearch.store.url import parse_url
from tests.store.helpers import Bench, holder


def only(bench: Bench) -> Any:
    (ticket,) = list_tickets(bench.storage, bench.ref)
    return ticket


def test_many_workers_at_once_claim_every_ticket_once(storage_url: str) -> None:
    bench = Bench(storage_url)
    bench.queue(24)
    claimed: list[int] = []

    def work(name: str) -> None:
        worker = bench.other(storage_url, name)
        while (ticket := worker.claim()) is not None:
            claimed.append(ticket.number)

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == list(range(24))


def test_started_tickets_come_first_then_enqueued_ones_then_by_number(storage_url: str) -> None:
    bench = Bench(storage_url)
    bench.queue(3)
    first = bench.take()
    bench.ask(first)
    bench.queue(1, origin="enqueued")
    bench.storage.release(first, None, None)
    assert [bench.take().number for _ in range(4)] == [0, 3, 1, 2]


def test_asking_creates_the_tickets_trial_and_asking_again_resumes_it(storage_url: str) -> None:
    bench = Bench(storage_url)
    bench.queue()
    ticket = bench.take()
    trial = bench.ask(ticket, x=0.25)
    bench.report(trial, 1, 3.0)
    bench.storage.release(ticket, None, None)
    other = bench.other(storage_url)
    again = other.take()
    same = other.ask(again, x=0.75)
    assert (same.number, same._trial_id) == (trial.number, trial._trial_id)
    assert same.suggest_float("x", 0.0, 1.0) == 0.25
    assert bench.optuna.get_trials()[0].intermediate_values == {1: 3.0}
    assert len(bench.optuna.get_trials()) == 1


def test_fixed_values_are_created_whole_and_others_are_drawn(storage_url: str) -> None:
    bench = Bench(storage_url)
    bench.queue()
    trial = bench.ask(bench.take(), x=0.125)
    assert trial.suggest_float("x", 0.0, 1.0) == 0.125
    assert 0 <= trial.suggest_float("y", 0.0, 1.0) <= 1
    (stored,) = bench.optuna.get_trials()
    assert set(stored.params) == {"x", "y"} and stored.user_attrs == {"origin": "test"}


def test_telling_ends_the_trial_and_answers_the_ticket_together(storage_url: str) -> None:
    bench = Bench(storage_url)
    bench.queue()
    trial = bench.ask(bench.take())
    bench.optuna.tell(trial, 4.0)
    ticket = only(bench)
    assert (ticket.state, ticket.expires, ticket.trial_number) == (DONE, None, 0)
    assert bench.claim() is None


WRITES: dict[str, Callable[[Bench, optuna.Trial], Any]] = {
    "param": lambda b, t: t.suggest_float("new", 0.0, 1.0),
    "value": lambda b, t: b.report(t, 2, 1.0),
    "attribute": lambda b, t: t.set_user_attr("late", 1),
    "tell": lambda b, t: b.optuna.tell(t, 1.0),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_every_write_of_an_old_owner_is_refused_and_changes_nothing(storage_url: str, write: Any) -> None:
    bench = Bench(storage_url)
    bench.queue()
    bench.expire()
    frozen = bench.ask(bench.take())
    bench.report(frozen, 1, 2.0)
    other = bench.other(storage_url)
    other.may_take_over()
    taken = other.take()
    other.ask(taken)
    before = other.optuna.get_trials()[0]
    ticket = only(other)
    with pytest.raises(LeaseLostError):
        write(bench, frozen)
    assert other.optuna.get_trials()[0] == before
    assert only(other) == ticket
    with pytest.raises(LeaseLostError):
        bench.storage.release(ticket_of(bench, frozen), "here:/late", None)
    assert not bench.storage.renew(ticket_of(bench, frozen), Progress(epoch=9, step=9, tokens_per_second=None))
    assert only(other) == ticket


def ticket_of(bench: Bench, trial: optuna.Trial) -> Any:
    return bench.storage.leases[trial._trial_id]


def test_a_slow_owner_whom_nobody_replaced_goes_on(storage_url: str) -> None:
    bench = Bench(storage_url)
    bench.queue()
    bench.expire()
    trial = bench.ask(bench.take())
    bench.report(trial, 1, 2.0)
    bench.optuna.tell(trial, 2.0)
    assert only(bench).state == DONE


def test_an_old_owner_is_refused_even_when_the_trial_is_ended(storage_url: str) -> None:
    bench = Bench(storage_url)
    bench.queue()
    bench.expire()
    frozen = bench.ask(bench.take())
    other = bench.other(storage_url)
    other.may_take_over()
    other.optuna.tell(other.ask(other.take()), 5.0)
    with pytest.raises((LeaseLostError, UpdateFinishedTrialError)):
        frozen.set_user_attr("late", 1)
    bench.optuna.tell(frozen, 1.0, skip_if_finished=True)
    assert other.optuna.best_value == 5.0


def test_an_expired_lease_is_taken_over_only_after_a_whole_lease_time_of_connection(storage_url: str) -> None:
    bench = Bench(storage_url)
    bench.queue()
    bench.expire(0.05)
    bench.take()
    time.sleep(0.2)
    other = bench.other(storage_url)
    other.storage.lease_seconds = 0.5
    assert other.claim() is None  # it may have been the store that was away
    time.sleep(0.6)
    assert other.take().lease == 2


def test_a_lease_that_is_renewed_is_not_taken(storage_url: str) -> None:
    bench = Bench(storage_url)
    bench.queue()
    ticket = bench.take()
    assert bench.storage.renew(ticket, Progress(epoch=1, step=5, tokens_per_second=7.5))
    other = bench.other(storage_url)
    other.may_take_over()
    assert other.claim() is None
    assert (only(other).epoch, only(other).step, only(other).tokens_per_second) == (1, 5, 7.5)


def test_a_lease_from_before_a_reboot_is_expired(storage_url: str) -> None:
    bench = Bench(storage_url)
    bench.queue()
    bench.take()
    with bench.storage.transaction() as session:
        session.execute(sa.update(TICKET).values(boot="an earlier boot"))
    other = bench.other(storage_url)
    other.may_take_over()
    assert other.take().lease == 2


def test_the_death_of_a_worker_frees_its_tickets_at_once(storage_url: str) -> None:
    bench = Bench(storage_url)
    bench.queue(2)
    bench.take()
    other = bench.other(storage_url)
    kept = other.take()
    tickets.release_worker(bench.storage, bench.ref, "worker")
    states = {ticket.number: ticket.state for ticket in list_tickets(bench.storage, bench.ref)}
    assert states == {0: OPEN, kept.number: RUNNING}


def test_an_epoch_is_reported_with_its_figures_its_progress_and_its_checkpoint_or_not_at_all(storage_url: str) -> None:
    bench = Bench(storage_url)
    bench.queue()
    trial = bench.ask(bench.take())
    bench.report(trial, 1, 3.5, "here:/one")
    bench.report(trial, 2, float("nan"), "here:/two")
    rows = read_epochs(bench.storage, bench.ref)[0]
    assert [(row.epoch, row.tokens) for row in rows] == [(1, 10), (2, 10)]
    assert rows[0].valid_loss == 3.5 and rows[1].valid_loss != rows[1].valid_loss  # nan
    assert (only(bench).checkpoint, only(bench).epoch, only(bench).step) == ("here:/two", 2, 20)


def test_starting_again_forgets_the_epochs_of_the_earlier_attempt(storage_url: str) -> None:
    bench = Bench(storage_url)
    bench.queue()
    trial = bench.ask(bench.take(), x=0.5)
    bench.report(trial, 1, 3.5, "elsewhere:/one")
    bench.storage.release(ticket_of(bench, trial), None, None)
    other = bench.other(storage_url)
    ticket = other.take()
    other.storage.restart(ticket)
    assert (only(other).checkpoint, only(other).epoch) == (None, 0)
    again = other.ask(ticket)
    assert again.number == trial.number and again.params == {"x": 0.5}
    other.report(again, 1, 4.5)
    assert other.optuna.get_trials()[0].intermediate_values == {1: 4.5}
    assert read_epochs(other.storage, other.ref)[0][0].valid_loss == 4.5


def test_a_trial_ended_by_hand_answers_its_ticket(storage_url: str) -> None:
    bench = Bench(storage_url)
    bench.queue()
    trial = bench.ask(bench.take())
    outside = bench.other(storage_url)
    outside.optuna.tell(trial.number, state=TrialState.FAIL)
    with pytest.raises(UpdateFinishedTrialError):
        bench.report(trial, 1, 1.0)
    tickets.close_ended(bench.storage, bench.ref)
    assert only(bench).state == DONE


def test_a_queue_of_optunas_own_is_not_taken_from(storage_url: str) -> None:
    bench = Bench(storage_url)
    bench.queue()
    bench.optuna.enqueue_trial({"x": 0.9})
    trial = bench.ask(bench.take())
    assert trial.number == 1
    assert bench.optuna.get_trials()[0].state == TrialState.WAITING


def test_added_tickets_are_counted_on_and_withdrawn_ones_were_never_started(storage_url: str) -> None:
    bench = Bench(storage_url)
    bench.queue(2)
    bench.take()

    def decide(there: Any) -> Changes:
        return Changes(withdraw=[ticket.number for ticket in there if ticket.untouched])

    left = tickets.change_tickets(bench.storage, bench.ref, decide)
    assert [ticket.number for ticket in left] == [0]
    assert [ticket.number for ticket in bench.queue(1)] == [0, 1]


def test_tickets_added_by_many_at_once_are_all_there(storage_url: str) -> None:
    bench = Bench(storage_url)
    threads = [threading.Thread(target=lambda: bench.other(storage_url).queue(3)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers = Counter(ticket.number for ticket in list_tickets(bench.storage, bench.ref))
    assert numbers == Counter(range(18))


def test_rows_of_a_deleted_study_whose_id_is_used_again_are_removed(storage_url: str) -> None:
    bench = Bench(storage_url)
    bench.queue(2)
    bench.report(bench.ask(bench.take()), 1, 1.0)
    with bench.storage.transaction() as session:
        for table in (TICKET, EPOCH):
            session.execute(sa.update(table).values(study_key="gone"))
    bench.queue(1)
    tickets.purge_leftovers(bench.storage, bench.ref)
    with bench.storage.transaction() as session:
        assert session.scalars(sa.select(TICKET.c.study_key)).all() == [bench.ref.key]
        assert session.scalars(sa.select(EPOCH.c.study_key)).all() == []


def test_a_worker_and_the_thread_that_renews_share_one_connection(postgres_url: str) -> None:
    open_storage(parse_url(postgres_url), create=True).engine.dispose()
    bench = Bench(postgres_url)
    bench.queue(1)
    ticket = bench.take()
    trial = bench.ask(ticket)
    stop = threading.Event()

    def renew() -> None:
        while not stop.is_set():
            assert bench.storage.renew(ticket, Progress(epoch=0, step=0, tokens_per_second=None))
            time.sleep(0.001)  # else the other thread hardly ever finds the connection free

    thread = threading.Thread(target=renew)
    thread.start()
    most = 0
    with bench.storage.engine.connect() as watcher:
        own = sa.text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        most = int(watcher.execute(own).scalar_one())
    for epoch in range(1, 20):
        bench.report(trial, epoch, 1.0)
    stop.set()
    thread.join()
    assert most == 1


def paused(bench: Bench, count: int) -> list[Any]:
    """Start so many tickets and pause them."""
    bench.queue(count)
    held = [bench.take() for _ in range(count)]
    for ticket in held:
        bench.ask(ticket)
        bench.storage.release(ticket, None, None, paused=True)
    return [ticket for ticket in list_tickets(bench.storage, bench.ref) if ticket.is_paused]


def test_a_paused_ticket_is_claimed_only_by_name_and_by_one_worker(storage_url: str) -> None:
    bench = Bench(storage_url)
    waiting = paused(bench, 12)
    assert bench.claim() is None and tickets.has_unfinished(bench.storage, bench.ref)
    claimed: list[int] = []

    def work(name: str) -> None:
        worker = bench.other(storage_url, name)
        while (ticket := tickets.claim_paused(worker.storage, worker.ref, holder(name), waiting)) is not None:
            claimed.append(ticket.number)
            worker.storage.release(ticket, None, None)  # a worker holds one at a time

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == list(range(12))
    assert not tickets.has_paused(bench.storage, bench.ref)


def test_a_paused_ticket_that_another_has_taken_and_paused_again_is_not_taken_as_it_was_read(storage_url: str) -> None:
    bench = Bench(storage_url)
    (first, second) = paused(bench, 2)
    again = tickets.claim_paused(bench.storage, bench.ref, holder("worker"), [first])
    assert again is not None and again.lease == first.lease + 1 and again.trial_id == first.trial_id
    bench.storage.release(again, None, None, paused=True)
    other = bench.other(storage_url)
    held = tickets.claim_paused(other.storage, other.ref, holder("other"), [first, second])
    assert held is not None and held.number == second.number
    assert tickets.claim_paused(other.storage, other.ref, holder("third"), [first, second]) is None


def test_no_paused_ticket_is_taken_while_one_must_run_alone(storage_url: str) -> None:
    bench = Bench(storage_url)
    waiting = paused(bench, 2)
    bench.queue(1)
    alone = bench.take()
    bench.ask(alone)
    bench.storage.release(alone, None, None, "memory", 100)
    assert tickets.claim_paused(bench.storage, bench.ref, holder("worker"), waiting) is None
    assert bench.take().number == alone.number


def test_pausing_needs_the_lease_and_is_recognised_where_the_reply_was_lost(storage_url: str) -> None:
    bench = Bench(storage_url)
    bench.queue(1)
    ticket = bench.take()
    bench.ask(ticket)
    bench.storage.release(ticket, None, None, paused=True)
    (waiting,) = list_tickets(bench.storage, bench.ref)
    with pytest.raises(LeaseLostError):
        bench.storage.release(ticket, None, None, paused=True)
    assert list_tickets(bench.storage, bench.ref) == [waiting]
