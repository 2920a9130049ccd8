"""A study started or resumed: its file against the stored one, and the tickets of its budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lmsearch.config import RunConfig
from lmsearch.errors import StudyError
from lmsearch.store.copies import adopt_copy, is_copy
from lmsearch.store.opening import creating
from lmsearch.store.records import Source, StudyInfo, create_study, find_study, store_info
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import Ticket
from lmsearch.store.tickets import (
    Changes,
    NewTicket,
    ask_to_stop,
    change_tickets,
    close_ended,
    purge_strays,
)
from lmsearch.study.differences import space_differences
from lmsearch.study.spec import StudySpec
from lmsearch.text.corpus import Corpus, check_lengths
from lmsearch.text.judgement import judge


class SpaceChangedError(StudyError):
    """The file has another space than the study of its name: a new study can be started from the old one."""

    new_study: Sequence[str] = ()  # the command that starts it


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a person asked for beside the study file; None is: as the file or the store has it."""

    sampler: str | None = None
    pruner: str | None = None
    trials: int | None = None
    more: int | None = None


def begin(
    storage: FencedStorage,
    name: str,
    spec: StudySpec,
    folder: str,
    corpus: Corpus,
    request: Request,
    source: str | None = None,
) -> StudyInfo:
    """Create or resume the study, and set its budget to what was asked for.

    `source` is a study whose trials it should take over. The study records it from the start:
    `take_over.complete` does it, now or after whatever ended this. Raises `StudyError` where the stored study has
    another space or corpus, or a number of trials cannot be.
    """
    check_request(spec, request)
    check_space(spec, corpus)
    remarks = tuple(judge(corpus))
    begun_from = source or spec.settings.source
    before, info = _find_or_create(storage, name, spec, folder, corpus, request, begun_from, remarks)
    purge_strays(storage, info.ref)
    ask_to_stop(storage, info.ref, stopped=False)
    change_tickets(storage, info.ref, _decision(spec, request, before.spec if before else None))
    close_ended(storage, info.ref)
    asked = info.source if source is None else Source(name=source, key="", taken=False)
    if (info.spec.text, info.folder, info.source, info.remarks) != (spec.text, folder, asked, remarks):
        info = replace(info, spec=spec, folder=folder, source=asked, remarks=remarks)
        store_info(storage, info)
    return info


def _find_or_create(
    storage: FencedStorage,
    name: str,
    spec: StudySpec,
    folder: str,
    corpus: Corpus,
    request: Request,
    source: str,
    remarks: tuple[str, ...],
) -> tuple[StudyInfo | None, StudyInfo]:
    """Return the study as it was before, None for a new one, and as it is now.

    A copy whose original is not in this store counts as new: its remaining budget is unknown.
    """
    with creating(storage):
        before = find_study(storage, name)
        if before is None:
            decide_tickets(spec, request, None, [])  # refuse before anything is written
            return None, create_study(
                storage,
                name,
                spec,
                folder,
                corpus.description,
                corpus.fingerprint,
                len(corpus.vocabulary),
                source=Source(name=source, key="", taken=False) if source else None,
                remarks=remarks,
            )
        _check_same(before, spec, corpus)
        if not is_copy(storage, before):
            return before, before
        adopted, known = adopt_copy(storage, before)
        return (adopted if known else None), adopted


def check_space(spec: StudySpec, corpus: Corpus) -> None:
    """Refuse a space with an end that makes no valid run, or that asks for more text than there is."""
    spec.check_ends(len(corpus.vocabulary))
    for point in spec.ends():
        config: RunConfig = spec.close(point, len(corpus.vocabulary))
        check_lengths(corpus, config.train)


def check_request(spec: StudySpec, request: Request) -> None:
    """Refuse, before anything is written, a request that no state of the store could make right."""
    sampler = request.sampler or spec.settings.sampler
    if sampler == "grid":
        spec.grid_points()
    if sampler == "manual" and not spec.manual:
        raise StudyError("the sampler manual needs [[manual]] tables in the study file, and it has none")
    if sampler in ("grid", "manual") and request.more is not None:
        raise StudyError(f"--more adds trials of random or tpe; the sampler {sampler} runs exactly its points")


def _check_same(info: StudyInfo, spec: StudySpec, corpus: Corpus) -> None:
    name = info.ref.name
    if info.fingerprint != corpus.fingerprint:
        raise StudyError(
            f"study {name!r} was started on {info.corpus} (fingerprint {info.fingerprint}), the file names "
            f"{corpus.description} (fingerprint {corpus.fingerprint}); give the new search another --name"
        )
    found = space_differences(info.spec, spec)
    if found:
        raise SpaceChangedError(
            f"study {name!r} was started with {found[0]}"
            + (f" (and {len(found) - 1} more differences)" if len(found) > 1 else "")
            + "; a study never changes its space"
        )


def _decision(spec: StudySpec, request: Request, stored: StudySpec | None) -> Any:
    def decide(tickets: Sequence[Ticket]) -> Changes:
        return decide_tickets(spec, request, stored, tickets)

    return decide


def decide_tickets(spec: StudySpec, request: Request, stored: StudySpec | None, tickets: Sequence[Ticket]) -> Changes:
    """Return which tickets a study must gain or lose for the budget that was asked for (design.md, "What a budget is").

    `stored` is the file the study had so far, None for a new one.
    """
    sampler = request.sampler or spec.settings.sampler
    pruner = request.pruner or spec.settings.pruner
    fill = spec.settings.sampler if spec.settings.sampler not in ("grid", "manual") else "random"
    points = _not_owed(tickets, "manual", spec.manual)
    add = [NewTicket(origin="manual", sampler=fill, pruner=pruner, fixed=point) for point in points]
    if sampler == "grid":
        grid = _not_owed(tickets, "grid", spec.grid_points())
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


def _not_owed(tickets: Sequence[Ticket], origin: str, points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    owed = [ticket.fixed for ticket in tickets if ticket.origin == origin]
    return [point for point in points if dict(point) not in owed]


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
