"""Trials that pause and continue: what `curves.allocate` decides from what the store has of a study."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState

from lmsearch.curves import allocate
from lmsearch.curves.allocate import Standing
from lmsearch.curves.forecast import losses_of
from lmsearch.curves.promote import Promotion
from lmsearch.search.outcome import COMPLETE, DIVERGED, PAUSED, PRUNED
from lmsearch.store.checkpoints import Checkpoints
from lmsearch.store.records import StudyInfo
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import OPEN, HeldTicket, Ticket
from lmsearch.store.tickets import list_tickets
from lmsearch.study.options import asha_factor, asha_promotes, asha_rung
from lmsearch.study.spec import StudySpec, default_value

THAW, ASHA = "thaw", "asha"

_OUTCOMES = {
    allocate.CONTINUE: None,
    allocate.PAUSE: PAUSED,
    allocate.PRUNE: PRUNED,
    allocate.FINISH: COMPLETE,
}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which paused tickets a free worker should claim, best first."""

    tickets: Sequence[Ticket]
    ending: bool = False  # to end them: none of them can become the best any more


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Decides for one study which of its trials is trained next. Nothing is kept: another worker decides the same."""

    storage: FencedStorage
    study: optuna.Study
    info: StudyInfo
    checkpoints: Checkpoints

    def judge(self, mine: HeldTicket) -> str | None:
        """Return what becomes of a trial that has just reported an epoch: an outcome, or None where it continues."""
        look = self._look()
        policy = policy_of(self.info.spec, mine.pruner, len(look.tickets))
        if policy is None:
            return None
        return _OUTCOMES[policy.after_epoch(mine.number, look.standings, look.waiting)]

    def choose(self) -> Choice:
        """Return the paused tickets to claim before any other; none where a released or a new one comes first."""
        look = self._look()
        paused = [ticket for ticket in look.tickets if ticket.is_paused]
        released = any(ticket.state == OPEN and ticket.trial_id is not None for ticket in look.tickets)
        if not paused or released:
            return Choice(tickets=())
        promising: list[Ticket] = []
        for pruner in sorted({ticket.pruner for ticket in paused}):
            mine = {ticket.number: ticket for ticket in paused if ticket.pruner == pruner}
            policy = policy_of(self.info.spec, pruner, len(look.tickets))
            order = list(mine) if policy is None else policy.next_paused(look.standings, look.waiting)
            promising += [mine[number] for number in order if number in mine]
        if promising:
            return Choice(tickets=promising)
        if look.waiting or any(ticket.is_running for ticket in look.tickets):
            return Choice(tickets=())
        return Choice(tickets=paused, ending=True)

    def least_promising(self) -> Ticket | None:
        """Return the paused ticket with the lowest chance among those whose checkpoint is here; None for none."""
        look = self._look()
        here = [t for t in look.tickets if t.is_paused and self.checkpoints.can_find(t)]
        order: list[int] = []
        for pruner in {ticket.pruner for ticket in here}:
            policy = policy_of(self.info.spec, pruner, len(look.tickets))
            order += [] if policy is None else policy.next_paused(look.standings, 0)
        # What is not in the order can no longer become the best.
        return max(here, key=lambda t: order.index(t.number) if t.number in order else len(order), default=None)

    def _look(self) -> "_Look":
        tickets = list_tickets(self.storage, self.info.ref)
        of_trial = {ticket.trial_id: ticket for ticket in tickets if ticket.trial_id is not None}
        standings = [
            self._standing(trial, of_trial.get(trial._trial_id)) for trial in self.study.get_trials(deepcopy=False)
        ]
        return _Look(
            tickets=tickets,
            standings=[one for one in standings if one.losses],
            waiting=sum(not ticket.is_done and ticket.trial_id is None for ticket in tickets),
        )

    def _standing(self, trial: FrozenTrial, ticket: Ticket | None) -> Standing:
        paused = ticket is not None and ticket.is_paused
        states = {TrialState.COMPLETE: allocate.COMPLETE, TrialState.RUNNING: allocate.RUNNING}
        # A checkpoint that lies on another host is worth nothing here: the trial would start again.
        again = paused and ticket is not None and not self.checkpoints.can_find(ticket)
        return Standing(
            ticket=-1 - trial.number if ticket is None else ticket.number,
            losses=tuple(curve_of(trial)),
            state=allocate.PAUSED if paused else states.get(trial.state, allocate.ENDED),
            epochs_to_train=self.info.spec.epochs if again else None,
        )


@dataclass(frozen=True, kw_only=True)
class _Look:
    """A study at one moment."""

    tickets: Sequence[Ticket]
    standings: Sequence[Standing]
    waiting: int  # tickets that nobody has started


def curve_of(trial: FrozenTrial) -> list[float]:
    """Return the losses (nats per token) of a trial's epochs, without the one in which it diverged."""
    return losses_of(trial.intermediate_values, trial.user_attrs.get("reason") == DIVERGED)


class Policy(Protocol):
    """Which trials of a study pause, and which of those continue."""

    def after_epoch(self, mine: int, standings: Sequence[Standing], waiting: int) -> str:
        """Decide about a running trial, by its ticket; `waiting` tickets have not started."""
        ...

    def next_paused(self, standings: Sequence[Standing], waiting: int) -> list[int]:
        """List the tickets of paused trials that should continue now, best first."""
        ...


def policy_of(spec: StudySpec, pruner: str, trials: int) -> Policy | None:
    """Return the policy of a pruner in a study of so many trials; None for a pruner that pauses none."""
    options = spec.pruner_options if pruner == spec.settings.pruner else {}
    if pruner == THAW:
        rules = allocate.default_rules(trials, spec.epochs, _is_noisy(spec))
        whole = int(options.get("n_startup_trials", rules.whole))
        return replace(rules, whole=whole, piece=int(options.get("interval_steps", rules.piece)))
    if pruner == ASHA and asha_promotes(options):
        first = int(options.get("min_resource", asha_rung(spec.epochs)))
        return Promotion.of(spec.epochs, first, asha_factor(options))
    return None


def pauses(spec: StudySpec, pruner: str) -> bool:
    """Whether a pruner pauses trials in a study."""
    return policy_of(spec, pruner, 1) is not None


def _is_noisy(spec: StudySpec) -> bool:
    """Whether the learning rate is divided or weights are averaged: then curves have cliffs."""

    def can_be(path: str) -> set[object]:
        if path in spec.open:
            return {*spec.open[path].ends(), *(spec.open[path].points() or ())}
        return {spec.fixed.get(path, default_value(path))}

    return can_be("train.anneal_factor") != {1.0} or bool(can_be("train.optimizer") & {"sgd", "nt-asgd"})
