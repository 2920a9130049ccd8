"""Workers that are given two URLs and nothing else: a real PostgreSQL, a real S3 protocol, hosts that share no disk.

A host is a folder of its own with a cache of its own; what another host had is moved out of reach.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmsearch.store.opening import open_storage
from lmsearch.store.records import StudyRecord, open_study
from lmsearch.store.trials import read_study
from lmsearch.store.url import parse_url
from tests.bureau import wait_for
from tests.factories import write_study
from tests.heavy.s3_server import S3Server
from tests.heavy.sites import LONG, STUDY, curves, undisturbed_curves

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    return undisturbed_curves(tmp_path_factory.mktemp("undisturbed"))


class Hosts:
    """Hosts that share a database and a bucket, and no disk."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.s3 = S3Server(folder)
        self.started: list[subprocess.Popen[bytes]] = []
        write_study(folder / self._made("first"), STUDY)

    def _made(self, host: str) -> str:
        (self.folder / host).mkdir(exist_ok=True)
        return host

    def start(self, host: str, *words: str, **environment: str) -> "subprocess.Popen[bytes]":
        folder = self.folder / self._made(host)
        own = {"LMSEARCH_STORAGE": self.url, "LMSEARCH_ARTIFACTS": self.s3.url, "LMSEARCH_CACHE": str(folder / "cache")}
        with (folder / "said.txt").open("ab") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "lmsearch.cli.main", *words],
                cwd=folder,
                env=dict(os.environ) | self.s3.environment | own | environment,
                stdout=said,
                stderr=subprocess.STDOUT,
            )
        self.started.append(process)
        return process

    def call(self, host: str, *words: str, **environment: str) -> tuple[int, str]:
        before = len(self.said(host))
        return self.start(host, *words, **environment).wait(timeout=300), self.said(host)[before:]

    def said(self, host: str) -> str:
        path = self.folder / host / "said.txt"
        return path.read_text() if path.exists() else ""

    def lose(self, host: str) -> None:
        """Take a host's disk away."""
        shutil.move(self.folder / host, self.folder / f"lost-{host}")

    def record(self) -> StudyRecord:
        storage = open_storage(parse_url(self.url))
        try:
            return read_study(storage, open_study(storage, "tiny"), epochs=True)
        finally:
            storage.engine.dispose()

    def epochs(self) -> int:
        try:
            return sum(len(trial.epochs) for trial in self.record().trials)
        except Exception:  # it is not created yet
            return 0

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()
        self.s3.close()


@pytest.fixture
def hosts(tmp_path: Path, postgres_url: str) -> Iterator[Hosts]:
    found = Hosts(tmp_path, postgres_url)
    yield found
    found.close()


def test_a_worker_with_an_empty_disk_and_two_urls_ends_a_trial_that_began_elsewhere(
    hosts: Hosts, undisturbed: dict[str, list[float]]
) -> None:
    search = hosts.start("first", "run", "tiny.toml", "--workers", "1")
    wait_for(lambda: hosts.epochs() > 30)
    search.send_signal(signal.SIGINT)
    assert search.wait(timeout=60) == 130, hosts.said("first")
    before = hosts.record().trials
    hosts.lose("first")
    assert hosts.start("second", "worker", "tiny").wait(timeout=300) == 0, hosts.said("second")
    record = hosts.record()
    assert record.done == record.total == 6 and {trial.outcome for trial in record.trials} == {"complete"}
    assert curves(record) == undisturbed
    continued = next(trial for trial in record.trials if trial.number == before[-1].number)
    assert continued.epochs[: len(before[-1].epochs)] == before[-1].epochs  # not one was trained again
    hosts.lose("second")
    code, said = hosts.call("third", "best", "tiny")
    assert code == 0 and (hosts.folder / "third/runs/tiny/best-model/model.safetensors").exists(), said
    code, said = hosts.call("third", "test", "tiny")  # which fetches the text too
    assert code == 0 and "test perplexity" in said, said
    names = hosts.s3.names()
    key = record.info.ref.key
    assert sorted(name for name in names if "/models/" not in name) == sorted(
        [f"lm/{key}/results/{name}" for name in ("best-config.json", "study.toml", "trials.csv")]
        + [f"lm/corpora/{record.info.fingerprint}.zip"]
    )
    assert len([name for name in names if "/models/" in name]) == 3  # of the best three
    assert hosts.call("third", "delete", "tiny", "--yes")[0] == 0
    assert hosts.s3.names() == [f"lm/corpora/{record.info.fingerprint}.zip"]


def test_an_outage_of_the_bucket_costs_one_warning_a_trial_and_no_epoch(
    hosts: Hosts, undisturbed: dict[str, list[float]]
) -> None:
    search = hosts.start("first", "run", "tiny.toml", "--workers", "1", "--quiet")
    wait_for(lambda: hosts.epochs() > 30)
    hosts.s3.cut()
    since = hosts.epochs()
    wait_for(lambda: hosts.epochs() > since + 4)  # training goes on
    hosts.s3.mend()
    assert search.wait(timeout=300) == 0, hosts.said("first")
    logs = "".join(path.read_text() for path in (hosts.folder / "first/runs/tiny/logs").glob("*.log"))
    warned = re.findall(r"cannot be written.*; training continues without new checkpoints", logs)
    assert 1 <= len(warned) <= 2, logs
    assert curves(hosts.record()) == undisturbed and "Traceback" not in logs


def test_a_checkpoint_that_cannot_be_reached_is_waited_for(hosts: Hosts, undisturbed: dict[str, list[float]]) -> None:
    search = hosts.start("first", "run", "tiny.toml", "--workers", "1")
    wait_for(lambda: hosts.epochs() > 30)
    search.send_signal(signal.SIGINT)
    assert search.wait(timeout=60) == 130
    shutil.copytree(hosts.folder / "first/corpus", hosts.folder / hosts._made("second") / "corpus")
    hosts.lose("first")
    hosts.s3.cut()
    corpus = str(hosts.folder / "second/corpus")
    worker = hosts.start("second", "worker", "tiny", "--corpus", corpus)
    wait_for(lambda: "waiting for a checkpoint" in hosts.said("second"))
    code, said = hosts.call("third", "worker", "tiny", "--corpus", corpus, "--store-timeout", "3s")
    assert code == 75 and "cannot be" in said, said
    hosts.s3.mend()
    assert worker.wait(timeout=300) == 0, hosts.said("second")
    assert curves(hosts.record()) == undisturbed
    assert "starts again with the same values" not in hosts.said("second")


def test_doctor_tells_what_is_wrong_with_the_artifacts(hosts: Hosts) -> None:
    def checks(*words: str, **environment: str) -> list[dict[str, Any]]:
        said = hosts.call("first", "doctor", "--json", *words, **environment)[1]
        document = json.loads(said[said.index("{") :])
        return [one for one in document["checks"] if one["check"] == "artifacts"]

    (fine,) = checks()
    assert fine["state"] == "ok" and "can be written, read and cleaned" in fine["text"]
    (missing,) = checks("--artifacts", "s3://no-such-bucket/x")
    assert missing["state"] == "problem" and "s3://no-such-bucket/x/probe-" in missing["text"]
    hosts.s3.cut()
    (away,) = checks()
    assert away["state"] == "problem" and "workers cannot share files there" in away["text"]
    hosts.s3.mend()
    assert hosts.s3.names() == []


def test_objects_of_ended_trials_are_swept_by_doctor(hosts: Hosts) -> None:
    write_study(hosts.folder / "first", LONG.replace("trials = 3", "trials = 1"))
    search = hosts.start("first", "run", "tiny.toml", "--workers", "1")
    wait_for(lambda: hosts.epochs() > 5)
    search.kill()
    search.wait()
    assert hosts.call("second", "fail", "tiny", "0")[0] == 0
    code, said = hosts.call("second", "doctor")
    left = re.search(r"tiny: (\d+) objects of ended trials in s3", said)
    assert code == 1 and left is not None and int(left[1]) >= 2, said
    assert "repaired" in hosts.call("second", "doctor", "--repair")[1]
    assert [name for name in hosts.s3.names() if "corpora" not in name and "results" not in name] == []
