"""Rows 16 to 19 of docs/reliability.md: many at once, changed files, and clocks that are wrong."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from lmsearch.store.opening import open_storage
from lmsearch.store.records import open_study
from lmsearch.store.trials import read_study
from lmsearch.store.url import parse_url
from tests.bureau import Bureau, check_whole, wait_for
from tests.conftest import Cli
from tests.factories import TINY_STUDY, write_corpus, write_study

ONCE = list(range(1, 16))  # the steps of a trial of the stub's


@pytest.mark.heavy_on("sqlite")
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_row_16_two_searches_from_two_folders_share_one_budget(
    cli: Cli, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """I2; they begin on a database that neither has seen before."""
    url = f"sqlite:///{tmp_path}/shared.db" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    said: dict[str, subprocess.CompletedProcess[str]] = {}

    def search(name: str) -> None:
        write_study(tmp_path / name, TINY_STUDY.replace("trials = 3", "trials = 8"))
        words = ["run", "tiny.toml", "--workers", "2", "--storage", url]
        said[name] = cli(*words, cwd=tmp_path / name)

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    threads = [threading.Thread(target=search, args=[name]) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.returncode for one in said.values()] == [0, 0], said
    storage = open_storage(parse_url(url))
    record = read_study(storage, open_study(storage, "tiny"), epochs=True)
    assert record.done == record.total == len(record.trials) == record.count("complete") == 8
    assert sorted(ticket.trial_number or 0 for ticket in record.tickets) == list(range(8))
    assert all([row.epoch for row in trial.epochs] == [1, 2, 3] for trial in record.trials)
    bests = {
        json.loads((tmp_path / name / "runs/tiny/best-config.json").read_text())["result"]["perplexity"]
        for name in said
    }
    assert len(bests) == 1


@pytest.mark.heavy_on("postgresql")
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_row_16_sixteen_processes_open_a_fresh_database_at_once(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/new/fresh.db" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    program = f"""
import sys, time
from lmsearch.store.opening import open_storage
from lmsearch.store.url import parse_url
from lmsearch.store.outages import WaitUpTo
print("ready", flush=True)
sys.stdin.readline()
storage = open_storage(parse_url({url!r}), create=True, patience=WaitUpTo(60))
print(len(storage.get_all_studies()))
"""
    command = [sys.executable, "-c", program]
    openers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(16)
    ]
    for opener in openers:
        assert opener.stdout is not None and opener.stdout.readline() == "ready\n"
    for opener in openers:
        assert opener.stdin is not None
        opener.stdin.write("go\n")
        opener.stdin.flush()
    ends = [opener.communicate(timeout=120) for opener in openers]
    assert [opener.returncode for opener in openers] == [0] * 16, [said for _, said in ends if said]
    assert {said for said, _ in ends} == {"0\n"}


def test_row_17_a_changed_space_is_refused_with_a_command_that_starts_from_it(cli: Cli, tmp_path: Path) -> None:
    """I1: the study stays as it is, and the printed command is typed as it stands."""
    write_study(tmp_path, TINY_STUDY.replace("trials = 3", "trials = 6"))
    assert cli("run", "tiny.toml", "--workers", "2", "--quiet").returncode == 0
    before = cli("status", "tiny", "--json").stdout
    narrower = TINY_STUDY.replace("trials = 3", "trials = 2").replace("low = 0.0, high = 0.5", "low = 0.0, high = 0.3")
    write_study(tmp_path, narrower)
    refused = cli("run", "tiny.toml")
    assert refused.returncode == 2
    assert "was started with model.output_dropout = 0 to 0.5, the file says 0 to 0.3" in refused.stderr
    found = re.search(
        r"start a new study from it with: lmsearch (run tiny.toml --name tiny-2 --from tiny)", refused.stderr
    )
    assert found is not None and cli("status", "tiny", "--json").stdout == before
    said = cli(*found[1].split(), "--workers", "2")
    assert said.returncode == 0, said.stderr
    counts = re.search(r"from tiny: (\d) trials taken over, (\d) do not fit this space", said.stderr)
    assert counts is not None and int(counts[1]) + int(counts[2]) == 6 and int(counts[1]) > 0 and int(counts[2]) > 0
    status = json.loads(cli("status", "tiny-2", "--json").stdout)
    assert (status["done"], status["total"]) == (2, 2)  # what was taken over answers no ticket
    old, new = (json.loads(cli("best", name, "--json").stdout) for name in ("tiny", "tiny-2"))
    assert new["result"]["perplexity"] <= max(old["result"]["curve"])
    assert cli(*found[1].split()).returncode == 0  # again: each is taken over once
    assert json.loads(cli("status", "tiny-2", "--json").stdout)["counts"] == status["counts"]


def test_row_17_another_text_is_refused_without_a_way_to_take_over(cli: Cli, tmp_path: Path) -> None:
    write_study(tmp_path)
    assert cli("run", "tiny.toml", "--workers", "1", "--quiet").returncode == 0
    write_corpus(tmp_path / "corpus", seed=5)
    refused = cli("run", "tiny.toml")
    assert refused.returncode == 2 and refused.stderr.count("fingerprint") >= 2 and "--from" not in refused.stderr
    new = cli("run", "tiny.toml", "--name", "other", "--from", "tiny")
    assert new.returncode == 2 and "cannot be compared, so leave --from out" in new.stderr
    assert [study["study"] for study in json.loads(cli("studies", "--json").stdout)] == ["tiny"]


def faketime() -> str:
    """Find Debian's libfaketime."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        pytest.skip("not tested: clocks that are wrong, since Debian's package faketime is not installed")
    return str(found[0])


LEASE = ("--lease-seconds", "10")  # so that none runs out because the machine is busy

SLEEP = """
import select, time

def sleep(seconds):
    select.select([], [], [], seconds)

time.sleep = sleep
"""


def under(folder: Path, *settings: str) -> tuple[str, ...]:
    """Give the command under which a process has a wall clock of its own, and everybody's monotonic clock.

    libfaketime 0.9.10 answers EINVAL to the call by which Python sleeps where the monotonic clock is left alone, so
    that Python sleeps by another one.
    """
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site/sitecustomize.py").write_text(SLEEP)
    fixed = (f"PYTHONPATH={folder}/site", f"LD_PRELOAD={faketime()}", "FAKETIME_DONT_FAKE_MONOTONIC=1")
    return ("env", *fixed, "FAKETIME_NO_CACHE=1", *settings)


@pytest.mark.heavy_on("sqlite")
def test_row_18_a_workers_clock_an_hour_off_has_no_effect(bureau: Bureau) -> None:
    """I2 and I3, on PostgreSQL and on SQLite; its trial's times are its own clock's."""
    workers = [
        bureau.start_worker(*LEASE, prefix=under(bureau.folder, f"FAKETIME={offset}"), pause="0.1")
        for offset in ("+3600", "-3600")
    ]
    workers.append(bureau.start_worker(*LEASE, pause="0.1"))
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0, 0]
    check_whole(bureau.record())
    assert all(steps == ONCE for steps in bureau.steps())
    assert {ticket.lease for ticket in bureau.tickets()} == {1}
    stamps = re.findall(r"^\d{4}-\d\d-\d\d (\d\d):", bureau.said_by_hand(), re.MULTILINE)
    assert len(set(stamps)) >= 3  # the clocks were wrong indeed


@pytest.mark.heavy_on("postgresql")
def test_row_18_a_wall_clock_that_jumps_an_hour_forward_and_back_has_no_effect(bureau: Bureau) -> None:
    clock = bureau.folder / "clock"
    clock.write_text("+0")
    prefix = under(bureau.folder, f"FAKETIME_TIMESTAMP_FILE={clock}")
    workers = [bureau.start_worker(*LEASE, prefix=prefix, pause="0.3") for _ in range(3)]
    for number, jump in enumerate(("+3600", "-3600", "+3600", "+0"), 1):
        wait_for(lambda least=number: sum(t.epoch for t in bureau.tickets()) >= 2 * least)  # type: ignore[misc]
        clock.write_text(jump)
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0, 0]
    check_whole(bureau.record())
    assert all(steps == ONCE for steps in bureau.steps())
    assert {ticket.lease for ticket in bureau.tickets()} == {1}


GRID = (
    TINY_STUDY.replace("epochs = 3", "epochs = 1")
    .replace("grid = [0.1, 0.2]", f"grid = {[round(i / 1000, 3) for i in range(500)]}")
    .replace('sampler = "random"', 'sampler = "grid"')
    .replace("trials = 3", "trials = 1000")
)


@pytest.fixture
def crowd(tmp_path: Path, postgres: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bureau]:
    """Give a study of 1,000 points of a grid on a PostgreSQL with its default settings."""
    from tests.conftest import create_database, new_name

    monkeypatch.chdir(tmp_path)
    name = new_name()
    create_database(postgres, name)
    opened = Bureau(tmp_path, postgres.format(name), GRID)
    yield opened
    opened.close()


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_row_19_thirty_two_workers_answer_a_thousand_tickets_once_each(crowd: Bureau, postgres: str) -> None:
    """I2: budget exact, no number and no point of the grid twice, no deadlock; the overhead is printed."""
    began, first = time.monotonic(), 0.0
    notices: list[str] = []
    for snapshot in crowd.search(32, ["--lease-seconds", "30"], pause="0.01"):
        notices += snapshot.notices
        if not first and snapshot.record.done >= 100:  # the workers have started
            first, done = time.monotonic(), snapshot.record.done
    last = time.monotonic()
    record = crowd.record()
    check_whole(record, epochs=1)
    assert record.total == 1000 and notices == []
    points = {(trial.params["model.output_dropout"], trial.params["model.tie_weights"]) for trial in record.trials}
    assert len(points) == 1000
    with psycopg.connect(postgres.format("postgres")) as admin:
        found = admin.execute(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = %s", [parse_url(crowd.url).database]
        ).fetchone()
    assert found == (0,)
    each = (last - first) / (1000 - done)
    print(
        f"{os.cpu_count()} CPUs, 32 workers: {last - began:.0f} s for 1,000 trials of 50 ms, of which the last "
        f"{1000 - done} took {last - first:.1f} s: {1000 * each:.0f} ms of the machine a trial"
    )
