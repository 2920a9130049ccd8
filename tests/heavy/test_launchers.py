"""What holds for every launcher: real engines on this machine, a real PostgreSQL.

Rows L1 to L13 of launchers' faults, as far as they are common; those of one engine are in its own file.
"""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bureau import wait_for
from tests.factories import write_study
from tests.heavy.sites import LONG, Engine, Site, check
from tests.servers import Server

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]

ALL = pytest.mark.parametrize("engine", ["local", "slurm", "ray"], indirect=True)
"""For what holds of workers on this host too; the other tests are of workers that outlive their parent."""


@ALL
def test_a_search_is_run_by_the_engine_and_its_curves_are_those_of_this_host(
    site: Site, undisturbed: dict[str, list[float]]
) -> None:
    search = site.run(3, *(("--gpus-per-worker", "1") if site.engine.words else ()))
    assert search.wait(timeout=400) == 0, site.said(search)
    check(site, undisturbed)
    rows = site.status()["workers"]
    assert len(rows) == 3 and {row["launcher"] for row in rows} == {site.engine.kind}
    assert {row["reason"] for row in rows} == {"finished"}
    wait_for(lambda: not site.engine.left(), 60)


@ALL
def test_a_lost_node_costs_the_epoch_in_hand_and_its_trials_continue_elsewhere(
    site: Site, undisturbed: dict[str, list[float]]
) -> None:
    search = site.run(3, "--lease-seconds", "5")
    wait_for(lambda: site.epochs() > 20)
    site.engine.lose_a_node()
    try:
        assert search.wait(timeout=400) == 0, site.said(search)
    finally:
        site.engine.heal()
    check(site, undisturbed)
    assert any(ticket.attempts > 1 for ticket in site.record().tickets)
    assert "raylet" not in site.said(search)  # the engine's own words are kept out of the view


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])  # a closed terminal
def test_a_killed_parent_costs_nothing_and_run_typed_again_counts_the_workers_it_left(
    site: Site, undisturbed: dict[str, list[float]], number: int
) -> None:
    search = site.run(2)
    wait_for(lambda: site.epochs() > 5)
    os.killpg(search.pid, number)
    search.wait()
    before = sorted(row.split()[0] for row in site.engine.left())
    assert len(before) == 2
    again = site.run(2)
    wait_for(lambda: "2 workers of an earlier run are still there" in site.said(again))
    assert sorted(row.split()[0] for row in site.engine.left()) == before
    assert again.wait(timeout=400) == 0, site.said(again)
    check(site, undisturbed)


def test_detached_workers_search_alone_are_shown_and_stop_reaches_them(site: Site) -> None:
    write_study(site.folder, LONG)
    search = site.run(2, "--detach")
    assert search.wait(timeout=120) == 0 and "2 workers are queued" in site.said(search)
    wait_for(lambda: site.epochs() > 5)
    wait_for(lambda: len(site.status()["at_work"]) == 2)
    assert site.call("stop", "tiny")[0] == 0
    wait_for(lambda: not site.engine.left(), 90)
    assert [row["state"] for row in site.status()["at_work"]] == ["waiting", "waiting"]


@ALL
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_parent_saves_every_trial(site: Site, number: int) -> None:
    write_study(site.folder, LONG)
    search = site.run(2)
    wait_for(lambda: site.epochs() > 5)
    search.send_signal(number)
    wait_for(lambda: search.poll() is not None, 60)
    assert search.returncode == 128 + number, site.said(search)
    assert "logging.cc" not in site.said(search) and "SIGTERM received" not in site.said(search)
    assert "everything is saved; resume with: lmsearch run tiny.toml --workers 2" in site.said(search)
    assert {row["state"] for row in site.status()["at_work"]} == {"waiting"}


@ALL
def test_idle_workers_leave_and_come_back_for_new_trials(site: Site) -> None:
    write_study(site.folder, LONG.replace("trials = 3", "trials = 1"))
    search = site.run(2, "--idle", "3s")
    wait_for(lambda: site.epochs() > 0)
    wait_for(lambda: len(site.status()["workers"]) == 2, 120)
    wait_for(lambda: any(row["reason"] == "idle" for row in site.status()["workers"]), 60)
    assert site.call("enqueue", "tiny", "model.output_dropout=0.3")[0] == 0
    wait_for(lambda: len([row for row in site.status()["at_work"] if row["state"] == "running"]) == 2, 90)
    search.send_signal(signal.SIGINT)
    assert search.wait(timeout=120) == 130


def test_sqlite_is_refused_and_so_is_a_number_of_workers_that_nobody_gave(site: Site) -> None:
    code, said = site.call("run", "tiny.toml", "--workers", "2", *site.engine.words, LMSEARCH_STORAGE="sqlite:///x.db")
    assert code == 2 and "SQLite is for one" in said
    code, said = site.call("run", "tiny.toml", *site.engine.words)
    assert code == 2 and "number of workers with --workers" in said


def test_doctor_looks_from_inside_a_job(site: Site) -> None:
    storage = site.run(1, "--detach", "--gpus-per-worker", "1")
    assert storage.wait(timeout=120) == 0, site.said(storage)
    code, said = site.call("doctor", *site.engine.words, "--json")
    document = json.loads(said[said.index("{") :])
    nodes = [one["text"] for one in document["checks"] if one["check"] == "nodes"]
    assert any("is shared and can be written" in text for text in nodes), said
    assert any("store: " in text and " opens: " in text for text in nodes)
    code, said = site.call("doctor", *site.engine.words, "--gpus-per-worker", "1")  # these GPUs are pretended
    assert code == 1 and "GPUs a worker were asked for, and there is none" in said


@ALL
def test_a_worker_that_was_frozen_beyond_its_lease_drops_its_result(
    site: Site, undisturbed: dict[str, list[float]]
) -> None:
    """L3, as after a node that comes back while its trial runs elsewhere: only one of the two may write."""
    search = site.run(3, "--lease-seconds", "5")
    wait_for(lambda: site.epochs() > 20)
    frozen = site.status()["at_work"][0]
    os.kill(frozen["process"], signal.SIGSTOP)

    def is_elsewhere() -> bool:
        ticket = site.record().trials[frozen["trial"]].ticket
        return ticket is not None and ticket.attempts > 1

    try:
        wait_for(is_elsewhere, 120)
    finally:
        os.kill(frozen["process"], signal.SIGCONT)
    assert search.wait(timeout=400) == 0, site.said(search)
    check(site, undisturbed)
    wait_for(lambda: "what was computed here for it is dropped" in site.logs(), 60)


@ALL
def test_more_workers_than_the_database_has_connections_wait_for_one(
    tmp_path: Path, engine: Engine, start_server: Callable[..., Server], undisturbed: dict[str, list[float]]
) -> None:
    """L8: four workers and the command on a server that allows four connections."""
    limits = {"max_connections": 3, "superuser_reserved_connections": 0, "reserved_connections": 0}
    site = Site(tmp_path, engine, start_server(**limits).url)
    try:
        search = site.run(4)  # of two processors a node in Ray
        assert search.wait(timeout=500) == 0, site.said(search)
        check(site, undisturbed)
    finally:
        site.close()


@ALL
def test_chaos_reaches_the_workers_and_finds_nothing_lost(site: Site) -> None:
    code, said = site.call("chaos", "--minutes", "1", "--workers", "3", "--seed", "3", *site.engine.words)
    assert code == 0, said
    assert "kill -9 of a worker" in said and "0 lost, 0 doubled" in said
    assert all(f"{name} holds" in said for name in ("I1", "I2", "I3", "I4", "I5"))
