"""Trials that pause and continue: in real worker processes, and what is decided for one."""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmsearch.curves.allocate import Thawing
from lmsearch.curves.promote import Promotion
from lmsearch.search.allocation import Allocation, policy_of
from lmsearch.store.checkpoints import Checkpoints
from lmsearch.store.records import optuna_study
from tests.bureau import Bureau
from tests.conftest import Cli
from tests.factories import TINY_STUDY, make_spec
from tests.forks import ForkServer

THAW = TINY_STUDY.replace('"none"', '"thaw"').replace("epochs = 3", "epochs = 8").replace("trials = 3", "trials = 14")
OPTIONS = "[pruner]\nn_startup_trials = 3\n"


@pytest.fixture
def thawing(
    tmp_path: Path, storage_url: str, monkeypatch: pytest.MonkeyPatch, fork_server: ForkServer
) -> Iterator[Bureau]:
    monkeypatch.chdir(tmp_path)
    opened = Bureau(tmp_path, storage_url, THAW + OPTIONS)
    yield opened
    opened.close()


def check(bureau: Bureau, trials: int = 14) -> None:
    """Every ticket is answered by one ended trial, and every curve is the undisturbed one as far as it goes."""
    record = bureau.record()
    assert record.done == record.total == len(record.trials) == trials
    assert sorted(ticket.trial_number or 0 for ticket in record.tickets) == list(range(trials))
    for trial in record.trials:
        dropout = trial.params["model.output_dropout"]
        assert isinstance(dropout, float) and trial.outcome in ("complete", "pruned")
        assert [row.epoch for row in trial.epochs] == list(trial.curve) == list(range(1, len(trial.epochs) + 1))
        assert [row.valid_loss for row in trial.epochs] == [1.5 / n + dropout for n in range(1, len(trial.epochs) + 1)]
        assert (len(trial.epochs) == 8) == (trial.outcome == "complete")
    assert record.best is not None
    reached = min(float(trial.params["model.output_dropout"]) for trial in record.trials)  # type: ignore[arg-type]
    assert record.best.params["model.output_dropout"] == reached  # the winner among the begun ones is complete
    assert not list((bureau.folder / "runs" / "tiny" / "checkpoints").glob("*.checkpoint"))


def pauses(bureau: Bureau) -> int:
    return len(re.findall(r"trial \d+ is paused at epoch \d", bureau.logs()))


def test_trials_pause_and_continue_and_each_ticket_ends_once(thawing: Bureau) -> None:
    for _ in thawing.search(3, pause="0.002"):
        pass
    check(thawing)
    record = thawing.record()
    assert pauses(thawing) >= 3 and record.count("pruned") >= 3
    assert max(ticket.attempts for ticket in record.tickets) > 1
    assert {t.number for t in record.trials if t.ticket and t.ticket.number < 3 and t.outcome == "complete"} == {
        0,
        1,
        2,
    }


@pytest.mark.slow
@pytest.mark.heavy_on("sqlite")
def test_a_search_that_pauses_survives_the_deaths_of_its_workers(thawing: Bureau) -> None:
    for number, snapshot in enumerate(thawing.search(3, pause="0.01")):
        held = [ticket for ticket in snapshot.record.tickets if ticket.is_running and ticket.process]
        if number % 4 == 3 and number < 40 and held:
            _kill(held[number % len(held)].process or 0)
    check(thawing)


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, 9)


@pytest.mark.slow
@pytest.mark.heavy_on("postgresql")
def test_a_stopped_search_says_what_is_paused_and_resumes(thawing: Bureau, cli: Cli) -> None:
    for snapshot in thawing.search(2, pause="0.01"):
        if sum(ticket.is_paused for ticket in snapshot.record.tickets) >= 3 and not thawing.signals.received:
            thawing.signals.received.append(15)
    record = thawing.record()
    paused = [trial for trial in record.trials if trial.outcome == "paused"]
    assert len(paused) >= 2 and record.done < 14
    said = cli("status", "tiny", LMSEARCH_STORAGE=thawing.url)
    assert said.returncode == 0 and f"{len(paused)} paused" in said.stdout
    first = paused[0]
    said_of = f"trial {first.number} paused at epoch {len(first.curve)}, forecast "
    assert re.search(re.escape(said_of) + r"\d+\.\d to \d+\.\d\n", said.stdout), said.stdout
    document = json.loads(cli("status", "tiny", "--json", LMSEARCH_STORAGE=thawing.url).stdout)
    assert sum(
        row["state"] == "paused" and row["forecast"][0] < row["forecast"][1] for row in document["at_work"]
    ) == len(paused)
    page = cli("report", "tiny", "--output", "page.html", LMSEARCH_STORAGE=thawing.url)
    assert page.returncode == 0, page.stderr
    assert said_of in (thawing.folder / "page.html").read_text(encoding="utf-8")
    allocation = Allocation(
        storage=thawing.storage,
        study=optuna_study(thawing.storage, "tiny"),
        info=thawing.info,
        checkpoints=Checkpoints(thawing.folder / "runs" / "tiny" / "checkpoints", "here"),
    )
    assert {ticket.number for ticket in allocation.choose().tickets} <= {t.ticket.number for t in paused if t.ticket}
    failed = cli("fail", "tiny", str(paused[-1].number), LMSEARCH_STORAGE=thawing.url)
    assert failed.returncode == 0, failed.stderr
    for _ in thawing.search(3, pause="0.002"):
        pass
    after = thawing.record()
    assert after.done == after.total == 14 and after.count("failed") == 1
    assert not after.count("paused")


@pytest.mark.slow
@pytest.mark.heavy_on("postgresql")
def test_what_is_left_and_hopeless_is_ended_even_where_its_checkpoint_is_gone(thawing: Bureau) -> None:
    for snapshot in thawing.search(2, pause="0.01"):
        if sum(ticket.is_paused for ticket in snapshot.record.tickets) >= 3 and not thawing.signals.received:
            thawing.signals.received.append(15)
    for path in (thawing.folder / "runs" / "tiny" / "checkpoints").glob("*.checkpoint"):
        path.unlink()
    before = {trial.number: len(trial.curve) for trial in thawing.record().trials if trial.outcome == "paused"}
    for _ in thawing.search(2, pause="0.002"):
        pass
    check(thawing)
    pruned = {trial.number for trial in thawing.record().trials if trial.outcome == "pruned"}
    assert before.keys() & pruned  # some were ended where they stood


def test_at_the_quota_the_least_promising_paused_trials_give_way(
    tmp_path: Path, prepared_sqlite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store.db").write_bytes(prepared_sqlite.read_bytes())
    text = (THAW + OPTIONS).replace("trials = 14", "trials = 14\ncheckpoint_gb = 0.000007")
    bureau = Bureau(tmp_path, f"sqlite:///{tmp_path / 'store.db'}", text)
    folder = tmp_path / "runs" / "tiny" / "checkpoints"
    most = 0
    for _ in bureau.search(1, pause="0.002"):  # two that save at once may both find room for the last file
        with contextlib.suppress(OSError):
            most = max(most, sum(path.stat().st_size for path in folder.glob("*.checkpoint")))
    check(bureau)
    assert 0 < most <= 7000
    assert len(re.findall(r"paused trial \d+ is pruned, for its checkpoint's disk", bureau.logs())) >= 1
    assert "training continues without new checkpoints" not in bureau.logs()


def test_the_files_options_and_the_kind_of_training_set_the_policy(tmp_path: Path) -> None:
    def thawing(text: str, trials: int = 24) -> tuple[int, int]:
        found = policy_of(make_spec(tmp_path, text), "thaw", trials)
        assert isinstance(found, Thawing)
        return found.piece, found.whole

    assert thawing(THAW + OPTIONS) == (1, 3)
    assert thawing(THAW) == (1, 5)
    assert thawing(THAW.replace("epochs = 8", "epochs = 16\nanneal_factor = 4.0")) == (4, 7)
    assert thawing(THAW.replace("epochs = 8", 'epochs = 16\noptimizer = { choices = ["adam", "sgd"] }')) == (4, 7)
    assert thawing(THAW, 6) == (8, 6)  # nothing to learn from: every trial runs to its end
    promoting = THAW.replace("thaw", "asha") + "[pruner]\nmin_resource = 1\nreduction_factor = 2\npromote = true\n"
    assert policy_of(make_spec(tmp_path, promoting), "asha", 24) == Promotion(rungs=(1, 2, 4), factor=2)
    assert policy_of(make_spec(tmp_path, THAW), "asha", 24) == Promotion(rungs=(1, 2, 4), factor=2)  # as by default
    assert policy_of(make_spec(tmp_path, promoting.replace("promote = true", "promote = false")), "asha", 24) is None
    assert policy_of(make_spec(tmp_path, THAW), "median", 24) is None


@pytest.mark.parametrize("trials", [1, 2, 3])
def test_a_search_of_few_trials_ends_with_a_whole_one(
    tmp_path: Path, prepared_sqlite: Path, monkeypatch: pytest.MonkeyPatch, trials: int
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store.db").write_bytes(prepared_sqlite.read_bytes())
    text = THAW.replace("thaw", "asha").replace("trials = 14", f"trials = {trials}")
    bureau = Bureau(tmp_path, f"sqlite:///{tmp_path / 'store.db'}", text)
    for _ in bureau.search(2, pause="0.002"):
        pass
    check(bureau, trials)
    record = bureau.record()
    assert record.done == trials and record.best is not None and len(record.best.curve) == 8
    # The best whole trial is not behind the others by what they were passed over for: the first epoch.
    firsts = {trial.number: trial.curve[1] for trial in record.trials}
    assert trials > 2 or firsts[record.best.number] == min(firsts.values())


def test_asha_promotes_paused_trials(tmp_path: Path, prepared_sqlite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store.db").write_bytes(prepared_sqlite.read_bytes())
    text = THAW.replace("thaw", "asha") + "[pruner]\nmin_resource = 1\nreduction_factor = 2\npromote = true\n"
    bureau = Bureau(tmp_path, f"sqlite:///{tmp_path / 'store.db'}", text)
    for _ in bureau.search(3, pause="0.002"):
        pass
    check(bureau)
    lengths = sorted(len(trial.curve) for trial in bureau.record().trials)
    assert set(lengths) <= {1, 2, 4, 8} and lengths.count(8) >= 1 and pauses(bureau) >= 7
