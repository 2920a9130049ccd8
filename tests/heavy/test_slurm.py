"""Searches whose workers Slurm places: a real Slurm with two nodes on this machine, and a real PostgreSQL."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmsearch.store.opening import open_storage
from lmsearch.store.records import StudyRecord, open_study
from lmsearch.store.trials import read_study
from lmsearch.store.url import parse_url
from tests.bureau import wait_for
from tests.factories import TINY_STUDY, write_study
from tests.slurm import SlurmCluster

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]
LONG = TINY_STUDY.replace("epochs = 3", "epochs = 4000")
STUDY = TINY_STUDY.replace("trials = 3", "trials = 6").replace("epochs = 3", "epochs = 120")


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmCluster]:
    with tempfile.TemporaryDirectory(prefix="slurm", dir="/tmp") as folder:  # paths of sockets are short
        cluster = SlurmCluster(Path(folder))
        try:
            cluster.open()
            yield cluster
        finally:
            cluster.close()


class Site:
    """A folder that all nodes see, with a study, and the commands run in it."""

    def __init__(self, folder: Path, slurm: SlurmCluster, url: str) -> None:
        self.folder = folder
        self.slurm = slurm
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
                    env=dict(os.environ) | self.slurm.environment | own,
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

    def queue(self) -> list[str]:
        return self.slurm.run("squeue", "--array", "--noheader", "--format=%i %T").splitlines()

    def logs(self) -> str:
        return "".join(path.read_text() for path in sorted((self.folder / "runs/tiny/logs").glob("*.log")))

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()
        self.slurm.run("scancel", "--me", "--signal=KILL", "--full")
        self.slurm.run("scancel", "--me")
        wait_for(lambda: not self.queue(), 60)


@pytest.fixture
def site(tmp_path: Path, slurm: SlurmCluster, postgres_url: str) -> Iterator[Site]:
    found = Site(tmp_path, slurm, postgres_url)
    yield found
    found.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """Give the curves of the same configurations, trained on this host by nobody that was stopped."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_study(folder, STUDY)
    environment = dict(os.environ) | {"LMSEARCH_STORAGE": f"sqlite:///{folder}/store.db"}
    command = [sys.executable, "-m", "lmsearch.cli.main", "run", "tiny.toml", "--workers", "2", "--quiet"]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    storage = open_storage(parse_url(environment["LMSEARCH_STORAGE"]))
    return curves(read_study(storage, open_study(storage, "tiny"), epochs=True))


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


def test_a_search_is_run_by_slurms_jobs_and_its_curves_are_those_of_this_host(
    site: Site, undisturbed: dict[str, list[float]]
) -> None:
    code, said = site.call("run", "tiny.toml", "--workers", "3", "--launcher", "slurm", "--gpus-per-worker", "1")
    assert code == 0, said
    check(site, undisturbed)
    rows = site.status()["workers"]
    assert len(rows) == 3 and {row["launcher"] for row in rows} == {"slurm"}
    assert {row["reason"] for row in rows} == {"finished"} and not site.queue()


def test_a_killed_node_costs_the_epoch_in_hand_and_its_job_goes_on_elsewhere(
    site: Site, undisturbed: dict[str, list[float]]
) -> None:
    search = site.start("run", "tiny.toml", "--workers", "3", "--launcher", "slurm", "--lease-seconds", "5")
    wait_for(lambda: site.epochs() > 20)
    node = site.slurm.run("squeue", "--array", "--noheader", "--format=%N").split()[0]
    site.slurm.kill_node(node)
    try:
        assert search.wait(timeout=400) == 0, site.said(search)
    finally:
        site.slurm.start_node(node)
    check(site, undisturbed)
    assert any(ticket.attempts > 1 for ticket in site.record().tickets)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])  # a closed terminal
def test_a_killed_parent_costs_nothing_and_run_typed_again_counts_the_workers_it_left(
    site: Site, undisturbed: dict[str, list[float]], number: int
) -> None:
    search = site.start("run", "tiny.toml", "--workers", "2", "--launcher", "slurm")
    wait_for(lambda: site.epochs() > 5)
    os.killpg(search.pid, number)
    search.wait()
    before = sorted(row.split()[0] for row in site.queue())
    assert len(before) == 2
    again = site.start("run", "tiny.toml", "--workers", "2", "--launcher", "slurm")
    wait_for(lambda: "2 workers of an earlier run are still there" in site.said(again))
    assert sorted(row.split()[0] for row in site.queue()) == before
    assert again.wait(timeout=400) == 0
    check(site, undisturbed)


def test_detached_workers_search_alone_are_shown_and_stop_reaches_them(site: Site) -> None:
    write_study(site.folder, LONG)
    code, said = site.call("run", "tiny.toml", "--workers", "2", "--launcher", "slurm", "--detach")
    assert code == 0 and "2 workers are queued" in said
    wait_for(lambda: site.epochs() > 5)
    assert len(site.status()["at_work"]) == 2
    assert site.call("stop", "tiny")[0] == 0
    wait_for(lambda: not site.queue(), 60)
    at_work = site.status()["at_work"]
    assert {row["state"] for row in at_work} == {"waiting"} and len(at_work) == 2


def test_a_time_limit_saves_the_trial_and_the_job_is_queued_again(
    site: Site, undisturbed: dict[str, list[float]]
) -> None:
    """The limit's own signal, as Slurm sends it before the limit."""
    search = site.start("run", "tiny.toml", "--workers", "2", "--launcher", "slurm")
    wait_for(lambda: site.epochs() > 20)
    task = site.queue()[0].split()[0]
    site.slurm.run("scancel", "--batch", "--signal=USR1", task)
    wait_for(lambda: "saved and requeued" in site.logs(), 30)
    wait_for(lambda: f"{task} PENDING" in site.queue(), 30)  # Slurm starts it again after two minutes
    assert search.wait(timeout=400) == 0
    check(site, undisturbed)


def test_a_restarted_controller_is_waited_for(site: Site, undisturbed: dict[str, list[float]]) -> None:
    search = site.start("run", "tiny.toml", "--workers", "2", "--launcher", "slurm")
    wait_for(lambda: site.epochs() > 5)
    site.slurm.kill_controller()
    time.sleep(5)
    site.slurm.start_controller()
    assert search.wait(timeout=400) == 0, site.said(search)
    assert "died" not in site.said(search)
    check(site, undisturbed)


def test_a_job_that_waits_is_shown_with_its_reason_and_a_refused_one_is_one_sentence(site: Site) -> None:
    code, said = site.call("run", "tiny.toml", "--workers", "2", "--launcher", "slurm", "--gpus-per-worker", "9")
    assert code != 0 and "sbatch failed" in said and "Traceback" not in said
    busy = site.call("run", "tiny.toml", "--workers", "6", "--launcher", "slurm", "--detach", "--gpus-per-worker", "1")
    assert busy[0] == 0, busy[1]
    wait_for(lambda: sum("PENDING" in row for row in site.queue()) >= 2, 60)
    assert "waiting in Slurm: 2 workers (Resources" in site.call("status", "tiny")[1].replace("Priority", "Resources")


def test_a_store_that_the_nodes_cannot_reach_ends_the_search_with_its_name(site: Site) -> None:
    write_study(site.folder, LONG)
    assert site.call("run", "tiny.toml", "--workers", "1", "--launcher", "slurm", "--detach")[0] == 0
    wait_for(lambda: site.epochs() > 0)
    assert site.call("stop", "tiny")[0] == 0
    wait_for(lambda: not site.queue(), 60)
    path = site.folder / "away.toml"
    path.write_text('kind = "slurm"\nsetup = ["export LMSEARCH_STORAGE=postgresql://me@127.0.0.1:9/x"]\n')
    words = ("run", "tiny.toml", "--workers", "1", "--launcher", str(path), "--store-timeout", "3s")
    code, said = site.call(*words)
    assert code == 75 and "127.0.0.1" in said and "Traceback" not in said


def test_idle_workers_leave_and_come_back_for_new_trials(site: Site) -> None:
    write_study(site.folder, LONG.replace("trials = 3", "trials = 1"))
    search = site.start("run", "tiny.toml", "--workers", "2", "--launcher", "slurm", "--idle", "3s")
    wait_for(lambda: len(site.queue()) == 2, 60)
    wait_for(lambda: len(site.queue()) == 1, 60)
    assert site.call("enqueue", "tiny", "model.output_dropout=0.3")[0] == 0
    wait_for(lambda: len(site.queue()) == 2, 60)
    search.send_signal(signal.SIGINT)
    assert search.wait(timeout=120) == 130
