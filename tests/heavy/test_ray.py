"""What Ray alone can do: parts of GPUs, clusters that do not answer, versions that differ."""

import os
import socket
import time

import pytest

from tests.bureau import wait_for
from tests.factories import write_study
from tests.heavy.ray_cluster import RayCluster
from tests.heavy.sites import LONG, Site

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
