"""A prepared search run by workers on this host: what `lmsearch run` does, for Python."""

import os
import time
from collections.abc import Iterator

from lmsearch.config import BUILT_IN_CORPORA
from lmsearch.launch.local import LocalLauncher, worker_environment
from lmsearch.launch.supervise import Signals, Snapshot, Supervisor
from lmsearch.processes import python
from lmsearch.search.start import Prepared, SearchRequest, prepare
from lmsearch.store.url import parse_url


def search(request: SearchRequest, storage: str = "sqlite:///runs/lmsearch.db") -> Iterator[Snapshot]:
    """Start or resume a study and run it until its budget is used up, yielding a snapshot each second.

    To stop iterating stops the workers, which save their trials first. Raises `LmsearchError`.
    """
    prepared = prepare(request, parse_url(storage))
    yield from supervisor(prepared, Signals()).run(prepared.devices)


def supervisor(prepared: Prepared, signals: Signals) -> Supervisor:
    """Return what starts the workers of a search on this host and watches them."""

    def command(name: str, device: str, pipe: int) -> list[str]:
        return python("-m", "lmsearch.cli.main", "worker", *worker_words(prepared, name, device, pipe))

    work, environment = prepared.work, worker_environment(os.environ, prepared.storage.store_url)
    return Supervisor(
        prepared.storage,
        prepared.info,
        LocalLauncher(command, prepared.folder, environment),
        signals,
        store_timeout=work.patience,
        max_failures=work.max_failures,
    )


def worker_words(prepared: Prepared, name: str, device: str, pipe: int) -> list[str]:
    """Return the arguments of `lmsearch worker` for one worker of a search."""
    words = [prepared.info.ref.name, "--name", name, "--device", device, "--parent-pipe", str(pipe)]
    corpus = prepared.text or prepared.info.spec.data.corpus
    words += [] if corpus in BUILT_IN_CORPORA else ["--corpus", corpus]
    if prepared.until is not None:
        words += ["--until", f"{max(1.0, prepared.until - time.monotonic()):.0f}s"]
    return words + prepared.work.words()
