"""Files belong to what made them: stores that were restored, copied, hostile or of a later lmsearch."""

import dataclasses
import json
import math
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy

from lmsearch.errors import LmsearchError, StudyError
from lmsearch.formats import FORMATS, NewerFormatError, seal
from lmsearch.report.publishing import artifact_id, find_artifact
from lmsearch.results.best import find_weights, write_results
from lmsearch.results.reading import read
from lmsearch.search.begin import begin
from lmsearch.search.budget import Request
from lmsearch.search.manage import delete, enqueue
from lmsearch.store import records, trials
from lmsearch.store.artifacts import Artifacts
from lmsearch.store.backup import back_up
from lmsearch.store.checkpoints import Checkpoints, read_checkpoint
from lmsearch.store.opening import open_storage
from lmsearch.store.records import StudyInfo, find_study, lmsearch_studies, open_study, readable_studies
from lmsearch.store.schema import read_format
from lmsearch.store.tables import DONE, OPEN, TICKET, StudyRef
from lmsearch.store.url import parse_url
from lmsearch.version import __version__
from tests.bureau import Bureau, check_whole, wait_for
from tests.conftest import Cli
from tests.factories import TINY_STUDY, make_spec, write_study
from tests.store.test_checkpoints import make_ticket

OPEN_DROPOUT = ("model.output_dropout", "train.learning_rate", "model.tie_weights")


def values(dropout: float, rate: float = 0.01) -> dict[str, object]:
    return dict(zip(OPEN_DROPOUT, (dropout, rate, True), strict=True))


def interrupted(bureau: Bureau) -> None:
    """Begin the next ticket, and interrupt it once it has an epoch."""
    before = {ticket.number for ticket in bureau.tickets() if ticket.epoch}
    worker = bureau.start_worker(pause="0.1")
    wait_for(lambda: any(t.epoch and t.state != DONE and t.number not in before for t in bureau.tickets()))
    worker.send_signal(signal.SIGTERM)
    worker.wait()


def small(bureau: Bureau) -> None:
    """Withdraw the tickets that nobody has started, so that what is enqueued comes next."""
    with bureau.storage.engine.begin() as connection:
        connection.execute(sa.delete(TICKET).where(TICKET.c.lease == 0))


def test_a_restored_store_trains_its_own_values_and_says_that_files_are_newer(sqlite_bureau: Bureau) -> None:
    """The numbers of ticket, trial and lease are given out again, for other values: 8.21 was told where 35.21 is right."""
    bureau = sqlite_bureau
    small(bureau)
    back_up(parse_url(bureau.url), bureau.folder / "backup.db")
    enqueue(bureau.storage, "tiny", values(0.0))
    interrupted(bureau)
    lost = sorted((bureau.folder / "runs/tiny/checkpoints").glob("*.checkpoint"))
    contents = [path.read_bytes() for path in lost]
    assert lost
    restore(bureau)
    enqueue(bureau.storage, "tiny", values(0.5))
    interrupted(bureau)
    said = bureau.said_by_hand()
    assert f"{lost[0]}" in said and "the store was restored from a backup, or is a copy" in said
    assert "starts again" not in said
    list(bureau.search(1))
    record = bureau.record()
    check_whole(record)
    (trial,) = record.trials
    assert trial.params["model.output_dropout"] == 0.5
    assert list(trial.curve.values()) == [math.exp(1.5 / epoch + 0.5) for epoch in (1, 2, 3)]
    assert [path.read_bytes() for path in lost] == contents  # who restores the later store goes on from these


def restore(bureau: Bureau) -> None:
    bureau.storage.engine.dispose()
    for left in bureau.folder.glob("store.db*"):
        left.unlink()
    shutil.copy(bureau.folder / "backup.db", bureau.folder / "store.db")
    bureau.storage = open_storage(parse_url(bureau.url))
    bureau.info = open_study(bureau.storage, "tiny")


def test_two_copies_of_a_store_in_one_folder_keep_their_checkpoints_weights_and_results(sqlite_bureau: Bureau) -> None:
    bureau = sqlite_bureau
    small(bureau)
    back_up(parse_url(bureau.url), bureau.folder / "copy.db")
    copy_url = f"sqlite:///{bureau.folder / 'copy.db'}"
    copy = open_storage(parse_url(copy_url))
    for storage, dropout in ((bureau.storage, 0.1), (copy, 0.4)):
        enqueue(storage, "tiny", values(dropout))
    list(bureau.search(1))
    original, bureau.storage, bureau.url = (bureau.storage, bureau.url), copy, copy_url
    list(bureau.search(1))
    for storage, dropout in ((original[0], 0.1), (copy, 0.4)):
        results = read("tiny", storage)
        best = results.record.best
        assert best is not None and best.perplexity == math.exp(0.5 + dropout)
        weights = find_weights(results.record.info, best, bureau.folder / "runs/tiny")
        assert weights is not None
        metrics = json.loads((weights / "metrics.json").read_text())
        assert math.exp(metrics["valid_loss"]) == best.perplexity
        files = write_results(results, bureau.folder / "runs/tiny", "test")
        assert files.best_model is not None
        config = json.loads((files.best_model / "config.json").read_text())
        assert config["model"]["output_dropout"] == dropout


def test_weights_under_a_trials_name_that_are_not_its_are_not_copied(sqlite_bureau: Bureau) -> None:
    """The relative: somebody, or an earlier lmsearch, put others there."""
    bureau = sqlite_bureau
    list(bureau.search(2))
    results = read("tiny", bureau.storage)
    best = results.record.best
    assert best is not None
    folder = Path(best.model.partition(":")[2])
    whole = (folder / "metrics.json").read_text()
    for change in ({"valid_loss": 0.1}, {"digest": "0" * 64}, {"corpus": "0123"}):
        (folder / "metrics.json").write_text(json.dumps(json.loads(whole) | change))
        assert find_weights(results.record.info, best, bureau.folder / "runs/tiny") is None
        files = write_results(results, bureau.folder / "runs/tiny", "test")
        assert files.best_model is None and not (bureau.folder / "runs/tiny/best-model").exists()
    (folder / "metrics.json").write_text(whole)
    assert write_results(results, bureau.folder / "runs/tiny", "test").best_model is not None


# A later lmsearch.


def raise_format(bureau: Bureau) -> None:
    with bureau.storage.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE lmsearch_alembic_version SET version_num = '9'")
        connection.exec_driver_sql("INSERT INTO lmsearch_format (format, lmsearch) VALUES (9, '3.0.0')")


def test_a_worker_leaves_with_one_sentence_where_the_stores_format_has_risen(bureau: Bureau) -> None:
    worker = bureau.start_worker(pause="0.05")
    wait_for(lambda: any(ticket.epoch for ticket in bureau.tickets()))
    raise_format(bureau)
    assert worker.wait(60) == 2
    last = bureau.said_by_hand().strip().splitlines()[-1]
    assert last.endswith(f"the store is of format 9 (lmsearch 3.0.0 wrote it), and lmsearch {__version__} reads up to format "
                         f"{FORMATS['store']}; "
                         "it is left as it is: use lmsearch 3.0.0 or later")  # fmt: skip
    with bureau.storage.engine.connect() as connection:
        rows = connection.execute(sa.select(TICKET.c.state, TICKET.c.deaths)).all()
    assert {row.state for row in rows} <= {OPEN, DONE} and {row.deaths for row in rows} == {0}


def test_a_store_of_a_later_lmsearch_is_refused_by_every_command_and_stays(bureau: Bureau, cli: Cli) -> None:
    raise_format(bureau)
    with pytest.raises(NewerFormatError):
        open_storage(parse_url(bureau.url), create=True)
    for words in (["status", "tiny"], ["run", str(write_study(bureau.folder))], ["delete", "tiny", "--yes"]):
        said = cli(*words, LMSEARCH_STORAGE=bureau.url)
        assert (said.returncode, len(said.stderr.splitlines())) == (2, 1), said.stderr
        assert "is of format 9 (lmsearch 3.0.0 wrote it)" in said.stderr
    with bureau.storage.engine.connect() as connection:
        found = read_format(connection)
    assert found is not None and (found.number, found.version) == (9, "3.0.0")


def test_a_checkpoint_of_a_later_lmsearch_is_left_and_its_trial_too(sqlite_bureau: Bureau) -> None:
    bureau = sqlite_bureau
    interrupted(bureau)
    checkpoints = sorted((bureau.folder / "runs/tiny/checkpoints").glob("*.checkpoint"))
    contents = [path.read_bytes() for path in checkpoints]
    for path in checkpoints:
        path.write_bytes(
            path.read_bytes().replace(f"lmsearch-checkpoint-2 {__version__}".encode(), b"lmsearch-checkpoint-3 9.0.0")
        )
    newer = [path.read_bytes() for path in checkpoints]
    (waiting,) = [ticket for ticket in bureau.tickets() if ticket.trial_id is not None]
    worker = bureau.start_worker()
    assert worker.wait(60) == 2
    assert bureau.said_by_hand().strip().splitlines()[-1].endswith("use lmsearch 9.0.0 or later")
    (now,) = [ticket for ticket in bureau.tickets() if ticket.trial_id is not None]
    assert (now.state, now.checkpoint, now.epoch, now.deaths) == (OPEN, waiting.checkpoint, waiting.epoch, 0)
    assert [path.read_bytes() for path in checkpoints] == newer
    for path, content in zip(checkpoints, contents, strict=True):
        path.write_bytes(content)
    list(bureau.search(1))
    check_whole(bureau.record())
    assert "starts again" not in bureau.logs()


def spoil(bureau: Bureau, name: str, **fields: Any) -> None:
    info = open_study(bureau.storage, name)
    stored = bureau.storage.get_study_user_attrs(info.ref.id)["lmsearch"]
    bureau.storage.set_study_user_attr(info.ref.id, "lmsearch", {**stored, **fields})


@pytest.mark.parametrize(
    "fields",
    [{"format": 9, "lmsearch": "3.0.0"}, {"key": None}, {"text": "[study"}, {"study_id": "x"}, {"format": "x"}],
    ids=str,
)
def test_one_unreadable_study_fails_no_other(sqlite_bureau: Bureau, cli: Cli, fields: dict[str, Any]) -> None:
    bureau = sqlite_bureau
    list(bureau.search(2))
    results = read("tiny", bureau.storage)
    write_results(results, bureau.folder / "runs/tiny", "test")
    begin(bureau.storage, "other", bureau.info.spec, bureau.info.folder, bureau.corpus, Request(trials=2))
    spoil(bureau, "other", **fields)
    assert lmsearch_studies(bureau.storage) == ["tiny", "other"]
    infos, unreadable = readable_studies(bureau.storage)
    assert [info.ref.name for info in infos] == ["tiny"] and list(unreadable) == ["other"]
    found = find_artifact(bureau.storage, bureau.folder / "runs", artifact_id(bureau.info, "best-config.json"))
    assert found == ("best-config.json", bureau.folder / "runs/tiny/best-config.json")
    said = cli("studies", LMSEARCH_STORAGE=bureau.url)
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines()[0].startswith("tiny: 6 of 6") and "other: cannot be read: " in said.stdout
    said = cli("compare", "t*", "o*", "*", LMSEARCH_STORAGE=bureau.url)
    assert said.returncode == 2 and "there is no study 'o*'" in said.stderr
    said = cli("compare", "*", LMSEARCH_STORAGE=bureau.url)
    assert said.returncode == 0 and "warning: other is left out, since it cannot be read: " in said.stderr
    said = cli("doctor", LMSEARCH_STORAGE=bureau.url)
    assert said.returncode == 1 and "tiny: 6 of 6 trials are done" in said.stdout
    assert "other cannot be read, and its rows and files are left alone" in said.stdout
    assert "whose studies are gone" not in said.stdout  # its tickets are not taken for nobody's
    with pytest.raises((StudyError, NewerFormatError, Exception)) as error:
        find_study(bureau.storage, "other")
    assert "\n" not in str(error.value).strip()


# A hostile store, or write access to a shared folder.


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    folder = tmp_path / "my-thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("years of work")
    return folder


def test_a_hostile_checkpoint_makes_a_worker_remove_nothing(sqlite_bureau: Bureau, victim: Path) -> None:
    bureau = sqlite_bureau
    small(bureau)
    enqueue(bureau.storage, "tiny", values(0.2))
    interrupted(bureau)
    key = bureau.info.ref.key[:12]
    disguised = victim.rename(victim.with_name(f"{key}-trial-0-epoch-1-lease-1"))
    for hostile in (f"any:{disguised}", str(disguised), f"../../../{disguised.name}", "..", 7, None):
        for path in (bureau.folder / "runs/tiny/checkpoints").glob("*.checkpoint"):
            found = read_checkpoint(path)
            assert found is not None
            head, _, state = path.read_bytes().partition(b"\n")[2].partition(b"\n")
            path.write_bytes(
                seal("checkpoint", json.dumps(json.loads(head) | {"best_model": hostile}).encode() + b"\n" + state)
            )
        interrupted_again(bureau)
    list(bureau.search(1))
    assert (disguised / "chapter.txt").read_text() == "years of work"
    check_whole(bureau.record())


def interrupted_again(bureau: Bureau) -> None:
    """Let a worker take the trial up, and stop it at its next step."""
    worker = bureau.start_worker(pause="0.3")
    wait_for(lambda: any(ticket.state == "running" for ticket in bureau.tickets()))
    worker.send_signal(signal.SIGTERM)
    worker.wait()


@pytest.mark.parametrize("key", ["../../../*", "*", "", "a" * 31, "A" * 32, 7, "x" * 32, "../" + "a" * 32])
def test_a_hostile_key_is_refused_where_it_is_read(sqlite_bureau: Bureau, victim: Path, cli: Cli, key: object) -> None:
    bureau = sqlite_bureau
    spoil(bureau, "tiny", key=key)
    with pytest.raises(StudyError, match="its key is"):
        delete(bureau.storage, "tiny", bureau.folder / "runs/tiny")
    said = cli("delete", "tiny", "--yes", LMSEARCH_STORAGE=bureau.url)
    assert said.returncode == 2 and len(said.stderr.splitlines()) == 1
    assert (victim / "chapter.txt").exists() and (bureau.folder / "corpus/train.txt").exists()


def test_hostile_paths_in_a_store_are_neither_copied_from_nor_looked_in(
    sqlite_bureau: Bureau, victim: Path, tmp_path: Path
) -> None:
    bureau = sqlite_bureau
    list(bureau.search(1))
    (trial, *_) = sorted(bureau.record().trials, key=lambda one: one.perplexity)
    key, host = bureau.info.ref.key, os.uname().nodename
    secret = f"{victim}/{key[:12]}-trial-0-epoch-1-lease-1"
    shutil.copytree(victim, secret)
    for model in (f"{host}:{victim}", f"{host}:{secret}", f"{host}:/", f"{host}:", f"{host}:..", "\0", 7):
        with bureau.storage.engine.begin() as connection:
            connection.execute(
                sa.text(
                    "UPDATE trial_user_attributes SET value_json = :value WHERE key = 'model' AND trial_id = "
                    "(SELECT trial_id FROM trials WHERE number = :number)"
                ),
                {"value": json.dumps(model), "number": trial.number},
            )
            connection.execute(sa.update(TICKET).values(checkpoint=f"{host}:{victim}/{key[:12]}-0-e1-s1-l1.checkpoint"))
        results = read("tiny", open_storage(parse_url(bureau.url)))
        files = write_results(results, bureau.folder / "runs/tiny", "test")
        assert files.best_model is None
        copied = list((bureau.folder / "runs").rglob("chapter.txt"))
        assert copied == [] and not list((bureau.folder / "runs").rglob("*.draft"))
    (victim / f"{key[:12]}-0-e1-s1-l1.checkpoint").write_bytes(b"not ours")
    ticket = bureau.tickets()[0]
    looked = Checkpoints(bureau.folder / "runs/tiny/checkpoints", host)
    assert looked._named(ticket) is None


def test_a_study_whose_name_leads_elsewhere_has_no_files(sqlite_bureau: Bureau, victim: Path) -> None:
    bureau = sqlite_bureau
    (victim / "best-config.json").write_text("secret")
    name = f"../{victim.name}"
    with bureau.storage.engine.begin() as connection:
        connection.execute(sa.text("UPDATE studies SET study_name = :name"), {"name": name})
    info = open_study(bureau.storage, name)
    assert find_artifact(bureau.storage, bureau.folder / "runs", artifact_id(info, "best-config.json")) is None


def test_results_of_another_stores_study_are_replaced_with_a_word_and_offered_by_no_other(
    sqlite_bureau: Bureau, prepared_sqlite: Path
) -> None:
    bureau = sqlite_bureau
    list(bureau.search(1))
    folder = bureau.folder / "runs/tiny"
    mine = read("tiny", bureau.storage)
    write_results(mine, folder, "test")
    (folder / "best-model/test-looks.json").write_text("[]")
    shutil.copy(prepared_sqlite, bureau.folder / "b.db")
    first, bureau.url = bureau.storage, f"sqlite:///{bureau.folder / 'b.db'}"
    bureau.storage = open_storage(parse_url(bureau.url))
    text = TINY_STUDY.replace("high = 0.5", "high = 0.9")
    (bureau.folder / "b.toml").write_text(text)
    bureau.info = begin(
        bureau.storage, "tiny", make_spec(bureau.folder, text), str(bureau.folder), bureau.corpus, Request()
    )
    list(bureau.search(1))
    theirs = read("tiny", bureau.storage)
    files = write_results(theirs, folder, "test")
    assert files.remark.startswith(f"{folder} had the results of another store's study tiny, which are replaced")
    assert mine.winner is not None
    kept = folder / f"best-model.{mine.record.info.ref.key[:12]}-trial-{mine.winner.number}"
    assert (kept / "test-looks.json").exists() and str(kept) in files.remark
    wanted = artifact_id(mine.record.info, "best-config.json")
    assert find_artifact(first, bureau.folder / "runs", wanted) is None
    assert find_artifact(bureau.storage, bureau.folder / "runs", artifact_id(theirs.record.info, "best-config.json"))
    # Each store makes its own again, weights too: they lie apart.
    assert write_results(mine, folder, "test").best_model is not None
    assert (folder / "best-model/test-looks.json").exists()  # what was found with it comes back with it
    config = json.loads((folder / "best-config.json").read_text())
    assert config["result"]["study_key"] == mine.record.info.ref.key


def test_links_in_a_models_folder_are_neither_followed_nor_copied(sqlite_bureau: Bureau, victim: Path) -> None:
    bureau = sqlite_bureau
    list(bureau.search(1))
    results = read("tiny", bureau.storage)
    best = results.record.best
    assert best is not None
    weights = Path(best.model.partition(":")[2])
    (weights / "vocabulary.json").unlink()
    (weights / "vocabulary.json").symlink_to(victim / "chapter.txt")
    assert write_results(results, bureau.folder / "runs/tiny", "test").best_model is None
    assert not list((bureau.folder / "runs/tiny").glob("best-model*"))


def test_delete_leaves_what_was_trained_from_its_results_and_what_others_put_there(
    sqlite_bureau: Bureau, victim: Path
) -> None:
    bureau = sqlite_bureau
    list(bureau.search(1))
    folder = bureau.folder / "runs/tiny"
    write_results(read("tiny", bureau.storage), folder, "test")
    final = folder / "seed-1"
    shutil.copytree(folder / "best-model", final)
    (folder / "notes.txt").write_text("mine")
    shared = bureau.folder / "shared/tiny"
    shared.mkdir(parents=True)
    (shared / ".lmsearch.json").write_text("{}")
    (shared / "logs").symlink_to(victim)
    (shared / "trials.csv").write_text("theirs")
    (victim / f"host-1-{'0' * 8}.log").write_text("theirs")
    left = delete(bureau.storage, "tiny", folder, Artifacts(str(shared.parent)))
    assert left == [folder / "notes.txt", final, shared / "logs", shared / "trials.csv"]
    assert sorted(path.name for path in victim.iterdir()) == ["chapter.txt", f"host-1-{'0' * 8}.log"]
    assert (final / "model.safetensors").exists() and find_study(bureau.storage, "tiny") is None
    with bureau.storage.engine.connect() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(TICKET)).scalar() == 0


def test_a_study_with_both_attributes_of_early_commits_is_migrated(sqlite_bureau: Bureau) -> None:
    bureau = sqlite_bureau
    with bureau.storage.engine.begin() as connection:
        for table in ("lmsearch_alembic_version", "lmsearch_format", "lmsearch_worker"):
            connection.exec_driver_sql(f"DROP TABLE {table}")
        connection.exec_driver_sql("ALTER TABLE lmsearch_epoch DROP COLUMN ended")
        attribute = connection.exec_driver_sql(
            "SELECT value_json FROM study_user_attributes WHERE key = 'lmsearch'"
        ).scalar()
        old = {
            name: value
            for name, value in json.loads(str(attribute)).items()
            if name not in ("format", "lmsearch", "study_id")
        }
        connection.exec_driver_sql(
            "UPDATE study_user_attributes SET value_json = ? WHERE key = 'lmsearch'", (json.dumps(old),)
        )
        connection.exec_driver_sql(
            "INSERT INTO study_system_attributes (study_id, key, value_json) VALUES (1, 'lmsearch', ?)",
            (json.dumps(old),),
        )
    opened = open_storage(parse_url(bureau.url), write=True)
    assert open_study(opened, "tiny").ref.key == bureau.info.ref.key
    opened.engine.dispose()


# Whatever stands in a field that somebody else may write.

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=40),
    st.lists(st.text(max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from(["../..", "/etc/passwd", "~", "\0", "*", "a" * 32, "A" * 32, "-rf", "x:/y", "..:..", "host:"]),
)
FIELDS = ("key", "study_id", "text", "folder", "corpus", "fingerprint", "vocabulary_size", "defaults", "source", "format",
          "lmsearch")  # fmt: skip


@example(field="text", value="#")  # TOML, and no study
@given(field=st.sampled_from(FIELDS), value=ANYTHING)
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_a_field_of_a_study_is_what_it_must_be_or_the_study_is_refused(
    sqlite_bureau: Bureau, field: str, value: Any
) -> None:
    bureau = sqlite_bureau
    stored = bureau.storage.get_study_user_attrs(bureau.info.ref.id)["lmsearch"]
    frozen = FrozenStudy(
        "tiny", StudyDirection.MINIMIZE, {"lmsearch": {**stored, field: value}}, {}, bureau.info.ref.id
    )
    try:
        info = records._read(bureau.storage, frozen)
    except LmsearchError as error:
        assert "tiny" in str(error) or "format" in str(error)
        return
    assert info is not None and re.fullmatch("[0-9a-f]{32}", info.ref.key)
    assert re.fullmatch("[0-9a-f]{1,64}", info.fingerprint) and 0 < info.vocabulary_size < 1 << 31
    assert isinstance(info.home_id, int) and re.fullmatch(r"[\w.+!-]+", info.defaults)
    assert info.source is None or info.source.key == "" or re.fullmatch("[0-9a-f]{32}", info.source.key)


@given(location=ANYTHING)
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_a_path_in_a_ticket_or_a_trial_leads_nowhere_but_to_ours(tmp_path: Path, location: Any) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", "host")
    for text in (str(location), f"host:{location}", f"host:{tmp_path}/{location}"):
        ticket = dataclasses.replace(make_ticket(), checkpoint=text)
        assert checkpoints._named(ticket) is None
        assert checkpoints.find(ticket, "0" * 64, []).checkpoint is None
    text = json.dumps(location, default=str)
    attrs = {key: trials.kept_value(key, text) for key in ("model", "reason", "sample", "parameters")}
    head = (1, 0, "COMPLETE", None, None)
    record = trials._record(head, {}, {}, {key: value for key, value in attrs.items() if value is not None}, {})
    assert all(isinstance(value, str) for value in (record.model, record.reason, record.sample))
    assert record.parameters is None or isinstance(record.parameters, int)
    info = StudyInfo(
        ref=StudyRef(name="s", id=1, key="0" * 32), spec=make_spec(tmp_path), folder="/", corpus="", fingerprint="00",
        vocabulary_size=9, home_id=1,
    )  # fmt: skip
    assert find_weights(info, record, tmp_path) is None
