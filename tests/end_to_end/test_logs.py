"""What commands and workers log: levels, formats, and the sentences of a person beside them."""

import json
from pathlib import Path

from tests.conftest import Cli
from tests.factories import write_study


def documents(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def worker_logs(folder: Path) -> str:
    return "".join(path.read_text() for path in (folder / "runs/tiny/logs").glob("*.log"))


def test_workers_log_documents_with_the_values_of_each_event(cli: Cli, tmp_path: Path) -> None:
    write_study(tmp_path)
    said = cli("run", "tiny.toml", "--workers", "1", "--log-format", "json", "-v", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    logged = documents(worker_logs(tmp_path))
    events = [record["event"] for record in logged]
    assert events.count("joined") == 1 and events.count("claimed") == 3 and events.count("ended") == 3
    epochs = [record for record in logged if record["event"] == "epoch"]
    assert [(record["trial"], record["epoch"]) for record in epochs] == [(t, e) for t in range(3) for e in (1, 2, 3)]
    first = epochs[0]
    assert first["level"] == "info" and first["logger"] == "lmsearch.search.trial"
    assert first["message"].startswith("trial 0: epoch 1, perplexity ")  # type: ignore[attr-defined]
    assert isinstance(first["valid_loss"], float) and isinstance(first["tokens"], int) and "T" in str(first["time"])
    assert any(record["event"] == "worker_started" for record in documents(said.stdout + said.stderr))


def test_a_level_keeps_what_is_below_it_out_of_a_workers_log(cli: Cli, tmp_path: Path) -> None:
    write_study(tmp_path)
    said = cli("run", "tiny.toml", "--workers", "1", "--log-level", "error", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert worker_logs(tmp_path) == ""
    assert "trial 2 (random): complete" in said.stdout  # the view of the search is no log


def test_the_level_of_the_environment_is_used_and_a_wrong_one_refused(cli: Cli, tmp_path: Path) -> None:
    write_study(tmp_path)
    wrong = cli("status", "tiny", cwd=tmp_path, LMSEARCH_LOG_LEVEL="loud")
    assert wrong.returncode == 2 and "'loud' is not one of 'debug', 'info', 'warning', 'error'" in wrong.stderr
    said = cli("run", "tiny.toml", "--workers", "1", cwd=tmp_path, LMSEARCH_LOG_LEVEL="debug")
    assert said.returncode == 0 and "claimed ticket 1 with lease 1" in worker_logs(tmp_path)
