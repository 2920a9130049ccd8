"""What the tests of launchers share: an engine that places workers, and a folder from which searches are run on it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

from lmsearch.store.opening import open_storage
from lmsearch.store.records import StudyRecord, open_study
from lmsearch.store.trials import read_study
from lmsearch.store.url import parse_url
from tests.bureau import wait_for
from tests.factories import TINY_STUDY, write_study

LONG = TINY_STUDY.replace("epochs = 3", "epochs = 4000")
STUDY = TINY_STUDY.replace("trials = 3", "trials = 6").replace("epochs = 3", "epochs = 120")


class Engine(Protocol):
    """A cluster of at least two nodes on this machine."""

    kind: str
    words: list[str]  # the options that name it
    environment: dict[str, str]  # what its commands need

    def left(self) -> list[str]:
        """Name the workers that it has, at work or waiting."""
        ...

    def lose_a_node(self) -> None:
        """End a node that has a worker, as a power cut does."""
        ...

    def heal(self) -> None:
        """Have as many nodes as before."""
        ...

    def clear(self) -> None:
        """End all workers."""
        ...


class Site:
    """A folder that all nodes see, with a study, and the commands run in it."""

    def __init__(self, folder: Path, engine: Engine, url: str) -> None:
        self.folder = folder
        self.engine = engine
        self.url = url
        self.started: list[subprocess.Popen[bytes]] = []
        write_study(folder, STUDY)

    def start(self, *words: str, **environment: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "lmsearch.cli.main", *words]
        own = {"LMSEARCH_STORAGE": self.url, "LMSEARCH_CACHE": str(self.folder / "cache"), **environment}
        with self.said_file(len(self.started)).open("wb") as said:
            self.started.append(
                subprocess.Popen(
                    command,
                    cwd=self.folder,
                    env=dict(os.environ) | self.engine.environment | own,
                    stdout=said,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        return self.started[-1]

    def said_file(self, number: int) -> Path:
        return self.folder / f"said-{number}.txt"

    def said(self, process: "subprocess.Popen[bytes]") -> str:
        return self.said_file(self.started.index(process)).read_text()

    def call(self, *words: str, **environment: str) -> tuple[int, str]:
        started = self.start(*words, **environment)
        return started.wait(timeout=400), self.said(started)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.call("status", "tiny", "--json")[1])
        return found

    def record(self, name: str = "tiny") -> StudyRecord:
        storage = open_storage(parse_url(self.url))
        try:
            return read_study(storage, open_study(storage, name), epochs=True)
        finally:
            storage.engine.dispose()

    def epochs(self) -> int:
        try:
            return sum(len(trial.epochs) for trial in self.record().trials)
        except Exception:  # it is not created yet
            return 0

    def run(self, workers: int, *words: str) -> "subprocess.Popen[bytes]":
        """Start `lmsearch run` with so many workers on the engine."""
        return self.start("run", "tiny.toml", "--workers", str(workers), *self.engine.words, *words)

    def logs(self) -> str:
        return "".join(path.read_text() for path in sorted((self.folder / "runs/tiny/logs").glob("*.log")))

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()
        self.engine.clear()
        wait_for(lambda: not self.engine.left(), 60)


def curves(record: StudyRecord) -> dict[str, list[float]]:
    return {
        json.dumps(trial.params, sort_keys=True): [row.valid_loss for row in trial.epochs] for trial in record.trials
    }


def check(site: Site, undisturbed: dict[str, list[float]]) -> None:
    """I1 to I3: each ticket is answered once, each epoch is there once, and each curve is the undisturbed one."""
    record = site.record()
    assert record.done == record.total == len(record.trials) == 6
    assert {trial.outcome for trial in record.trials} == {"complete"}
    for trial in record.trials:
        assert [row.epoch for row in trial.epochs] == list(range(1, 121))
    assert curves(record) == undisturbed


def undisturbed_curves(folder: Path) -> dict[str, list[float]]:
    """Return the curves of the same configurations, trained on this host by nobody that was stopped."""
    write_study(folder, STUDY)
    environment = dict(os.environ) | {"LMSEARCH_STORAGE": f"sqlite:///{folder}/store.db"}
    command = [sys.executable, "-m", "lmsearch.cli.main", "run", "tiny.toml", "--workers", "2", "--quiet"]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    storage = open_storage(parse_url(environment["LMSEARCH_STORAGE"]))
    return curves(read_study(storage, open_study(storage, "tiny"), epochs=True))
