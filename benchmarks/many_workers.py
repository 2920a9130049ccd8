"""How many connections, and how long claims and reports take, with 16 to 500 workers on one default PostgreSQL.

    python benchmarks/many_workers.py                      # 16, 64, 250 and 500 workers
    python benchmarks/many_workers.py --workers 64 --epoch 10 --trials 3

Each worker is a thread with the product's own claim, trial, lease and connection, in one of a few processes; nothing is
shared between them but the database. Its trainer sleeps: an epoch lasts `--epoch` seconds in place of minutes, so that
the load is that of many more workers. Database and workers share this machine's cores.
"""

import argparse
import json
import logging
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from local_postgres import postgres

from lmsearch.lm.sleeper import SleepingTrainer
from lmsearch.search.trial import TrialRunner
from lmsearch.search.worker import Stop, WorkerOptions, _work
from lmsearch.store import tickets, workers
from lmsearch.store.checkpoints import Checkpoints
from lmsearch.store.opening import open_storage
from lmsearch.store.outages import WaitUpTo
from lmsearch.store.records import create_study, open_study, optuna_study
from lmsearch.store.releasing import ConnectionRelease
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import HeldTicket, StudyRef
from lmsearch.store.tickets import Changes, Holder, NewTicket, change_tickets
from lmsearch.store.trials import read_study
from lmsearch.store.url import parse_url
from lmsearch.store.weights import Weights
from lmsearch.study.reading import parse_study
from lmsearch.text.corpus import Corpus, Text
from lmsearch.text.vocabulary import Vocabulary

EPOCHS = 3
PROCESSES = 4
STUDY = f"""
format = 1
[data]
corpus = "python-docs"
[model]
output_dropout = {{ low = 0.0, high = 0.5 }}
[train]
epochs = {EPOCHS}
"""


def corpus() -> Corpus:
    text = Text(np.zeros(10, np.int32), np.zeros(1, np.int64))
    return Corpus(
        vocabulary=Vocabulary(("<unk>", "<eos>", "a", "b")), train=text, valid=text, test=None, fingerprint="f",
        description="none",
    )  # fmt: skip


def work(url: str, folder: str, process: int, count: int, epoch: float, go: Any, results: Any) -> None:
    """Run `count` workers as threads; put their latencies."""
    logging.disable(logging.CRITICAL)
    claims: list[float] = []
    reports: list[float] = []
    trials: Counter[str] = Counter()  # claimed, by worker
    errors: list[str] = []
    claim = tickets.claim

    def timed_claim(storage: FencedStorage, study: StudyRef, holder: Holder) -> HeldTicket | None:
        began = time.perf_counter()
        ticket = claim(storage, study, holder)
        claims.append(time.perf_counter() - began)
        trials[holder.worker] += ticket is not None
        return ticket

    tickets.claim = timed_claim

    def worker(number: int) -> None:
        try:
            storage = open_storage(parse_url(url), write=True, patience=WaitUpTo(300.0))
            ConnectionRelease(storage.engine)
            info = open_study(storage, "many")
            runner = TrialRunner(
                storage=storage, study=optuna_study(storage, "many"), info=info, corpus=corpus(),
                trainer=SleepingTrainer("cpu", epoch, spread=0.2),
                checkpoints=Checkpoints(Path(folder) / "checkpoints", "bench"),
                weights=Weights(Path(folder) / "models"),
            )  # fmt: skip
            holder = Holder(worker=f"{process}-{number}", host="bench", process=process, device="cpu")
            set_value = storage.set_trial_intermediate_value

            def timed(*args: Any) -> None:
                began = time.perf_counter()
                set_value(*args)
                reports.append(time.perf_counter() - began)

            storage.set_trial_intermediate_value = timed  # type: ignore[method-assign,assignment]
            workers.join(storage, info.ref, holder, "bench")
            options = WorkerOptions(
                study="many", storage=parse_url(url), name=holder.worker, folder=Path(folder), cache=Path(folder)
            )
            go.wait()
            _work(runner, holder, Stop(None), options)
        except BaseException as error:
            errors.append(repr(error))

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    threads = [threading.Thread(target=worker, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put((claims, reports, list(trials.values()), errors))


def quantile(values: list[float], share: float) -> float:
    return 1e3 * sorted(values)[min(len(values) - 1, int(share * len(values)))]


def measure(server: str, count: int, epoch: float, trials_each: int, folder: Path) -> dict[str, Any]:
    import psycopg

    name = f"many{count}"
    with psycopg.connect(server.format("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    url = server.format(name)
    storage = open_storage(parse_url(url), create=True)
    info = create_study(
        storage, "many", parse_study(STUDY, Path()), folder="", corpus="none", fingerprint="f", vocabulary_size=4
    )
    budget = trials_each * count
    new = NewTicket(origin="search", sampler="random", pruner="none")
    change_tickets(storage, info.ref, lambda _: Changes(add=[new] * budget))
    context = multiprocessing.get_context("spawn")
    go, results = context.Event(), context.Queue()
    shares = [count // PROCESSES + (number < count % PROCESSES) for number in range(PROCESSES)]
    processes = [
        context.Process(target=work, args=(url, str(folder / name), number, share, epoch, go, results))
        for number, share in enumerate(shares)
        if share
    ]
    for process in processes:
        process.start()
    seen: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        with psycopg.connect(server.format("postgres"), autocommit=True) as connection:
            while not ended.wait(0.25):
                query = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}'"
                row = connection.execute(query.encode()).fetchone()
                seen.append(int(row[0]) if row else 0)

    threading.Thread(target=watch, daemon=True).start()
    time.sleep(5 + count / 25)  # for all to have opened the store
    seen.clear()
    began = time.monotonic()
    go.set()
    found = [results.get() for _ in processes]
    seconds = time.monotonic() - began
    ended.set()
    for process in processes:
        process.join()
    claims, reports, trials, errors = ([one for part in found for one in part[place]] for place in range(4))
    record = read_study(storage, info, epochs=True)
    storage.engine.dispose()
    exact = record.done == record.total == len(record.trials) == budget and not errors
    exact = exact and all(len(trial.epochs) == EPOCHS for trial in record.trials)
    outcomes = {trial.outcome for trial in record.trials}
    return {
        "workers": count,
        "trials": budget,
        "exact": exact,
        "outcomes": sorted(outcomes),
        "errors": errors[:3] or sorted({trial.reason for trial in record.trials if trial.outcome == "failed"})[:3],
        "seconds": round(seconds, 1),
        "least": round(trials_each * EPOCHS * epoch, 1),
        "trials_of_a_worker": [min(trials, default=0), max(trials, default=0)],
        "claim_ms": [round(quantile(claims, share), 1) for share in (0.5, 0.95, 1)],
        "report_ms": [round(quantile(reports, share), 1) for share in (0.5, 0.95, 1)],
        "connections": {"median": statistics.median(seen), "most": max(seen)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[16, 64, 250, 500])
    parser.add_argument("--epoch", type=float, default=30.0, help="seconds of an epoch")
    parser.add_argument("--trials", type=int, default=2, help="trials for each worker")
    given = parser.parse_args()
    with postgres() as server, tempfile.TemporaryDirectory() as folder:
        for count in given.workers:
            print(json.dumps(measure(server, count, given.epoch, given.trials, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
