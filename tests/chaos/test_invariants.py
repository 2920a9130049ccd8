"""What `lmsearch chaos` counts: each invariant holds of a sound search, and is seen to be broken where it is."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmsearch.chaos.invariants import (
    Watch,
    curves_are_undisturbed,
    doubled,
    each_answered_once,
    ended_by_itself,
    ends_are_explained,
    epochs_trained_twice,
    nothing_lost,
    tracebacks,
)
from lmsearch.errors import StudyError
from lmsearch.store.records import StudyRecord
from lmsearch.store.tables import OPEN
from tests.bureau import Bureau
from tests.conftest import Cli
from tests.factories import TINY_STUDY


@pytest.fixture
def ended_search(sqlite_bureau: Bureau) -> StudyRecord:
    list(sqlite_bureau.search(2))
    return sqlite_bureau.record()


def test_a_trial_that_is_lost_or_changed_is_noticed(ended_search: StudyRecord) -> None:
    watch = Watch()
    watch.look(ended_search)
    watch.look(ended_search)
    assert (nothing_lost(watch).checked, nothing_lost(watch).broken) == (6, 0)
    changed = dataclasses.replace(ended_search.trials[0], curve={1: 1.0})
    watch.look(dataclasses.replace(ended_search, trials=(changed, *ended_search.trials[2:])))
    assert (watch.lost, watch.changed, nothing_lost(watch).broken) == (1, 1, 2)


def test_a_ticket_that_is_unanswered_or_answered_twice_is_noticed(ended_search: StudyRecord) -> None:
    assert (each_answered_once(ended_search).checked, each_answered_once(ended_search).broken) == (6, 0)
    first, second, *others = ended_search.tickets
    waiting = dataclasses.replace(first, state=OPEN)
    twice = dataclasses.replace(second, trial_number=first.trial_number)
    assert each_answered_once(dataclasses.replace(ended_search, tickets=(waiting, second, *others))).broken == 1
    assert doubled(dataclasses.replace(ended_search, tickets=(first, twice, *others))) == 1
    ticketless = dataclasses.replace(ended_search.trials[0], ticket=None)
    assert doubled(dataclasses.replace(ended_search, trials=(ticketless, *ended_search.trials[1:]))) == 1


@pytest.mark.heavy
@pytest.mark.slow
def test_a_curve_that_is_not_that_of_an_undisturbed_training_is_noticed(ended_search: StudyRecord) -> None:
    """The stub's curve is made up, so that every trial of its search is reported."""
    found = curves_are_undisturbed(ended_search, 2)
    assert (found.checked, found.broken) == (6, 6) and "6 with another curve" in found.detail


@pytest.mark.slow
def test_a_curve_with_an_epoch_missing_is_noticed_and_one_that_is_right_is_not(cli: Cli, tmp_path: Path) -> None:
    from lmsearch.store.opening import open_storage
    from lmsearch.store.records import open_study
    from lmsearch.store.trials import read_study
    from lmsearch.store.url import parse_url
    from tests.factories import write_study

    write_study(tmp_path, TINY_STUDY)
    assert cli("run", "tiny.toml", "--workers", "1", "--quiet").returncode == 0
    storage = open_storage(parse_url(f"sqlite:///{tmp_path}/runs/lmsearch.db"))
    record = read_study(storage, open_study(storage, "tiny"), epochs=True)
    assert (curves_are_undisturbed(record, 1).checked, curves_are_undisturbed(record, 1).broken) == (3, 0)
    first = dataclasses.replace(record.trials[0], epochs=record.trials[0].epochs[1:])
    torn = curves_are_undisturbed(dataclasses.replace(record, trials=(first, *record.trials[1:])), 1)
    assert torn.broken == 2 and "1 with an epoch missing or twice, 1 with another curve" in torn.detail


def test_what_the_logs_tell_is_counted(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no worker has logged an epoch"):
        epochs_trained_twice(tmp_path)
    epochs = [json.dumps({"event": "epoch", "trial": 1, "epoch": epoch}) + "\n" for epoch in (1, 2)]
    (tmp_path / "a.log").write_text("".join(epochs) + '{"event": "epoch", "tri')
    assert (epochs_trained_twice(tmp_path), tracebacks(tmp_path)) == (0, [])
    (tmp_path / "b.log").write_text(epochs[1] + "Traceback (most recent call last):\n")
    assert (epochs_trained_twice(tmp_path), tracebacks(tmp_path)) == (1, ["a traceback in b.log"])
    assert ended_by_itself(False, 300.0).broken == 1 and ended_by_itself(True, 2.0).broken == 0
    assert ends_are_explained(["exit 0", "exit 3"], ["run-1.log: exit 3"]).broken == 1


@pytest.mark.heavy
def test_chaos_tells_as_json_what_it_did_and_leaves_nothing_behind(cli: Cli, tmp_path: Path) -> None:
    """Its own runs of a minute, on both databases, are in .ci/run."""
    said = cli("chaos", "--minutes", "0.3", "--seed", "3", "--workers", "2", "--json")
    assert said.returncode == 0, said.stdout + said.stderr
    document = json.loads(said.stdout)
    assert document["holds"] and sum(document["faults"].values()) > 0
    assert [invariant["name"] for invariant in document["invariants"]] == ["I1", "I2", "I3", "I4", "I5"]
    assert all(invariant["checked"] > 0 for invariant in document["invariants"])
    assert not (tmp_path / "runs").exists()


@pytest.mark.heavy
def test_chaos_that_is_interrupted_ends_its_search_and_removes_its_study(
    cli: Cli, tmp_path: Path, storage_url: str
) -> None:
    command = [sys.executable, "-m", "lmsearch.cli.main", "chaos", "--minutes", "5", "--workers", "2"]
    environment = dict(os.environ) | {"LMSEARCH_STORAGE": storage_url, "PYTHONUNBUFFERED": "1"}
    with (tmp_path / "said").open("wb") as said:
        test = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=said, stderr=said)
    time.sleep(15)
    test.send_signal(signal.SIGINT)
    assert test.wait(timeout=90) == 130, (tmp_path / "said").read_text()
    assert "Traceback" not in (tmp_path / "said").read_text()
    assert json.loads(cli("studies", "--json", "--storage", storage_url).stdout) == []
