"""What `lmsearch export` writes, read back by the program that it is for."""

import csv
import io
import json
import math
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from lmsearch.errors import ConfigError
from lmsearch.export.runs import Exported, exported
from lmsearch.extras import load
from lmsearch.results.reading import read
from lmsearch.store.opening import open_storage
from lmsearch.store.records import TrialRecord
from lmsearch.store.url import parse_url
from tests.conftest import Cli
from tests.factories import write_study
from tests.results.made import Made, make_study, some_trials

TRIALS = 7  # of the searched study below
REASON = "ValueError: a bug"


@pytest.fixture
def url(prepared_sqlite: Path, tmp_path: Path) -> str:
    (tmp_path / "store.db").write_bytes(prepared_sqlite.read_bytes())
    return f"sqlite:///{tmp_path / 'store.db'}"


@pytest.fixture
def made(url: str) -> Exported:
    failed = Made(params=some_trials(1)[0].params, perplexities=[], outcome="failed", attributes={"reason": REASON})
    make_study(url, [*some_trials(TRIALS - 1), failed])
    return exported(read("made", url), None)


def trial(study: Exported, number: int) -> TrialRecord:
    return study.results.record.trials[number]


def test_a_run_has_what_the_store_has(made: Exported) -> None:
    assert [run.outcome for run in made.runs] == [one.outcome for one in made.results.record.trials]
    assert len({run.key for run in made.runs}) == TRIALS
    (best,) = [run for run in made.runs if run.is_best]
    record = made.results.winner
    assert record is not None and best.name == f"trial-{record.number:04}"
    assert best.params == record.params and best.metrics["perplexity"] == record.perplexity
    assert [epoch.metrics["perplexity"] for epoch in best.epochs] == list(record.curve.values())
    assert [epoch.time - best.started for epoch in best.epochs] == [10.0 * n for n in range(1, len(record.curve) + 1)]
    assert made.runs[-1].tags["reason"] == REASON and made.runs[-1].metrics == {"parameters": 1000.0 + TRIALS - 1}


def test_a_table_of_epochs_is_printed_or_written(made: Exported, url: str, cli: Cli, tmp_path: Path) -> None:
    said = cli("export", "made", "--to", "csv", LMSEARCH_STORAGE=url)
    rows = list(csv.DictReader(io.StringIO(said.stdout)))
    assert len(rows) == sum(max(1, len(run.epochs)) for run in made.runs)
    assert {row["trial"] for row in rows} == {str(number) for number in range(TRIALS)}
    said = cli("export", "made", "tables/epochs.csv", "--to", "csv", "--json", LMSEARCH_STORAGE=url)
    assert json.loads(said.stdout) == {
        "study": "made", "to": "csv", "target": "tables/epochs.csv", "trials": TRIALS, "new": TRIALS
    }  # fmt: skip
    assert list(csv.DictReader((tmp_path / "tables/epochs.csv").open(encoding="utf-8"))) == rows


def test_what_is_missing_is_named(made: Exported, url: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"^mlflow is not installed here; .*pip install 'lmsearch\[mlflow\]'$"):
        load("mlflow", "mlflow")
    assert "name MLflow's tracking URI" in cli("export", "made", "--to", "mlflow", LMSEARCH_STORAGE=url).stderr
    said = cli("export", "made", "-", "--to", "parquet", LMSEARCH_STORAGE=url)
    assert (said.returncode, said.stderr) == (2, "lmsearch: parquet does not go to the terminal; name a place\n")
    said = cli("export", "none", "--to", "csv", LMSEARCH_STORAGE=url)
    assert (said.returncode, "there is no study 'none'" in said.stderr) == (2, True)


@pytest.fixture
def searched(cli: Cli, tmp_path: Path) -> Exported:
    """Run a real search, so that there is a model."""
    write_study(tmp_path)
    assert cli("run", "tiny.toml", "--workers", "1", "--trials", "2", "--sampler", "random").returncode == 0
    return _searched(tmp_path)


def _searched(folder: Path) -> Exported:
    storage = open_storage(parse_url(f"sqlite:///{folder / 'runs/lmsearch.db'}"))
    try:
        return exported(read("tiny", storage), None)
    finally:
        storage.engine.dispose()


def one_more(cli: Cli, folder: Path) -> Exported:
    assert cli("run", "tiny.toml", "--workers", "1", "--more", "1").returncode == 0
    return _searched(folder)


def exports(cli: Cli, *words: str) -> list[int]:
    """Return how many trials there are, and how many of them are new."""
    said = cli("export", "tiny", *words, "--json")
    assert said.returncode == 0, said.stderr
    document = json.loads(said.stdout)
    return [document["trials"], document["new"]]


@pytest.mark.heavy
def test_mlflow_reads_it_back(searched: Exported, cli: Cli, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="nothing was read back with MLflow: pip install 'lmsearch[mlflow]'")
    words = (uri := f"sqlite:///{tmp_path / 'mlflow.db'}", "--to", "mlflow")
    assert [exports(cli, *words), exports(cli, *words)] == [[2, 2], [2, 0]]
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("tiny").experiment_id
    # One that was killed while it wrote a run: it is written again.
    client.update_run(client.search_runs([experiment])[0].info.run_id, status="RUNNING")
    assert exports(cli, *words) == [2, 1]
    study = one_more(cli, tmp_path)
    assert exports(cli, *words) == [3, 1]
    runs = {run.data.tags["lmsearch.trial"]: run for run in client.search_runs([experiment])}
    assert runs.keys() == {run.key for run in study.runs}
    for run in study.runs:
        found = runs[run.key]
        assert found.data.params.items() >= {name: str(value) for name, value in run.params.items()}.items()
        assert (found.data.tags["outcome"], found.info.run_name) == (run.outcome, run.name)
        assert (found.data.tags.get("lmsearch.best") == "true") == run.is_best
        curve = client.get_metric_history(found.info.run_id, "perplexity")
        assert [(point.step, point.value) for point in curve] == [
            (e.epoch, e.metrics["perplexity"]) for e in run.epochs
        ]
        assert math.isclose(found.data.metrics["best_perplexity"], run.metrics["perplexity"])
        if run.is_best:
            files = {file.path for file in client.list_artifacts(found.info.run_id, "best-model")}
            assert "best-model/model.safetensors" in files
    client.delete_experiment(experiment)
    said = cli("export", "tiny", *words)
    assert (said.returncode, "mlflow experiments restore" in said.stderr) == (2, True)


@pytest.mark.heavy
def test_tensorboard_reads_it_back(searched: Exported, cli: Cli, tmp_path: Path) -> None:
    reason = "nothing was read back with TensorBoard: pip install 'lmsearch[tensorboard]'"
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason=reason)
    from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data

    words = ("--to", "tensorboard")
    assert [exports(cli, *words), exports(cli, *words)] == [[2, 2], [2, 0]]
    study = one_more(cli, tmp_path)
    assert exports(cli, *words) == [3, 1]
    for run in study.runs:
        events = accumulator.EventAccumulator(str(tmp_path / "runs/tiny/tensorboard/tiny" / run.name))
        events.Reload()
        curve = [(event.step, event.value) for event in events.Scalars("perplexity")]
        assert curve == [(e.epoch, pytest.approx(e.metrics["perplexity"])) for e in run.epochs]
        assert events.Scalars("best perplexity")[0].value == pytest.approx(run.metrics["perplexity"])
        data = events.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
        started = parse_session_start_info_plugin_data(data)
        assert started.hparams["train.learning_rate"].number_value == run.params["train.learning_rate"]


@pytest.mark.heavy
def test_wandb_reads_it_back(searched: Exported, cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="nothing was read back with wandb: pip install 'lmsearch[wandb]'")
    words = ("offline", "--to", "wandb-offline")
    assert [exports(cli, *words), exports(cli, *words)] == [[2, 2], [2, 0]]
    study = one_more(cli, tmp_path)
    assert exports(cli, *words) == [3, 1]
    found = dict(map(read_wandb, (tmp_path / "offline/wandb").glob("offline-run-*/*.wandb")))
    assert found.keys() == {run.name for run in study.runs}
    assert not list((tmp_path / "offline").glob(".lmsearch-*"))
    for run in study.runs:
        config, history, code = found[run.name]
        assert config.items() >= run.params.items()
        assert [(row["_step"], row["perplexity"]) for row in history] == [
            (e.epoch, e.metrics["perplexity"]) for e in run.epochs
        ]
        assert code == 0
    (best,) = [run.key for run in study.runs if run.is_best]
    (weights,) = (tmp_path / "offline/wandb").glob(f"offline-run-*-{best}/files/best-model/model.safetensors")
    assert weights.stat().st_size > 0


def read_wandb(path: Path) -> tuple[str, tuple[dict[str, Any], list[dict[str, Any]], int]]:
    """Read a run by wandb's own messages: its name, config, history and exit code.

    Its reader of the file around them is part of its server process alone, so that is read here: a head of 7 bytes,
    then LevelDB's log, blocks of 32 KiB of parts with checksum, length and kind (1 whole, 2 first, 3 middle, 4 last).
    """
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    content, at, message = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    name, code = "", -1
    config: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    while at + 7 <= len(content):
        if 2**15 - at % 2**15 < 7:  # too little of the block for another part
            at += 2**15 - at % 2**15
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        message += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (2, 3):
            continue
        record, message = Record.FromString(message), b""
        match record.WhichOneof("record_type"):
            case "run":
                name = record.run.display_name
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            case "history":
                history.append(
                    {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                )
            case "exit":
                code = record.exit.exit_code
    return name, (config, history, code)


@pytest.mark.heavy
def test_parquet_has_the_types_of_the_values(made: Exported, url: str, cli: Cli, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="no Parquet was read: pip install 'lmsearch[parquet]'")
    said = cli("export", "made", "--to", "parquet", LMSEARCH_STORAGE=url)
    assert said.stdout == f"runs/made/epochs.parquet: {TRIALS} ended trials of made, {TRIALS} of them new\n"
    table = parquet.read_table(tmp_path / "runs/made/epochs.parquet").to_pydict()
    assert set(table["trial"]) == set(range(TRIALS)) and set(map(type, table["model.tie_weights"])) <= {bool}
    first = trial(made, 0)
    assert [p for t, p in zip(table["trial"], table["perplexity"], strict=True) if t == 0] == list(first.curve.values())
