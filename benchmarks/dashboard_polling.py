"""The dashboard on a big study: lmsearch's beside `optuna-dashboard URL`, in one run.

    python benchmarks/dashboard_polling.py
    python benchmarks/dashboard_polling.py --storage postgresql://me@/scratch

It makes studies of 2,000 and 10,000 ended trials on SQLite, and with --storage in that PostgreSQL too, where it
deletes them afterwards. A password belongs in PGPASSWORD, not in the URL: `optuna-dashboard` takes the URL as an
argument that everybody can read.

Each server is started afresh and asked what a browser asks: the list of studies, all trials of one (after=0), and the
trials since the last look (after=N). `cold` is the first request of its kind, `warm` the median of three more, and
`poll` is after=N again when what the page keeps (10 s) has grown old, which is what an open page asks for all day. The
servers alternate, the medians over the repeats are printed: the time until the answer is there, and of it the time that
the server's process had a CPU, which says the same on a machine that does other things too (Linux only).
"""

import argparse
import contextlib
import datetime
import os
import platform
import re
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.distributions import distribution_to_json as to_json
from optuna.storages._rdb import models
from optuna.trial import TrialState

from lmsearch.store.opening import open_storage
from lmsearch.store.storage import FencedStorage
from lmsearch.store.url import full_text, parse_url

SPACE: dict[str, BaseDistribution] = {
    "model.output_dropout": FloatDistribution(0.0, 0.7),
    "model.input_dropout": FloatDistribution(0.0, 0.7),
    "model.weight_dropout": FloatDistribution(0.0, 0.7),
    "model.tie_weights": CategoricalDistribution([True, False]),
    "model.hidden_size": IntDistribution(50, 650, step=50),
    "train.learning_rate": FloatDistribution(1e-4, 3e-2, log=True),
    "train.batch_size": IntDistribution(10, 80, step=10),
}
EPOCHS = 8
CHUNK = 1_000  # trials a transaction
KEPT_SECONDS = 10.5  # optuna-dashboard keeps the trials of a big study for 10 s
SERVERS = ("plain", "ours")


def fill_study(storage: FencedStorage, study_id: int, count: int) -> None:
    """Add `count` ended trials to an empty study, about half of them pruned after three epochs."""
    for first in range(0, count, CHUNK):
        numbers = range(first, min(first + CHUNK, count))
        with storage.transaction() as session:
            new = sa.insert(models.TrialModel).returning(models.TrialModel.trial_id, sort_by_parameter_order=True)
            ids = list(session.scalars(new, [_trial(study_id, number) for number in numbers]))
            trials = list(zip(numbers, ids, strict=True))
            for model, rows in (
                (models.TrialParamModel, _params),
                (models.TrialIntermediateValueModel, _curve),
                (models.TrialValueModel, _value),
                (models.TrialUserAttributeModel, _attributes),
            ):
                session.execute(sa.insert(model), [row for number, id in trials for row in rows(number, id)])


def _trial(study_id: int, number: int) -> dict[str, Any]:
    began = datetime.datetime(2026, 1, 1) + datetime.timedelta(seconds=60 * number)
    return {
        "number": number,
        "study_id": study_id,
        "state": TrialState.PRUNED if number % 2 else TrialState.COMPLETE,
        "datetime_start": began,
        "datetime_complete": began + datetime.timedelta(seconds=50),
    }


def _params(number: int, id: int) -> Iterator[dict[str, Any]]:
    for column, (name, distribution) in enumerate(SPACE.items()):
        yield {
            "trial_id": id,
            "param_name": name,
            "param_value": _internal(distribution, (0.618034 * (number + 1) * (column + 1)) % 1.0),
            "distribution_json": to_json(distribution),
        }


def _internal(distribution: BaseDistribution, share: float) -> float:
    match distribution:
        case CategoricalDistribution():
            return float(int(share * len(distribution.choices)))
        case IntDistribution():
            return float(distribution.low + distribution.step * int(share * 8))
        case FloatDistribution():
            return distribution.low + share * (distribution.high - distribution.low)
    raise TypeError(distribution)


def _perplexity(number: int, epoch: int) -> float:
    return 20.0 + 80.0 / epoch + (number * 7919 % 1000) / 50


def _curve(number: int, id: int) -> Iterator[dict[str, Any]]:
    for epoch in range(1, 1 + (3 if number % 2 else EPOCHS)):
        kind = models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE
        value = _perplexity(number, epoch)
        yield {"trial_id": id, "step": epoch, "intermediate_value": value, "intermediate_value_type": kind}


def _value(number: int, id: int) -> Iterator[dict[str, Any]]:
    if number % 2 == 0:
        kind = models.TrialValueModel.TrialValueType.FINITE
        yield {"trial_id": id, "objective": 0, "value": _perplexity(number, EPOCHS), "value_type": kind}


def _attributes(number: int, id: int) -> Iterator[dict[str, Any]]:
    for key, value in (("origin", '"search"'), ("sampler", '"tpe"'), ("parameters", "387542")):
        yield {"trial_id": id, "key": key, "value_json": value}


@dataclass(frozen=True)
class Server:
    """A dashboard that listens."""

    origin: str
    process: int

    def ask(self, path: str) -> tuple[float, float]:
        """Ask once; give how many seconds it took to have all of the answer, and how many of them on a CPU."""
        began, worked = time.perf_counter(), self._cpu_seconds()
        with urllib.request.urlopen(self.origin + path, timeout=300) as answer:
            answer.read()
        return time.perf_counter() - began, self._cpu_seconds() - worked

    def _cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user and system


@contextlib.contextmanager
def server(kind: str, url: str) -> Iterator[Server]:
    """Serve a store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = {
        "plain": [str(Path(sys.executable).with_name("optuna-dashboard")), "--port", str(port), url],
        "ours": [sys.executable, "-m", "lmsearch.cli.main", "dashboard", "--port", str(port)],
    }[kind]
    environment = {name: value for name, value in os.environ.items() if name != "LMSEARCH_DASHBOARD_TOKEN"}
    process = subprocess.Popen(
        words, env=environment | {"LMSEARCH_STORAGE": url}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait(process, port)
        yield Server(f"http://127.0.0.1:{port}", process.pid)
    finally:
        process.terminate()
        process.wait()


def _wait(process: "subprocess.Popen[bytes]", port: int) -> None:
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            return
        time.sleep(0.05)
    raise SystemExit(f"nothing listens on port {port}")


def measure(kind: str, url: str, study_id: int, count: int) -> Iterator[tuple[str, str, tuple[float, float]]]:
    """Give request, moment and both kinds of seconds, for one fresh server."""
    paths = {"list of studies": "/api/studies"}
    paths |= {
        f"trials, {after}": f"/api/studies/{study_id}?after={after[6:]}" for after in ("after=0", f"after={count}")
    }
    with server(kind, url) as started:
        for name, path in paths.items():
            yield name, "cold", started.ask(path)
        for name, path in paths.items():
            yield name, "warm", medians([started.ask(path) for _ in range(3)])
        time.sleep(KEPT_SECONDS)
        yield name, "poll", started.ask(path)


def medians(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    first, second = (statistics.median(values) for values in zip(*pairs, strict=True))
    return first, second


def compare(label: str, url: str, count: int, repeats: int) -> None:
    """Make a study, measure both servers on it, and print the rows of the table."""
    parsed = parse_url(url)
    storage = open_storage(parsed, create=True)
    study_id = storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], f"polling-{secrets.token_hex(8)}")
    try:
        fill_study(storage, study_id, count)
        found: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
        for _ in range(repeats):
            for kind in SERVERS:
                for request, moment, taken in measure(kind, full_text(parsed), study_id, count):
                    found[request, moment][kind].append(taken)
    finally:
        storage.delete_study(study_id)
        storage.engine.dispose()
    for (request, moment), times in found.items():
        (plain, plain_cpu), (ours, ours_cpu) = (medians(times[kind]) for kind in SERVERS)
        row = f"{label:10}  {count:6,}  {request:19}  {moment:6}"
        row += f"  {1e3 * plain:8.0f}  {1e3 * ours:7.0f}  {1e3 * plain_cpu:9.0f}  {1e3 * ours_cpu:8.0f}"
        print(row, flush=True)


def processor() -> str:
    """Name the processor."""
    path = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", path.read_text(encoding="utf-8")) if path.exists() else None
    return named[1] if named else platform.processor()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", metavar="URL", help="a PostgreSQL to measure beside SQLite")
    parser.add_argument("--trials", type=int, nargs="+", default=[2_000, 10_000])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores of {processor()}, {datetime.date.today()}, {arguments.repeats} repeats")
    print("store       trials  request              moment  plain ms  ours ms  plain CPU  ours CPU", flush=True)
    for count in arguments.trials:
        with tempfile.TemporaryDirectory() as folder:
            compare("SQLite", f"sqlite:///{folder}/store.db", count, arguments.repeats)
        if arguments.storage:
            compare("PostgreSQL", arguments.storage, count, arguments.repeats)


if __name__ == "__main__":
    main()
