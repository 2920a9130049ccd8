"""What Ray alone can do: parts of GPUs, clusters that do not answer, versions that differ."""

import json
import os
import shlex
import socket
import subprocess
import sys
import time

import pytest

from tests.bureau import wait_for
from tests.factories import write_study
from tests.heavy.ray_cluster import RayCluster
from tests.heavy.sites import LONG, Site, check

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]


@pytest.fixture
def engine(ray_cluster: RayCluster) -> RayCluster:
    return ray_cluster


def test_workers_share_gpus_and_those_without_room_wait(site: Site) -> None:
    write_study(site.folder, LONG)
    search = site.run(6, "--gpus-per-worker", "0.5", "--detach")
    assert search.wait(timeout=120) == 0, site.said(search)
    wait_for(lambda: len(site.engine.left()) == 6)
    wait_for(lambda: len(site.status()["workers"]) == 4, 120)  # two nodes of two processors
    assert len(site.engine.left()) == 6


@pytest.mark.parametrize("way", ["nobody", "silent", "none"])
def test_a_cluster_that_does_not_answer_is_one_sentence_within_20_s(site: Site, way: str) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    if way == "nobody":
        listening.close()
    address = [] if way == "none" else ["--launcher-option", f"address=127.0.0.1:{port}"]
    began = time.monotonic()
    code, said = site.call("run", "tiny.toml", "--workers", "1", "--launcher", "ray", *address)
    assert code == 2 and time.monotonic() - began < 40, said
    assert "Traceback" not in said and len(said.splitlines()) < 12
    wanted = {
        "nobody": "no Ray cluster answers at",
        "silent": "did not answer within 15 s",
        "none": "name the Ray cluster",
    }
    assert wanted[way] in said
    listening.close()


def test_the_killed_process_of_an_actor_is_another_worker_which_continues(site: Site) -> None:
    write_study(site.folder, LONG)
    search = site.run(1, "--lease-seconds", "5")
    wait_for(lambda: site.epochs() > 5)
    before = site.status()["at_work"][0]
    os.kill(before["process"], 9)
    wait_for(lambda: site.status()["at_work"][0]["process"] not in (None, before["process"]), 90)
    search.kill()
    after = site.status()["at_work"][0]
    assert after["attempts"] == 2 and after["epoch"] >= before["epoch"]


def test_a_host_that_is_no_node_reaches_the_cluster_by_its_client_server(
    site: Site, ray_cluster: RayCluster, undisturbed: dict[str, list[float]]
) -> None:
    search = site.start(
        "run", "tiny.toml", "--workers", "2", "--launcher", "ray", "--launcher-option", f"address={ray_cluster.client}"
    )
    assert search.wait(timeout=400) == 0, site.said(search)
    check(site, undisturbed)
    assert {row["launcher"] for row in site.status()["workers"]} == {"ray"}


def test_a_submitted_job_runs_a_search_on_the_cluster_that_it_is_in(
    site: Site, ray_cluster: RayCluster, undisturbed: dict[str, list[float]]
) -> None:
    variables = {"LMSEARCH_STORAGE": site.url, "LMSEARCH_CACHE": str(site.folder / "cache")}
    lmsearch = shlex.join([sys.executable, "-m", "lmsearch.cli.main", "run", "tiny.toml", "--workers", "2"])
    words = ["ray", "job", "submit", "--address", ray_cluster.jobs, "--runtime-env-json"]
    words += [json.dumps({"env_vars": variables}), "--", "bash", "-c"]
    words += [f"cd {shlex.quote(str(site.folder))} && {lmsearch} --launcher ray"]
    said = subprocess.run(words, capture_output=True, text=True, check=False, timeout=400)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "tiny: 6 of 6 trials, 6 complete" in said.stdout
    check(site, undisturbed)
