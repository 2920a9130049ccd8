"""What each command costs at a study of 10,000 ended trials: CPU seconds of the whole process, and peak memory.

    python benchmarks/big_study.py
    python benchmarks/big_study.py --lmsearch OTHER-PYTHON -m lmsearch.cli.main   # of another checkout, beside it

It makes the study on SQLite and on a PostgreSQL of its own, with 40 trials queued, and runs each command in a process
of its own. `best` runs where no weights are kept, so that it copies none. It exits with 1 where a command is over its
limit by more than a quarter, scaled by the machine's pace.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from contention import start_postgres  # beside this file
from dashboard_polling import EPOCHS, fill_study
from pace import pace

from lmsearch.store.opening import open_storage
from lmsearch.store.records import create_study
from lmsearch.store.tables import EPOCH, TICKET
from lmsearch.store.url import parse_url
from lmsearch.study.reading import parse_study

STUDY = """
format = 1
[study]
trials = 10040
[data]
corpus = "python-docs"
min_count = 3
[model]
output_dropout = { low = 0.0, high = 0.7 }
input_dropout = { low = 0.0, high = 0.7 }
weight_dropout = { low = 0.0, high = 0.7 }
tie_weights = { choices = [true, false] }
hidden_size = { low = 50, high = 650, step = 50 }
[train]
learning_rate = { low = 1e-4, high = 3e-2, log = true }
batch_size = { low = 10, high = 80, step = 10 }
epochs = 8
"""

COMMANDS = {
    "status": ["status", "big"],
    "studies": ["studies"],
    "show": ["show", "big", "7"],
    "best": ["best", "big"],
    "trials": ["trials", "big"],
    "trials --limit 5": ["trials", "big", "--sort", "perplexity", "--limit", "5"],
    "report": ["report", "big"],
    "compare": ["compare", "big"],
    "doctor": ["doctor"],
    "enqueue": ["enqueue", "big", "model.output_dropout=0.1"],
    "stop": ["stop", "big"],
}


def make(url: str, folder: Path, trials: int, queued: int) -> None:
    storage = open_storage(parse_url(url), create=True)
    spec = parse_study(STUDY, folder)
    info = create_study(storage, "big", spec, str(folder), "python-docs of Python 3.11", "ab" * 8, 10_000)
    fill_study(storage, info.ref.id, trials)
    with storage.transaction() as session:
        rows = session.execute(sa.text("SELECT trial_id, number FROM trials ORDER BY number")).all()
        tickets = [
            {"study_key": info.ref.key, "study_id": info.ref.id, "number": number, "batch": "b", "origin": "search",
             "sampler": "tpe", "pruner": "median", "fixed": {}, "state": "done" if number < trials else "open",
             "trial_id": rows[number][0] if number < trials else None,
             "trial_number": number if number < trials else None, "lease": int(number < trials),
             "attempts": 1, "epoch": EPOCHS, "step": 100}
            for number in range(trials + queued)
        ]  # fmt: skip
        session.execute(sa.insert(TICKET), tickets)
        epochs = [
            {"study_key": info.ref.key, "study_id": info.ref.id, "trial_number": number, "trial_id": trial_id,
             "epoch": epoch, "train_loss": 4.0, "valid_loss": 4.1, "seconds": 5.0, "tokens": 100_000,
             "learning_rate": 0.002}
            for trial_id, number in rows
            for epoch in range(1, 1 + (3 if number % 2 else EPOCHS))
        ]  # fmt: skip
        session.execute(sa.insert(EPOCH), epochs)
    storage.engine.dispose()


def measure(command: list[str], folder: Path, url: str) -> dict[str, Any]:
    environment = os.environ | {"LMSEARCH_STORAGE": url, "LMSEARCH_CACHE": str(folder / "cache")}
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    complained = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    return {
        "exit": os.waitstatus_to_exitcode(status),
        "cpu": used.ru_utime + used.ru_stime,
        "wall": time.perf_counter() - began,
        "mb": used.ru_maxrss / 1024,
        "said": complained.decode()[-200:],
    }


LIMITS = {  # CPU seconds, megabytes of memory
    "status": (1.5, 250), "studies": (1.5, 250), "show": (1.5, 250), "best": (1.5, 250), "trials": (2.5, None),
    "report": (10.0, None),
}  # fmt: skip
PAGE_MB, LOOK_MS = 15.0, 50.0
SLACK = 1.25  # a limit is exceeded from here on: the same run differs by as much


def look(url: str) -> str:
    """Measure the look that the parent of a search takes each second."""
    code = (
        "import sys, time\n"
        "from lmsearch.store.opening import open_storage; from lmsearch.store.url import parse_url\n"
        "from lmsearch.store import records\n"
        "from lmsearch.terminal.live import live_notes; from lmsearch.results.progress import count_line\n"
        "storage = open_storage(parse_url(sys.argv[1])); info = records.open_study(storage, 'big')\n"
        "try: from lmsearch.store.trials import StudyReader as make\n"
        "except ImportError: make = None\n"
        "reader = make(storage, info) if make else None\n"
        "study = None if make else records.optuna_study(storage, 'big')\n"
        "def look():\n"
        "    record = reader.read() if make else records.read_study(storage, info, study)\n"
        "    count_line(record); live_notes(record); return record\n"
        "look(); look(); began = time.process_time()\n"
        "for _ in range(5): look()\n"
        "print(1e3 * (time.process_time() - began) / 5)\n"
    )
    return subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, check=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--only", nargs="*", default=list(COMMANDS), help="these commands")
    parser.add_argument("--sqlite-only", action="store_true")
    parser.add_argument("--lmsearch", nargs=argparse.REMAINDER, help="the command to measure")
    args = parser.parse_args()
    lmsearch = args.lmsearch or [sys.executable, "-m", "lmsearch.cli.main"]
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    stores = {"SQLite": f"sqlite:///{folder}/big.db"}
    if not args.sqlite_only:
        stores["PostgreSQL"] = start_postgres(folder)
    slower = pace()
    print(f"a plain loop takes {slower:.2f} times as long as where the limits were set; they are scaled by it")
    over: list[str] = []
    for kind, url in stores.items():
        make(url, folder, args.trials, 40)
        print(f"\n{kind}, {args.trials:,} ended trials\n{'command':18} {'CPU s':>7} {'wall s':>7} {'MB':>6}  exit")
        for name in args.only:
            measured = measure([*lmsearch, *COMMANDS[name]], folder, url)
            print(
                f"{name:18} {measured['cpu']:7.2f} {measured['wall']:7.2f} {measured['mb']:6.0f}  "
                f"{measured['exit']} {measured['said']}"
            )
            cpu, memory = LIMITS.get(name, (None, None))
            if cpu is not None and measured["cpu"] > SLACK * slower * cpu:
                over.append(f"{name} on {kind}: {measured['cpu']:.2f} s of CPU, {cpu} asked")
            if memory is not None and measured["mb"] > memory:
                over.append(f"{name} on {kind}: {measured['mb']:.0f} MB, {memory} asked")
            if name == "report" and (page := folder / "runs/big/report.html").exists():
                megabytes = page.stat().st_size / 1e6
                print(f"{'  its page':18} {megabytes:7.1f} MB")
                over += [f"the report's page: {megabytes:.1f} MB, {PAGE_MB} asked"] if megabytes > PAGE_MB else []
        milliseconds = float(look(url))
        print(f"a look of the parent: {milliseconds:.0f} ms of CPU")
        if milliseconds > SLACK * slower * LOOK_MS:
            over.append(f"a look on {kind}: {milliseconds:.0f} ms, {LOOK_MS:.0f} asked")
    print(json.dumps({"peak_mb_of_this_script": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))
    shutil.rmtree(folder, ignore_errors=True)
    if over and args.trials <= 10_000:
        sys.exit("over its limit: " + "; ".join(over))


if __name__ == "__main__":
    main()
