"""A page left open on a big study never holds up a worker."""

import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import optuna
import pytest

from benchmarks.dashboard_polling import fill_study
from tests.dashboard.served import Served, served
from tests.store.helpers import Bench

TRIALS = 10_000
SECONDS = 15.0  # more than the 10 for which the dashboard keeps what it read: it reads again within the test
POLLS = 15  # a first one of all 10,000 trials takes seconds
PATIENCE = 120.0  # seconds, on a machine that is busy otherwise
LONGEST_WRITE = 5.0  # seconds: far below the 30 after which a lease may be taken over


R = TypeVar("R")


class Polling:
    """Threads that ask, as fast as they are answered, for what an open page asks for."""

    def __init__(self, server: Served, study_id: int, threads: int) -> None:
        detail = f"/api/studies/{study_id}?after="
        self._server, self._paths = server, ("/api/studies", f"{detail}0", f"{detail}{TRIALS}")
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._poll) for _ in range(threads)]
        self.statuses: list[int] = []

    def __enter__(self) -> "Polling":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _poll(self) -> None:
        while not self._ended.is_set():
            for path in self._paths:
                self.statuses.append(self._server.ask(path).status)


def write_while(bench: Bench, continues: Callable[[], bool]) -> list[float]:
    """Work as a worker does, without a model: claim, ask, report, tell; give how many seconds each write took."""
    taken: list[float] = []

    def timed(write: Callable[..., R], *arguments: Any) -> R:
        began = time.perf_counter()
        result = write(*arguments)
        taken.append(time.perf_counter() - began)
        return result

    while continues():
        bench.queue()
        trial = bench.ask(timed(bench.take))
        for name in ("model.output_dropout", "model.input_dropout", "model.weight_dropout"):
            timed(trial.suggest_float, name, 0.0, 0.7)
        for epoch in range(1, 9):
            timed(bench.report, trial, epoch, 100.0 / epoch)
        timed(bench.optuna.tell, trial, 12.5)
    return taken


def until(duration: float) -> Callable[[], bool]:
    end = time.monotonic() + duration
    return lambda: time.monotonic() < end


def write_times(name: str, taken: list[float]) -> str:
    middle, longest = 1e3 * statistics.median(taken), 1e3 * max(taken)
    return f"{name}: {len(taken)} writes, median {middle:.1f} ms, max {longest:.0f} ms"


@pytest.mark.heavy
def test_polling_a_big_study_fails_and_delays_no_write(
    storage_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(storage_url)
    bench.optuna.sampler = optuna.samplers.RandomSampler(seed=0)  # what is timed is writes, not proposals
    fill_study(bench.storage, bench.ref.id, TRIALS)
    assert len(bench.optuna.trials) == TRIALS  # read once, as every worker does
    impatient: list[object] = []  # one entry for each attempt of a write that failed

    def note(*outage: object) -> bool:
        impatient.append(outage)
        return True

    monkeypatch.setattr(bench.storage, "patience", note)
    with served(storage_url, tmp_path / "log") as server:
        alone = write_while(bench, until(SECONDS / 3))
        with Polling(server, bench.ref.id, threads=2) as polling:
            least, most = until(SECONDS), until(PATIENCE)
            polled = write_while(bench, lambda: most() and (least() or len(polling.statuses) < POLLS))
    print(write_times("alone", alone), write_times("polled", polled), f"{len(polling.statuses)} polls", sep="\n")
    assert impatient == []
    assert set(polling.statuses) == {200} and len(polling.statuses) >= POLLS
    assert len(polled) > 200 and max(polled) < LONGEST_WRITE
    assert len(bench.optuna.trials) > TRIALS + 20
