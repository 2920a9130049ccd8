"""What `lmsearch doctor` says: one sentence for each check."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from lmsearch.errors import LmsearchError

OK, NOTE, REPAIRED, PROBLEM, UNCHECKED = "ok", "note", "repaired", "problem", "unchecked"
"""A note is worth knowing and not wrong; what is unchecked could not be checked here."""

CHECKS = ("store", "connections", "leases", "disk", "artifacts", "corpora", "devices", "versions", "nodes")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was checked: how it is, and what to do about it where it is wrong."""

    check: str  # one of CHECKS
    state: str
    text: str


def mend(
    check: str,
    repair: bool,
    wrong: str,
    remedy: str,
    act: Callable[[], object],
    removes: Sequence[object] = (),
) -> Iterator[Finding]:
    """Do what heals, or, where nothing is to be changed, say what would be done; `remedy` is a participle: removed.

    What is to be removed is listed first, thing by thing.
    """
    for thing in removes:
        yield Finding(
            check=check, state=NOTE, text=f"{'to be removed' if repair else '--repair would remove'}: {thing}"
        )
    if not repair:
        yield Finding(check=check, state=PROBLEM, text=f"{wrong}; with --repair: {remedy}")
        return
    act()
    yield Finding(check=check, state=REPAIRED, text=f"{wrong}; {remedy}")


def guarded(check: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield the findings of one check; what keeps it from being made is a finding too."""
    try:
        yield from findings
    except (LmsearchError, OSError) as error:
        yield Finding(check=check, state=PROBLEM, text=f"this cannot be checked: {error}")
