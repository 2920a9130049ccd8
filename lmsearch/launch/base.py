"""A launcher places workers and knows nothing of searches: five verbs, behind which each engine stands."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar


@dataclass(frozen=True, kw_only=True)
class Exit:
    """How a placed worker's process ended."""

    code: int  # negative: a signal
    peak_memory: int = 0  # bytes
    hung: bool = False  # a library held its interpreter until the C runtime ended it
    out_of_memory: bool = False  # the system ended it for want of memory
    is_cancelled: bool = False  # a person took it off the cluster, so nothing takes its place


@dataclass
class Placed:
    """A worker that a launcher has placed."""

    name: str
    log: Path


P = TypeVar("P", bound=Placed)


class Launcher(Protocol[P]):
    """Starts workers somewhere and reports how their processes ended."""

    kind: str  # stands in the table of workers

    def start(self, devices: Sequence[str]) -> list[P]:
        """Start a worker for each device; raises `LmsearchError` where the engine refuses them."""
        ...

    def find(self) -> list[P]:
        """List the workers of this study that an earlier launcher of this kind has left at work, or waiting."""
        ...

    def look(self, placed: P) -> Exit | None:
        """Return how a worker's process ended; None while it runs."""
        ...

    def signal(self, placed: P, number: int) -> None:
        """Pass a signal on; to one that has ended it does nothing."""
        ...

    def close(self, placed: P, wait: float) -> None:
        """Let go of a worker: after `wait` seconds end a process that is still there."""
        ...
