"""What holds for each worker of a search: waiting times, shared files, failures."""

from dataclasses import dataclass

from lmsearch.spelling import exact_duration
from lmsearch.store.artifacts import Artifacts

STORE_SECONDS = 10.0  # of waiting for a store that does not answer, where no trial runs
WORK_STORE_SECONDS = 600.0  # the same, while trials run
STALL_SECONDS = 600.0  # without a step, after which a trial hangs
LEASE_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class WorkOptions:
    """What holds for each worker of a search, on a command line of `run`, `confirm` or `worker`."""

    artifacts: Artifacts | None = None  # where hosts share checkpoints, weights and texts; None: runs/STUDY has them
    store_timeout: float | None = None  # seconds of waiting for a store that does not answer
    stall: float = STALL_SECONDS  # without a step
    max_failures: int | None = None  # in a row with the same traceback; None: the study's
    allow_pickle: bool = False  # for a corpus of object arrays
    idle: float | None = None  # seconds without a trial to run after which a worker leaves; None: it stays
    lease_seconds: float = LEASE_SECONDS

    def words(self) -> list[str]:
        """Return the options that differ from their defaults, for a command line."""
        words = []
        if self.artifacts is not None:
            words += ["--artifacts", self.artifacts.url]
        if self.store_timeout is not None:
            words += ["--store-timeout", exact_duration(self.store_timeout)]
        if self.stall != STALL_SECONDS:
            words += ["--stall", exact_duration(self.stall)]
        if self.max_failures is not None:
            words += ["--max-failures", str(self.max_failures)]
        words += ["--allow-pickle"] if self.allow_pickle else []
        words += [] if self.idle is None else ["--idle", exact_duration(self.idle)]
        if self.lease_seconds != LEASE_SECONDS:
            words += ["--lease-seconds", f"{self.lease_seconds:g}"]
        return words

    @property
    def patience(self) -> float:
        """Return for how many seconds a store that does not answer is waited for while trials run."""
        return WORK_STORE_SECONDS if self.store_timeout is None else self.store_timeout
