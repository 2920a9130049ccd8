"""One trial, in this process: what it stores, and what a full disk and a lost reply cost it."""

import math
import os
import shutil
from pathlib import Path

import optuna
import pytest

from lmsearch.config import DataConfig
from lmsearch.folders import is_model
from lmsearch.lm.events import Event
from lmsearch.search.begin import begin
from lmsearch.search.budget import Request
from lmsearch.search.trial import ReleasedError, TrialRunner
from lmsearch.search.worker import run_trial
from lmsearch.store.artifacts import ArtifactsError, StudyFiles
from lmsearch.store.checkpoints import Checkpoints
from lmsearch.store.opening import open_storage
from lmsearch.store.records import TrialRecord, optuna_study
from lmsearch.store.tables import Progress
from lmsearch.store.tickets import Holder, claim, release_worker
from lmsearch.store.trials import read_study
from lmsearch.store.url import parse_url
from lmsearch.store.weights import Weights
from lmsearch.text.corpus import open_corpus
from tests.buckets import Bucket
from tests.factories import TINY_STUDY, make_spec, write_corpus
from tests.stub import StubTrainer


class Steps:
    """Counts events, and asks to stop after some."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.left = stop_after

    def progress(self, event: Event) -> Progress:
        return Progress(epoch=0, step=event.step, tokens_per_second=None)

    def check(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise ReleasedError


def _die(trial: optuna.Trial) -> bool:
    raise KeyboardInterrupt


class Desk:
    """A study on which trials are run one by one."""

    def __init__(self, folder: Path, url: str, text: str = TINY_STUDY) -> None:
        self.folder = folder
        self.bucket = Bucket()
        self.storage = open_storage(parse_url(url))
        write_corpus(folder / "corpus")
        self.corpus = open_corpus(DataConfig(corpus=str(folder / "corpus")), Path(os.environ["LMSEARCH_CACHE"]))
        self.info = begin(self.storage, "tiny", make_spec(folder, text), str(folder), self.corpus, Request())

    def files(self, host: str = "") -> StudyFiles:
        """Give where a host keeps the study's files: this one's folder, or with a bucket behind it another's."""
        objects = self.bucket.objects() if host else None
        return StudyFiles(self.folder / host, objects)

    def run(self, stop_after: int | None = None, die_at: str = "", host: str = "") -> str:
        """Run the next ticket; `die_at` names a method of Optuna's trial at which the process is as if killed."""
        ticket = claim(self.storage, self.info.ref, Holder(worker="w", host="h", process=1, device="cpu"))
        assert ticket is not None
        runner = TrialRunner(
            storage=self.storage,
            study=optuna_study(self.storage, self.info.ref.name),
            info=self.info,
            corpus=self.corpus,
            trainer=StubTrainer("cpu"),
            checkpoints=Checkpoints.of(self.files(host), host or "h"),
            weights=Weights.of(self.files(host)),
        )
        with pytest.MonkeyPatch.context() as patch:
            if die_at:
                patch.setattr(optuna.Trial, die_at, _die)
            return run_trial(runner, ticket, Steps(stop_after))

    def trial(self, number: int = 0) -> TrialRecord:
        return read_study(self.storage, self.info, epochs=True).trials[number]


@pytest.fixture
def desk(tmp_path: Path, storage_url: str) -> Desk:
    return Desk(tmp_path, storage_url)


def test_a_trials_value_is_its_lowest_perplexity_and_it_says_where_it_comes_from(desk: Desk) -> None:
    assert desk.run() == "complete"
    trial = desk.trial()
    dropout = trial.params["model.output_dropout"]
    assert isinstance(dropout, float)
    assert trial.perplexity == math.exp(0.5 + dropout) == min(trial.curve.values())
    assert (trial.by, trial.origin, trial.best_epoch) == ("random", "search", 3)
    digest = desk.info.spec.close(trial.params, desk.info.vocabulary_size).digest(desk.info.fingerprint)
    name = f"{desk.info.ref.key[:12]}-trial-0-{digest[:12]}-epoch-3-lease-1"
    assert trial.parameters and trial.model == f"h:{desk.folder}/models/{name}"
    assert [row.tokens for row in trial.epochs] == [50, 50, 50]


@pytest.mark.parametrize("stop_after", [0, 1, 4, 5, 9, 12])
def test_a_trial_given_back_at_any_step_goes_on_as_if_it_had_not_been(desk: Desk, stop_after: int) -> None:
    with pytest.raises(ReleasedError):
        desk.run(stop_after)
    before = desk.trial()
    assert before.outcome == "waiting" and before.ticket is not None and before.ticket.step == stop_after + 1
    assert desk.run() == "complete"
    after = desk.trial()
    assert (after.number, after.params) == (0, before.params)
    assert [row.epoch for row in after.epochs] == list(after.curve) == [1, 2, 3]


def test_a_full_disk_costs_the_checkpoint_and_not_the_trial(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    (desk.folder / "checkpoints").write_text("a file where the folder should be")
    (desk.folder / "models").write_text("here too")
    assert desk.run() == "complete"
    assert list(desk.trial().curve) == [1, 2, 3]
    assert [record.__dict__.get("event") for record in caplog.records if record.levelname == "WARNING"] == ["disk"]
    assert "training continues without new checkpoints" in caplog.text


def test_epochs_that_the_store_lacks_are_reported_from_the_checkpoint(desk: Desk) -> None:
    """As after an outage that outlasted the worker's patience: the file is there, the report is not."""
    with pytest.raises(ReleasedError):
        desk.run(12)
    trial = desk.trial()
    assert list(trial.curve) == [1, 2]
    with desk.storage.transaction() as session:
        for table in ("trial_intermediate_values", "lmsearch_epoch"):
            session.connection().exec_driver_sql(f"DELETE FROM {table}")
    assert desk.run() == "complete"
    assert [row.epoch for row in desk.trial().epochs] == list(desk.trial().curve) == [1, 2, 3]


def test_an_epoch_that_is_trained_again_gives_its_new_checkpoint_to_the_ticket(desk: Desk) -> None:
    """As after a full disk: the store has the epoch, and no file does."""
    (desk.folder / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(ReleasedError):
        desk.run(7)
    assert list(desk.trial().curve) == [1]
    (desk.folder / "checkpoints").unlink()
    with pytest.raises(KeyboardInterrupt):
        desk.run(die_at="should_prune")  # right behind the report of epoch 1, trained again
    ticket = desk.trial().ticket
    assert ticket is not None and ticket.checkpoint is not None
    assert Path(ticket.checkpoint.partition(":")[2]).exists()
    release_worker(desk.storage, desk.info.ref, "w")
    assert desk.run() == "complete"
    assert [row.epoch for row in desk.trial().epochs] == list(desk.trial().curve) == [1, 2, 3]


def test_a_trial_whose_state_is_gone_starts_again_with_its_values(desk: Desk) -> None:
    with pytest.raises(ReleasedError):
        desk.run(12)
    before = desk.trial()
    for path in (desk.folder / "checkpoints").iterdir():
        path.unlink()
    assert desk.run() == "complete"
    after = desk.trial()
    assert after.params == before.params and list(after.curve) == [1, 2, 3]
    assert len(read_study(desk.storage, desk.info).trials) == 1


def test_two_stores_with_a_study_of_one_name_keep_their_weights_apart(tmp_path: Path, prepared_sqlite: Path) -> None:
    desks = []
    for name in ("one", "two"):
        (tmp_path / f"{name}.db").write_bytes(prepared_sqlite.read_bytes())
        desks.append(Desk(tmp_path, f"sqlite:///{tmp_path / name}.db", TINY_STUDY.replace("trials = 3", "trials = 5")))
    for desk in (desks[0], *[desks[1]] * 5):
        desk.run()
    assert Path(desks[0].trial().model.partition(":")[2]).is_dir()


def test_what_follows_from_an_epoch_follows_after_a_death_right_behind_its_report(
    tmp_path: Path, storage_url: str
) -> None:
    text = TINY_STUDY.replace('"none"', '"median"') + "[pruner]\nn_startup_trials = 1\nn_warmup_steps = 1\n"
    desk = Desk(tmp_path, storage_url, text)
    desk.run()
    first = desk.trial()
    # The second trial is reported for one epoch, worse than the first, and its worker dies before it decides.
    with desk.storage.transaction() as session:
        session.connection().exec_driver_sql("UPDATE trial_intermediate_values SET intermediate_value = 1.0")
    assert first.outcome == "complete"
    with pytest.raises(KeyboardInterrupt):
        desk.run(die_at="should_prune")
    assert list(desk.trial(1).curve) == [1]
    release_worker(desk.storage, desk.info.ref, "w")
    assert desk.run() == "pruned"
    assert list(desk.trial(1).curve) == [1]


def test_manual_values_are_tried_and_the_others_drawn(tmp_path: Path, storage_url: str) -> None:
    desk = Desk(tmp_path, storage_url, TINY_STUDY + '[[manual]]\n"model.output_dropout" = 0.125\n')
    desk.run()
    trial = desk.trial()
    assert trial.params["model.output_dropout"] == 0.125 and len(trial.params) == 3
    assert trial.by == "manual"


def test_the_pruner_stops_a_trial_that_does_not_promise(tmp_path: Path, storage_url: str) -> None:
    text = TINY_STUDY.replace('"none"', '"median"').replace("trials = 3", "trials = 8")
    text += "[pruner]\nn_startup_trials = 2\nn_warmup_steps = 2\n"
    desk = Desk(tmp_path, storage_url, text)
    outcomes = [desk.run() for _ in range(8)]
    assert {"complete", "pruned"} == set(outcomes)
    for number, outcome in enumerate(outcomes):
        assert len(desk.trial(number).curve) == 3 if outcome == "complete" else len(desk.trial(number).curve) >= 2
    kept = {path.name.split("-")[2] for path in (tmp_path / "models").glob("*-trial-*")}
    assert len(kept) <= 3 and all(outcomes[int(number)] == "complete" for number in kept)


def test_a_trial_moves_to_a_host_with_an_empty_disk_by_way_of_a_bucket(desk: Desk) -> None:
    with pytest.raises(ReleasedError):
        desk.run(12, host="first")
    shutil.rmtree(desk.folder / "first")
    assert desk.run(host="second") == "complete"
    trial = desk.trial()
    assert [row.epoch for row in trial.epochs] == list(trial.curve) == [1, 2, 3]
    assert trial.model.startswith("second:")
    weights = Weights.of(desk.files("third")).find(Path(trial.model).name)
    assert weights is not None and is_model(weights)
    assert [name.rpartition("/")[2] for name in desk.bucket.names()] == [f"{Path(trial.model).name}.zip"]


def test_a_bucket_that_is_away_costs_one_warning_and_not_the_trial(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ReleasedError):
        desk.run(6, host="first")
    desk.bucket.is_away = True
    assert desk.run(host="first") == "complete"
    assert list(desk.trial().curve) == [1, 2, 3]
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert [record.__dict__.get("event") for record in warnings] == ["disk"], caplog.text
    assert "cannot be written: Could not connect" in caplog.text


def test_a_trial_whose_checkpoint_is_out_of_reach_is_not_started_again(desk: Desk) -> None:
    with pytest.raises(ReleasedError):
        desk.run(12, host="first")
    desk.bucket.is_away = True
    with pytest.raises(ArtifactsError):
        desk.run(host="second")
    before = desk.trial()
    assert list(before.curve) == [1, 2] and before.ticket is not None and before.ticket.checkpoint is not None
    release_worker(desk.storage, desk.info.ref, "w")
    desk.bucket.is_away = False
    assert desk.run(host="second") == "complete"
    assert [row.epoch for row in desk.trial().epochs] == [1, 2, 3]


@pytest.mark.parametrize(("epoch", "outcome"), [(2, "pruned"), (3, "complete")])
def test_after_its_last_epoch_a_trial_is_not_pruned(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, epoch: int, outcome: str
) -> None:
    """There is nothing left to save, and its value would be lost."""

    def from_then_on(trial: optuna.Trial) -> bool:
        return epoch in trial._cached_frozen_trial.intermediate_values

    monkeypatch.setattr(optuna.Trial, "should_prune", from_then_on)
    assert desk.run() == outcome
    assert list(desk.trial().curve) == list(range(1, epoch + 1))


def test_the_weights_of_the_three_best_complete_trials_stay(tmp_path: Path, storage_url: str) -> None:
    desk = Desk(tmp_path, storage_url, TINY_STUDY.replace("trials = 3", "trials = 6"))
    for _ in range(6):
        assert desk.run() == "complete"
    trials = read_study(desk.storage, desk.info).trials
    best = sorted(trials, key=lambda trial: trial.perplexity)[:3]
    there = {path.name for path in (tmp_path / "models").iterdir() if path.is_dir()}
    assert there == {Path(trial.model).name for trial in best}
