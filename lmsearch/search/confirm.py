"""A study's leaders trained again on fresh seeds: a study of its own that any worker may join."""

import itertools
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import tomlkit

from lmsearch.config import Value
from lmsearch.errors import StudyError
from lmsearch.search.budget import open_budget
from lmsearch.store.copies import open_own_study
from lmsearch.store.opening import creating
from lmsearch.store.records import (
    SEED,
    StudyInfo,
    configurations,
    confirmation_name,
    create_study,
    find_study,
    store_info,
)
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import Ticket
from lmsearch.store.tickets import Changes, NewTicket
from lmsearch.store.trials import read_study
from lmsearch.study.reading import parse_study
from lmsearch.study.spec import StudySpec

_HIGHEST_SEED = (1 << 31) - 1


def begin_confirmation(storage: FencedStorage, study: str, top: int, seeds: int) -> StudyInfo:
    """Add the pairs of the study's best configurations and fresh seeds that are not there yet.

    The confirmation has the study's space with `train.seed` open and prunes nothing. Its seeds follow the study's
    own, so that asking for more of them continues where it stopped. Raises `StudyError` where no trial is
    complete, and for a confirmation.
    """
    info = open_own_study(storage, study)
    info.require_search()
    best = configurations(read_study(storage, info).trials)[:top]
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
                defaults=info.defaults,
                confirms=study,
                shuffles=info.shuffles,
                train_tokens=info.train_tokens,
            )
        elif not again.is_of(info):
            raise StudyError(
                f"{again.ref.name} confirms an earlier {study}, on another text or in another space; delete it with: "
                f"lmsearch delete {shlex.quote(again.ref.name)}"
            )
        elif again.spec.text != spec.text:  # the text's place, or the budget in the file, has changed
            again = replace(again, spec=spec, folder=info.folder)
            store_info(storage, again)
    open_budget(storage, again.ref, lambda tickets: Changes(add=_missing(tickets, fixed)))
    return again


def fresh_seeds(spec: StudySpec, count: int) -> list[int]:
    """Return seeds that the study does not train with: those that follow its own, or the range that it searches.

    Beyond the highest seed there is they continue from 0. Raises `StudyError` where so many are not left.
    """
    opened = spec.open.get(SEED)
    ends = [int(spec.fixed.get(SEED, 1))] if opened is None else [int(end) for end in opened.ends()]
    low, high = min(ends), max(ends)
    free = itertools.chain(range(high + 1, _HIGHEST_SEED + 1), range(low))
    seeds = list(itertools.islice(free, count))
    if len(seeds) < count:
        raise StudyError(f"the study searches nearly all seeds: {len(seeds)} fresh ones are left, and not {count}")
    return seeds


def confirmation_spec(info: StudyInfo) -> StudySpec:
    """Return a study's file with the seed open, no pruner and no points of its own."""
    document = tomlkit.parse(info.spec.text)
    for table in ("manual", "sampler", "pruner"):
        document.pop(table, None)
    settings = document.setdefault("study", tomlkit.table())
    settings.update({"sampler": "random", "pruner": "none"})
    for name in ("hours", "source"):
        settings.pop(name, None)
    seed = tomlkit.inline_table()
    seed.update({"low": 0, "high": _HIGHEST_SEED})
    document.setdefault("train", tomlkit.table())["seed"] = seed
    return parse_study(tomlkit.dumps(document), Path(info.folder), f"the file of {info.ref.name}", info.defaults)


def _missing(tickets: Sequence[Ticket], fixed: Sequence[dict[str, Value]]) -> list[NewTicket]:
    queued = [ticket.fixed for ticket in tickets]
    return [
        NewTicket(origin="enqueued", sampler="random", pruner="none", fixed=point)
        for point in fixed
        if point not in queued
    ]
