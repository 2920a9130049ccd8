"""Searches in a folder of their own, by real worker processes whose trainer is a stub."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lmsearch.config import DataConfig
from lmsearch.launch.local import LocalLauncher, worker_environment
from lmsearch.launch.supervise import Signals, Snapshot, Supervisor
from lmsearch.search.begin import begin
from lmsearch.search.budget import Request
from lmsearch.store.opening import open_storage
from lmsearch.store.records import StudyRecord
from lmsearch.store.tables import Ticket
from lmsearch.store.tickets import list_tickets
from lmsearch.store.trials import read_study
from lmsearch.store.url import parse_url
from lmsearch.text.corpus import open_corpus
from tests import forks
from tests.factories import TINY_STUDY, make_spec, write_corpus
from tests.forks import Forked, can_fork, forking_launcher

STUB = Path(__file__).parent / "stub.py"


class Bureau:
    """A folder with a study, from which searches are run and resumed."""

    def __init__(self, folder: Path, url: str, text: str = TINY_STUDY, **request: Any) -> None:
        self.folder = folder
        self.url = url
        self.storage = open_storage(parse_url(url))
        write_corpus(folder / "corpus")
        spec = make_spec(folder, text)
        self.corpus = open_corpus(DataConfig(corpus=str(folder / "corpus")), Path(os.environ["LMSEARCH_CACHE"]))
        self.info = begin(self.storage, "tiny", spec, str(folder), self.corpus, Request(**request))
        self.signals = Signals()
        self.started: list[subprocess.Popen[bytes] | Forked] = []
        (folder / "notes").mkdir(exist_ok=True)

    def environment(self, **stub: str) -> dict[str, str]:
        notes = {"STUB_NOTES": str(self.folder / "notes"), "STUB_MARK": str(self.folder / "mark")}
        notes |= {"LMSEARCH_STORAGE": self.url}
        return dict(os.environ) | notes | {f"STUB_{name.upper()}": value for name, value in stub.items()}

    def command(self, name: str, device: str, pipe: int) -> Sequence[str]:
        words = ["--name", name, "--device", device, "--parent-pipe", str(pipe), "--lease-seconds", "1"]
        return [sys.executable, str(STUB), "tiny", *words]

    def search(
        self, workers: int, words: Sequence[str] = (), options: dict[str, Any] | None = None, **stub: str
    ) -> Iterator[Snapshot]:
        """Run workers in the bureau's folder, as `lmsearch run` does in the working folder.

        `words` are added to the workers' command line, `options` given to the supervisor.
        """
        os.chdir(self.folder)
        self.signals = Signals()
        folder = self.folder / "runs" / "tiny"

        def command(name: str, device: str, pipe: int) -> Sequence[str]:
            return [*self.command(name, device, pipe), *words]

        supervisor_options = dict(options or {})
        oom_kills = {"oom_kills": supervisor_options.pop("oom_kills")} if "oom_kills" in supervisor_options else {}
        environment = worker_environment(self.environment(**stub), self.storage.store_url)
        kind = forking_launcher(forks.shared[0]) if forks.shared and can_fork(stub) else LocalLauncher
        launcher = kind(command, folder, environment, **oom_kills)
        return Supervisor(self.storage, self.info, launcher, self.signals, **supervisor_options).run(["cpu"] * workers)

    def tickets(self) -> list[Ticket]:
        return list_tickets(self.storage, self.info.ref)

    def said_by_hand(self) -> str:
        """Give what the workers said that were started by hand."""
        return (self.folder / "by-hand.log").read_text()

    def logs(self) -> str:
        """Give what all workers of searches said."""
        return "".join(path.read_text() for path in sorted((self.folder / "runs/tiny/logs").iterdir()))

    def start_worker(self, *words: str, prefix: Sequence[str] = (), **stub: str) -> "subprocess.Popen[bytes] | Forked":
        """Start a worker by hand; `prefix` is a command that runs it."""
        command = [*prefix, sys.executable, str(STUB), "tiny", "--device", "cpu", "--lease-seconds", "1", *words]
        environment = self.environment(**stub)
        with (self.folder / "by-hand.log").open("ab") as log:
            if forks.shared and not prefix:
                started = forks.shared[0].start_worker(command, environment, log.fileno(), cwd=self.folder)
                self.started.append(started)
            else:
                self.started.append(
                    subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
                )
        return self.started[-1]

    def close(self) -> None:
        """Leave nothing running, whatever happened."""
        for process in self.started:
            process.kill()
            process.wait()

    def record(self) -> StudyRecord:
        return read_study(self.storage, self.info, epochs=True)

    def steps(self) -> list[list[int]]:
        """Give the steps that were computed, for each configuration."""
        return [list(map(int, path.read_text().split())) for path in sorted((self.folder / "notes").iterdir())]


def check_whole(record: StudyRecord, epochs: int = 3, endings: tuple[str, ...] = ("complete",)) -> None:
    """I2 and I3: every ticket is answered by exactly one ended trial, which has every epoch once and the right curve.

    The stub's loss depends on the configuration and the epoch alone, so the uninterrupted curve is known.
    """
    assert record.done == record.total == len(record.trials)
    assert sorted(ticket.trial_number or 0 for ticket in record.tickets) == list(range(record.total))
    for trial in record.trials:
        assert trial.outcome in endings
        dropout = trial.params["model.output_dropout"]
        assert isinstance(dropout, float)
        assert list(trial.curve) == [row.epoch for row in trial.epochs]
        if trial.outcome == "complete":
            assert len(trial.epochs) == epochs
        for number, row in enumerate(trial.epochs, 1):
            assert (row.epoch, row.valid_loss) == (number, 1.5 / number + dropout)


def ended(record: StudyRecord) -> dict[int, object]:
    """Give the ended trials as they stand, for I1: none is lost or changed.

    Not with their tickets, which a snapshot reads a moment before the trials.
    """
    return {
        trial.number: (trial.outcome, trial.params, trial.curve, trial.reason, trial.model, trial.started, trial.ended)
        for trial in record.trials
        if trial.ended is not None
    }


def wait_for(condition: Callable[[], Any], seconds: float = 120.0) -> None:
    """Wait until something is so; fail after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@contextlib.contextmanager
def meanwhile(act: Callable[[], object], seconds: float) -> Iterator[None]:
    """Do something again and again, so many seconds apart, until the end of the block."""
    done = threading.Event()

    def again_and_again() -> None:
        while not done.wait(seconds):
            act()

    thread = threading.Thread(target=again_and_again)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def alive(process: int) -> bool:
    """Tell whether a process is there and not merely unburied."""
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
