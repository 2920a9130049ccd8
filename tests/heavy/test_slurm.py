"""What Slurm alone can do: time limits, a controller that restarts, jobs that wait, scripts."""

import time

import pytest

from tests.bureau import wait_for
from tests.factories import write_study
from tests.heavy.sites import LONG, Site, check
from tests.heavy.slurm_cluster import SlurmCluster

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]


@pytest.fixture
def engine(slurm: SlurmCluster) -> SlurmCluster:
    return slurm


def test_a_time_limit_saves_the_trial_and_the_job_is_queued_again(
    site: Site, slurm: SlurmCluster, undisturbed: dict[str, list[float]]
) -> None:
    """The limit's own signal, as Slurm sends it before the limit."""
    search = site.run(2)
    wait_for(lambda: site.epochs() > 20)
    task = slurm.left()[0].split()[0]
    slurm.run("scancel", "--batch", "--signal=USR1", task)
    wait_for(lambda: "saved and requeued" in site.logs(), 30)
    wait_for(lambda: f"{task} PENDING" in slurm.left(), 30)  # Slurm starts it again after two minutes
    assert search.wait(timeout=400) == 0, site.said(search)
    check(site, undisturbed)


def test_a_restarted_controller_is_waited_for(
    site: Site, slurm: SlurmCluster, undisturbed: dict[str, list[float]]
) -> None:
    search = site.run(2)
    wait_for(lambda: site.epochs() > 5)
    slurm.kill_controller()
    time.sleep(5)
    slurm.start_controller()
    assert search.wait(timeout=400) == 0, site.said(search)
    assert "died" not in site.said(search)
    check(site, undisturbed)


def test_a_job_that_waits_is_shown_with_its_reason_and_a_refused_one_is_one_sentence(
    site: Site, slurm: SlurmCluster
) -> None:
    refused = site.run(2, "--gpus-per-worker", "9")
    assert refused.wait(timeout=60) != 0
    assert "sbatch failed" in site.said(refused) and "Traceback" not in site.said(refused)
    busy = site.run(6, "--detach", "--gpus-per-worker", "1")
    assert busy.wait(timeout=60) == 0, site.said(busy)
    wait_for(lambda: sum("PENDING" in row for row in slurm.left()) >= 2, 60)
    assert "waiting in Slurm: 2 workers (Resources" in site.call("status", "tiny")[1].replace("Priority", "Resources")


def test_a_store_that_the_nodes_cannot_reach_ends_the_search_with_its_name(site: Site, slurm: SlurmCluster) -> None:
    write_study(site.folder, LONG)
    assert site.run(1, "--detach").wait(timeout=60) == 0
    wait_for(lambda: site.epochs() > 0)
    assert site.call("stop", "tiny")[0] == 0
    wait_for(lambda: not slurm.left(), 60)
    path = site.folder / "away.toml"
    path.write_text('kind = "slurm"\nsetup = ["export LMSEARCH_STORAGE=postgresql://me@127.0.0.1:9/x"]\n')
    words = ("run", "tiny.toml", "--workers", "1", "--launcher", str(path), "--store-timeout", "3s")
    code, said = site.call(*words)
    assert code == 75 and "127.0.0.1" in said and "Traceback" not in said


def test_the_printed_script_can_be_submitted_and_its_workers_are_counted(
    site: Site, slurm: SlurmCluster, undisturbed: dict[str, list[float]]
) -> None:
    write_study(site.folder, LONG)
    first = site.run(1, "--detach")
    assert first.wait(timeout=60) == 0, site.said(first)
    wait_for(lambda: site.epochs() > 0)
    code, text = site.call("script", "slurm", "tiny", "--workers", "2")
    assert code == 0
    (site.folder / "workers.sbatch").write_text(text)
    slurm.run("env", f"LMSEARCH_STORAGE={site.url}", "sbatch", str(site.folder / "workers.sbatch"))
    wait_for(lambda: len(site.status()["at_work"]) == 3, 60)
