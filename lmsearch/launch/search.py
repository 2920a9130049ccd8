"""A prepared search run by the workers of a launcher: what `lmsearch run` does, for Python."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lmsearch.config import BUILT_IN_CORPORA
from lmsearch.folders import DEFAULT_STORE
from lmsearch.launch.base import Launcher
from lmsearch.launch.local import LocalLauncher, worker_environment
from lmsearch.launch.ray_core import RayLauncher
from lmsearch.launch.slurm import SlurmLauncher
from lmsearch.launch.supervise import Signals, Snapshot, Supervisor
from lmsearch.processes import python
from lmsearch.search.placement import Placement
from lmsearch.search.start import Prepared, SearchRequest, prepare
from lmsearch.spelling import exact_duration
from lmsearch.store import url as urls
from lmsearch.store.records import StudyInfo
from lmsearch.store.url import parse_url


def search(request: SearchRequest, storage: str = DEFAULT_STORE) -> Iterator[Snapshot]:
    """Start or resume a study and run it until its budget is used up, yielding a snapshot each second.

    To stop iterating stops the workers, which save their trials first. Raises `LmsearchError`.
    """
    prepared = prepare(request, parse_url(storage))
    yield from supervisor(prepared, Signals()).run(prepared.devices)


def supervisor(prepared: Prepared, signals: Signals) -> Supervisor:
    """Return what starts the workers of a search and watches them."""
    return Supervisor(
        prepared.storage,
        prepared.info,
        LAUNCHERS[prepared.placement.kind](prepared),
        signals,
        store_timeout=prepared.work.patience,
        max_failures=prepared.work.max_failures,
    )


def _local(prepared: Prepared) -> LocalLauncher:
    def command(name: str, device: str, pipe: int) -> list[str]:
        words = [*worker_words(prepared, device), "--name", name, "--parent-pipe", str(pipe)]
        return python("-m", "lmsearch.cli.main", "worker", *words)

    return LocalLauncher(command, prepared.folder, worker_environment(os.environ, prepared.storage.store_url))


def _slurm(prepared: Prepared) -> SlurmLauncher:
    return SlurmLauncher(
        prepared.info.ref.name,
        prepared.info.ref.key,
        prepared.folder,
        prepared.placement,
        lambda device: worker_words(prepared, device),
        dict(os.environ) | {"LMSEARCH_STORAGE": urls.full_text(prepared.storage.store_url)},
    )


def _ray(prepared: Prepared) -> RayLauncher:
    return RayLauncher(
        prepared.info.ref.key,
        prepared.folder,
        prepared.placement,
        lambda device: worker_words(prepared, device),
        {"LMSEARCH_STORAGE": urls.full_text(prepared.storage.store_url), "LMSEARCH_LAUNCHER": RayLauncher.kind}
        | {name: value for name, value in os.environ.items() if name.startswith(_FORWARDED)},
    )


_FORWARDED = ("LMSEARCH_LOG_", "LMSEARCH_CACHE", "AWS_", "FSSPEC_")
"""How the variables begin that a worker needs and an engine does not hand on by itself."""


LAUNCHERS: dict[str, Callable[[Prepared], Launcher[Any]]] = {"local": _local, "slurm": _slurm, "ray": _ray}
"""What makes the launcher of each kind in `lmsearch.search.placement.KINDS`."""


def reach(info: StudyInfo, placement: Placement, folder: Path) -> Launcher[Any]:
    """Return a launcher that finds and signals the workers of a study on a cluster, and starts none."""
    if placement.kind == "slurm":
        return SlurmLauncher(info.ref.name, info.ref.key, folder, placement, lambda device: [], dict(os.environ))
    return RayLauncher(info.ref.key, folder, placement, lambda device: [], {})


def worker_words(prepared: Prepared, device: str) -> list[str]:
    """Return the arguments of `lmsearch worker` for one worker of a search, but for its name."""
    words = [prepared.info.ref.name, "--device", device]
    words += corpus_words(prepared.text or prepared.info.spec.data.corpus)
    if prepared.until is not None:
        words += ["--time-limit", exact_duration(round(max(1.0, prepared.until - time.monotonic())))]
    return words + prepared.work.words()


def corpus_words(corpus: str) -> list[str]:
    """Return the option that says where a text lies; none for one that every worker has."""
    return [] if corpus in BUILT_IN_CORPORA else ["--corpus", corpus]
