"""What remains to be run: the tickets that a study must gain or lose for the budget that was asked for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmsearch.errors import StudyError
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import StudyRef, Ticket
from lmsearch.store.tickets import Changes, NewTicket, ask_to_stop, change_tickets, close_ended, purge_leftovers
from lmsearch.study.spec import StudySpec


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a person asked for beside the study file; None is: as the file or the store has it."""

    sampler: str | None = None
    pruner: str | None = None
    trials: int | None = None
    more: int | None = None


def check_request(spec: StudySpec, request: Request) -> None:
    """Refuse, before anything is written, a request that no state of the store could make right."""
    sampler = request.sampler or spec.settings.sampler
    if sampler == "grid":
        spec.grid_points()
    if sampler == "manual" and not spec.manual:
        raise StudyError("the sampler manual needs [[manual]] tables in the study file, and it has none")
    if sampler in ("grid", "manual") and request.more is not None:
        raise StudyError(f"--more adds trials of random, qmc, tpe or gp; the sampler {sampler} runs exactly its points")


def filling_sampler(spec: StudySpec) -> str:
    """Return the sampler that draws what a person or the grid leaves open."""
    return spec.settings.sampler if spec.settings.sampler not in ("grid", "manual") else "random"


def open_budget(storage: FencedStorage, study: StudyRef, decide: Callable[[Sequence[Ticket]], Changes]) -> None:
    """Let workers work on a study, with the tickets that `decide` adds to those that it has or takes from them."""
    purge_leftovers(storage, study)
    ask_to_stop(storage, study, stopped=False)
    change_tickets(storage, study, decide)
    close_ended(storage, study)


def decide_tickets(spec: StudySpec, request: Request, stored: StudySpec | None, tickets: Sequence[Ticket]) -> Changes:
    """Return which tickets a study must gain or lose for the budget that was asked for .

    `stored` is the file the study had so far, None for a new one.
    """
    sampler = request.sampler or spec.settings.sampler
    pruner = request.pruner or spec.settings.pruner
    fill = filling_sampler(spec)
    points = _not_queued(tickets, "manual", spec.manual)
    add = [NewTicket(origin="manual", sampler=fill, pruner=pruner, fixed=point) for point in points]
    if sampler == "grid":
        grid = _not_queued(tickets, "grid", spec.grid_points())
        add += [NewTicket(origin="grid", sampler=fill, pruner=pruner, fixed=point) for point in grid]
    have = len(tickets) + len(add)
    if sampler in ("grid", "manual"):
        _check_points_total(request, sampler, have)
        return Changes(add=add)
    # A study without tickets is new, also where its creation was cut short just before they were added.
    total = _wanted_total(spec, request, stored if tickets else None, have)
    new = [NewTicket(origin="search", sampler=sampler, pruner=pruner)] * max(0, total - have)
    return Changes(add=add + new, withdraw=_withdrawn(tickets, have, total))


def _wanted_total(spec: StudySpec, request: Request, stored: StudySpec | None, have: int) -> int:
    if request.more is not None:
        return have + request.more
    if request.trials is not None:
        return request.trials
    if stored is None:
        return max(spec.settings.trials, have)
    if spec.settings.trials != stored.settings.trials:
        return spec.settings.trials
    return have


def _not_queued(tickets: Sequence[Ticket], origin: str, points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    queued = [ticket.fixed for ticket in tickets if ticket.origin == origin]
    return [point for point in points if dict(point) not in queued]


def _check_points_total(request: Request, sampler: str, have: int) -> None:
    if request.trials is not None and request.trials != have:
        raise StudyError(
            f"--trials {request.trials} disagrees with the {have} trials of the sampler {sampler}; leave --trials out"
        )


def _withdrawn(tickets: Sequence[Ticket], have: int, total: int) -> list[int]:
    if total >= have:
        return []
    free = [ticket.number for ticket in reversed(tickets) if ticket.untouched]
    if have - len(free) > total:
        raise StudyError(f"the study cannot have {total} trials: {have - len(free)} are started or have fixed values")
    return free[: have - total]
