"""A study's leaders once more, on fresh seeds: a study of its own that any worker may join."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import tomlkit

from lmsearch.config import Value
from lmsearch.errors import StudyError
from lmsearch.spec import StudySpec, parse_study
from lmsearch.store.copies import open_own_study
from lmsearch.store.opening import creating
from lmsearch.store.records import (
    SEED,
    StudyInfo,
    TrialRecord,
    confirmation_name,
    create_study,
    find_study,
    read_study,
    store_info,
    without_seed,
)
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import Ticket
from lmsearch.store.tickets import Changes, NewTicket, ask_to_stop, change_tickets, close_ended, purge_strays

_HIGHEST_SEED = (1 << 31) - 1


def begin_confirmation(storage: FencedStorage, study: str, top: int, seeds: int) -> StudyInfo:
    """Owe the pairs of the study's best configurations and fresh seeds that are not owed yet.

    The confirmation has the study's space with `train.seed` open and prunes nothing. Its seeds follow the study's
    own, so that asking for more of them goes on where it stopped. Raises `StudyError` where no trial is
    complete, and for a confirmation.
    """
    info = open_own_study(storage, study)
    info.require_search()
    best = leaders(read_study(storage, info).trials, top)
    if not best:
        raise StudyError(f"no trial of {study} is complete yet, so there is nothing to confirm")
    fixed = [
        trial.params | {SEED: seed} for trial in best for seed in fresh_seeds(info.spec, seeds)
    ]  # a leader's seeds one after the other: what is stopped early has whole leaders
    spec = confirmation_spec(info)
    with creating(storage):
        again = find_study(storage, confirmation_name(study))
        if again is None:
            again = create_study(
                storage,
                confirmation_name(study),
                spec,
                info.folder,
                info.corpus,
                info.fingerprint,
                info.vocabulary_size,
            )
        elif again.spec.text != spec.text:  # the text's place, or the budget in the file, has changed
            again = replace(again, spec=spec, folder=info.folder)
            store_info(storage, again)
    purge_strays(storage, again.ref)
    ask_to_stop(storage, again.ref, stopped=False)
    change_tickets(storage, again.ref, lambda tickets: Changes(add=_missing(tickets, fixed)))
    close_ended(storage, again.ref)
    return again


def leaders(trials: Sequence[TrialRecord], top: int) -> list[TrialRecord]:
    """Give the complete trials with the lowest perplexities, each configuration once."""
    complete = sorted((t for t in trials if t.outcome == "complete"), key=lambda t: (t.perplexity, t.number))
    found: dict[tuple[tuple[str, Value], ...], TrialRecord] = {}
    for trial in complete:
        found.setdefault(without_seed(trial.params), trial)
    return list(found.values())[:top]


def fresh_seeds(spec: StudySpec, count: int) -> list[int]:
    """Give seeds that the study has not trained with: those that follow its own, or the range it searched."""
    opened = spec.open.get(SEED)
    last = int(spec.fixed.get(SEED, 1)) if opened is None else max(int(end) for end in opened.ends())
    return [last + number for number in range(1, count + 1)]


def confirmation_spec(info: StudyInfo) -> StudySpec:
    """Give a study's file with the seed open, no pruner and no points of its own."""
    document = tomlkit.parse(info.spec.text)
    for table in ("manual", "sampler", "pruner"):
        document.pop(table, None)
    settings = document.setdefault("study", tomlkit.table())
    settings.update({"sampler": "random", "pruner": "none"})
    settings.pop("hours", None)
    seed = tomlkit.inline_table()
    seed.update({"low": 0, "high": _HIGHEST_SEED})
    document.setdefault("train", tomlkit.table())["seed"] = seed
    return parse_study(tomlkit.dumps(document), Path(info.folder), f"the file of {info.ref.name}")


def _missing(tickets: Sequence[Ticket], fixed: Sequence[dict[str, Value]]) -> list[NewTicket]:
    owed = [ticket.fixed for ticket in tickets]
    return [
        NewTicket(origin="enqueued", sampler="random", pruner="none", fixed=point)
        for point in fixed
        if point not in owed
    ]
