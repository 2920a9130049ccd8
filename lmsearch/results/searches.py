"""Several searches, each perhaps repeated: what each had found after so many trials, and whether they differ."""

import fnmatch
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from lmsearch.errors import StudyError
from lmsearch.results.budget import best_so_far, ended_in_order
from lmsearch.results.statistics import Interval, difference_interval
from lmsearch.spelling import count, nearest
from lmsearch.store.records import (
    StudyInfo,
    StudyRecord,
    TrialRecord,
    lmsearch_studies,
    open_study,
    readable_studies,
)
from lmsearch.store.storage import FencedStorage
from lmsearch.store.trials import read_study


@dataclass(frozen=True, kw_only=True)
class Group:
    """A search and its repetitions: studies that one name or pattern fits."""

    name: str
    records: tuple[StudyRecord, ...]

    @property
    def studies(self) -> tuple[str, ...]:
        """Return the names of its studies."""
        return tuple(record.info.ref.name for record in self.records)

    @functools.cached_property
    def paths(self) -> tuple[tuple[float, ...], ...]:
        """Return, for each study, the best complete perplexity after so many ended trials."""
        return tuple(tuple(best_so_far(ended_in_order(record))) for record in self.records)

    @property
    def budget(self) -> int:
        """Return the number of ended trials that all its studies have."""
        return min((len(path) for path in self.paths), default=0)

    def at(self, budget: int) -> list[float]:
        """Return what each study had found after so many trials; infinite where nothing was complete."""
        return [path[budget - 1] for path in self.paths]

    @property
    def best(self) -> tuple[StudyRecord, TrialRecord] | None:
        """Return the best trial of all its studies, and which study has it; None where nothing is complete."""
        found = [(record, record.best) for record in self.records if record.best is not None]
        return min(found, key=lambda pair: pair[1].perplexity, default=None)


def read_groups(storage: FencedStorage, patterns: Sequence[str]) -> list[Group]:
    """Read the studies that each name or pattern (`tpe-*`) fits. Raises `StudyError` where one fits none.

    One that cannot be read is left out of a pattern, and refused by its name. Raises `StudyError` too where two
    studies have another text, or trials of another number of epochs: their perplexities cannot be compared.
    """
    known = lmsearch_studies(storage)
    readable = [info.ref.name for info in readable_studies(storage)[0]]
    groups, first = [], None
    for pattern in patterns:
        names = [pattern] if pattern in known else sorted(fnmatch.filter(readable, pattern))
        infos = [open_study(storage, name) for name in names]
        if pattern in known:
            infos[0].require_search()
        infos = [info for info in infos if not info.confirms]
        if not infos:
            raise StudyError(f"there is no study {pattern!r} in the store{nearest(pattern, known)}")
        records = tuple(read_study(storage, info, epochs=True) for info in infos)
        for record in records:
            first = first or record
            _check_comparable(first, record)
        groups.append(Group(name=pattern, records=records))
    return groups


def _check_comparable(one: StudyRecord, other: StudyRecord) -> None:
    names = f"{one.info.ref.name} and {other.info.ref.name}"
    if one.info.fingerprint != other.info.fingerprint:
        raise StudyError(
            f"{names} cannot be compared: the one is on {one.info.corpus} (fingerprint {one.info.fingerprint}), the "
            f"other on {other.info.corpus} (fingerprint {other.info.fingerprint}){_other_words(one.info, other.info)}"
        )
    if one.info.spec.epochs != other.info.spec.epochs:
        raise StudyError(
            f"{names} cannot be compared: trials of the one have {one.info.spec.epochs} epochs, of the other "
            f"{other.info.spec.epochs}"
        )


def _other_words(one: StudyInfo, other: StudyInfo) -> str:
    """Return where one text is read with two vocabularies, which the fingerprints alone do not tell."""
    if one.corpus != other.corpus or one.vocabulary_size == other.vocabulary_size:
        return ""
    return f": their vocabularies differ, {one.vocabulary_size:,} and {other.vocabulary_size:,} words"


def common_budget(groups: Sequence[Group]) -> int:
    """Return the number of ended trials that all studies of all searches have."""
    return min((group.budget for group in groups), default=0)


def budgets(groups: Sequence[Group]) -> list[int]:
    """Return the budgets at which to compare: 1, 2, 4, … and the largest that all have."""
    most = common_budget(groups)
    return sorted(
        {*(1 << power for power in range(most.bit_length()) if 1 << power <= most), *([most] if most else [])}
    )


def spread(values: Sequence[float]) -> str:
    """Return what some repetitions found: mean and standard deviation, or the one value."""
    if not all(math.isfinite(value) for value in values):
        return "none complete" if not any(math.isfinite(value) for value in values) else "some none complete"
    return f"{values[0]:.2f}" if len(values) == 1 else f"{mean(values):.2f} ± {stdev(values):.2f}"


def verdict(groups: Sequence[Group]) -> Iterator[str]:
    """Say which search is the best at the budget that all have, and whether that can be luck."""
    budget = common_budget(groups)
    if not budget:
        yield "Nothing can be compared yet: not every study has a trial that has ended."
        return
    found = [(group, group.at(budget)) for group in groups if all(map(math.isfinite, group.at(budget)))]
    found.sort(key=lambda pair: mean(pair[1]))
    after = f"After {count(budget, 'trial')}"
    if not found:
        yield f"{after} no search has a complete trial in each of its studies."
        return
    yield f"{after} " + ", ".join(f"{group.name} has found {spread(values)}" for group, values in found) + "."
    if len(found) < 2:
        return
    (leader, best), *others = found
    if any(len(values) < 2 for _, values in found):
        once = ", ".join(group.name for group, values in found if len(values) < 2)
        yield (
            f"Whether that difference is the search's or luck is unknown: {once} ran once. Repeat each search with "
            "other seeds, as studies of other names."
        )
        return
    for group, values in others:
        yield _difference_sentence(leader.name, group.name, difference_interval(values, best, len(others)))


def _difference_sentence(leader: str, other: str, difference: Interval) -> str:
    ends = f"difference {difference.mean:.2f}, 95 % interval {difference.low:.2f} to {difference.high:.2f}"
    if difference.low > 0:
        return f"{leader} is better than {other} ({ends})."
    return f"Between {leader} and {other} there is no clear difference ({ends})."


def groups_document(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return a comparison as plain values; what is not finite is None."""
    return [
        {
            "search": group.name,
            "studies": [
                {"study": study, "best": [value if math.isfinite(value) else None for value in path]}
                for study, path in zip(group.studies, group.paths, strict=True)
            ],
        }
        for group in groups
    ]
