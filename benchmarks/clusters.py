"""Searches on clusters that this machine pretends to be: two nodes of Slurm, three of Ray, PostgreSQL and S3.

    python benchmarks/clusters.py lost-node        # 24 trials on each; a node is killed in their midst
    python benchmarks/clusters.py overhead         # what a launcher costs beside `local`, with a trainer that sleeps

It needs root, Debian's packages slurm-wlm and munge, and the extras of `make heavy`: pip install '.[test,test-heavy]'.
Everything is started in folders of its own and ended afterwards.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the clusters that the tests use

from local_postgres import postgres

from lmsearch.store.opening import open_storage
from lmsearch.store.records import StudyRecord, open_study
from lmsearch.store.trials import read_study
from lmsearch.store.url import parse_url
from tests.bureau import wait_for
from tests.factories import TINY_STUDY, write_study
from tests.heavy.ray_cluster import RayCluster
from tests.heavy.s3_server import S3Server
from tests.heavy.sites import Engine, Site, curves
from tests.heavy.slurm_cluster import SlurmCluster
from tests.heavy.this_host import ThisHost

TRIALS, EPOCHS = 24, 60
STUDY = TINY_STUDY.replace("trials = 3", f"trials = {TRIALS}").replace("epochs = 3", f"epochs = {EPOCHS}")
SLEEPING = TINY_STUDY.replace("trials = 3", "trials = 64").replace("epochs = 3", "epochs = 8")
WORKERS, RUNS = 16, 3

_RUN = """
import sys
from lmsearch.launch import search
words = search.worker_words
search.worker_words = lambda prepared, device: [*words(prepared, device), "--trainer", "sleep"]
from lmsearch.cli.main import main
main(sys.argv[1:])
"""


def new_database(server: str, name: str) -> str:
    import psycopg

    with psycopg.connect(server.format("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return server.format(name)


@contextlib.contextmanager
def engine(kind: str, cpus: int) -> Iterator[Engine]:
    """Start a cluster of two nodes that work, with so many processors each."""
    if kind == "slurm":
        with tempfile.TemporaryDirectory(prefix="slurm", dir="/tmp") as folder:
            slurm = SlurmCluster(Path(folder), cpus)
            try:
                slurm.open()
                yield slurm
            finally:
                slurm.close()
    else:
        ray = RayCluster(cpus)
        try:
            yield ray
        finally:
            ray.close()


# A search whose node is lost.


def lost_node(kind: str, server: str, s3: S3Server, folder: Path) -> bool:
    """Run 24 trials, kill a node when a third of the epochs are there, and print what is left of it."""
    with engine(kind, 2) as cluster:
        site = Site(folder, cluster, new_database(server, f"lost_{kind}"))
        write_study(folder, STUDY)
        os.environ.update(s3.environment | {"LMSEARCH_ARTIFACTS": f"{s3.url}/{kind}"})
        try:
            command = ("run", "tiny.toml", "--workers", "4", "--lease-seconds", "5", *cluster.words)
            print(f"\n== {kind}: lmsearch {' '.join(command)}", flush=True)
            began = time.monotonic()
            search = site.start(*command)
            wait_for(lambda: site.epochs() > TRIALS * EPOCHS / 3, 300)
            print(f"-- {time.monotonic() - began:.0f} s: a node is killed, with its workers", flush=True)
            cluster.lose_a_node()
            code = search.wait(timeout=580)
            cluster.heal()
            print(f"-- {time.monotonic() - began:.0f} s: exit code {code}; the last screen:", flush=True)
            print("\n".join(site.said(search).splitlines()[-24:]), flush=True)
            record = site.record()
            moved = sum(ticket.attempts > 1 for ticket in record.tickets)
            exact = record.done == record.total == len(record.trials) == TRIALS
            whole = all([row.epoch for row in trial.epochs] == list(range(1, EPOCHS + 1)) for trial in record.trials)
            same = curves(record) == undisturbed(folder.with_name("undisturbed"))
            print(f"-- {record.done} of {record.total} trials, exact: {exact}; every epoch once: {whole}; ", end="")
            print(f"{moved} trials moved; all curves bit for bit those of this host: {same}")
            objects = [name for name in s3.names() if f"/{kind}/" in name]
            print(f"-- in S3: {len(objects)} objects, {sum('/checkpoints/' in name for name in objects)} checkpoints")
            return code == 0 and exact and whole and same
        finally:
            site.close()


def undisturbed(folder: Path) -> dict[str, list[float]]:
    """Return the curves of the same study, run on this host once."""
    store = f"sqlite:///{folder}/store.db"
    if not folder.exists():
        folder.mkdir()
        write_study(folder, STUDY)
        environment = {name: value for name, value in os.environ.items() if name != "LMSEARCH_ARTIFACTS"}
        words = [sys.executable, "-m", "lmsearch.cli.main", "run", "tiny.toml", "--workers", "2", "--quiet"]
        own = {"LMSEARCH_STORAGE": store}
        subprocess.run(words, cwd=folder, env=environment | own, check=True, capture_output=True)
    storage = open_storage(parse_url(store))
    return curves(read_study(storage, open_study(storage, "tiny"), epochs=True))


# What a launcher costs.


def overhead(kind: str, cluster: Engine, server: str, folder: Path, number: int) -> tuple[float, float]:
    """Return the seconds of a trial in a worker at work, and those from the first trial's start to the last's end."""
    site = Site(folder, cluster, new_database(server, f"sleep_{kind}_{number}"))
    write_study(folder, SLEEPING)
    words = ["run", "tiny.toml", "--workers", str(WORKERS), "--device", "cpu", *cluster.words]
    environment = {"LMSEARCH_STORAGE": site.url, "LMSEARCH_CACHE": str(folder / "cache")}
    own = dict(os.environ) | cluster.environment | environment
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *words], cwd=folder, env=own, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{kind}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return seconds_of(site.record())


def seconds_of(record: StudyRecord) -> tuple[float, float]:
    """Return the median over workers of the seconds from one trial's start to the next one's, and the whole."""
    spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for trial in record.trials:
        assert trial.started is not None and trial.ended is not None and trial.ticket is not None
        spans[trial.ticket.worker or ""].append((trial.started.timestamp(), trial.ended.timestamp()))
    cycles = [
        (max(end for _, end in found) - min(start for start, _ in found)) / len(found) for found in spans.values()
    ]
    everything = [time for found in spans.values() for span in found for time in span]
    return statistics.median(cycles), max(everything) - min(everything)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["lost-node", "overhead"])
    parser.add_argument("--engines", nargs="+", default=["slurm", "ray"], choices=["slurm", "ray"])
    given = parser.parse_args()
    fine = True
    with postgres() as server, tempfile.TemporaryDirectory(prefix="clusters", dir="/tmp") as name:
        folder = Path(name)
        if given.what == "lost-node":
            s3 = S3Server(folder)
            try:
                for kind in given.engines:
                    (folder / kind).mkdir()
                    fine &= lost_node(kind, server, s3, folder / kind)
            finally:
                s3.close()
            return int(not fine)
        found: dict[str, list[tuple[float, float]]] = {}
        with contextlib.ExitStack() as stack:
            engines: dict[str, Engine] = {"local": ThisHost(folder)}
            for kind in given.engines:
                engines[kind] = stack.enter_context(engine(kind, WORKERS // 2))
            for number in range(RUNS):
                for kind, cluster in engines.items():
                    place = folder / f"{kind}-{number}"
                    place.mkdir()
                    found.setdefault(kind, []).append(overhead(kind, cluster, server, place, number))
                    print(kind, number, *(f"{value:.2f}" for value in found[kind][-1]), flush=True)
        base = statistics.median(cycle for cycle, _ in found["local"])
        print(f"64 trials of 8 epochs of 1 s, {WORKERS} workers, median of {RUNS} runs")
        for kind, values in found.items():
            cycle, whole = (statistics.median(column) for column in zip(*values, strict=True))
            print(f"{kind:6} {cycle:6.2f} s a trial, {cycle / base:5.3f} x local; {whole:5.1f} s with the start-up")
            fine &= cycle / base <= 1.05
    return int(not fine)


if __name__ == "__main__":
    sys.exit(main())
