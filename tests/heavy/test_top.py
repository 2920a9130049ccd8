"""`lmsearch top`, driven by Textual's own pilot on a real store."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from lmsearch.folders import LOGS
from lmsearch.results.progress import state_of
from lmsearch.store.opening import open_storage
from lmsearch.store.tickets import StopState, present
from lmsearch.store.trials import read_study
from lmsearch.store.url import parse_url
from lmsearch.store.workers import list_workers
from tests.conftest import Cli
from tests.factories import write_study

pytestmark = pytest.mark.heavy


def test_the_best_is_first_a_person_chooses_and_the_log_is_that_of_the_trial(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("textual", reason="nothing was drawn: pip install 'lmsearch[top]'")
    from textual.widgets import DataTable, RichLog, Static

    from lmsearch.terminal.top import Moment, StudyTop, leaderboard

    write_study(tmp_path)
    assert cli("run", "tiny.toml", "--workers", "1", "--sampler", "random").returncode == 0
    storage = open_storage(parse_url(f"sqlite:///{tmp_path / 'runs/lmsearch.db'}"))
    from lmsearch.store.records import open_to_look

    info = open_to_look(storage, "tiny")

    def read() -> Moment:
        record, now = read_study(storage, info, epochs=True), present(storage)
        workers = list_workers(storage, info.ref)
        state = state_of(record, now, StopState())
        return Moment(record=record, state=state, now=now, workers=workers, seconds_left=None)

    async def drive() -> dict[str, Any]:
        app = StudyTop(read, tmp_path / "runs/tiny")
        async with app.run_test(size=(120, 40)) as pilot:
            await pilot.pause(1.0)
            table = app.query_one("#trials", DataTable)
            found = {"order": [str(key.value) for key in table.rows], "head": _text(app.query_one("#head", Static))}
            table.focus()
            await pilot.press("down", "down")
            await pilot.pause(0.5)
            found |= {
                "values": _text(app.query_one("#values", Static)),
                "curve": _text(app.query_one("#curve", Static)),
            }
            found |= {"log": "\n".join(strip.text for strip in app.query_one("#log", RichLog).lines)}
            await pilot.press("q")
        return found

    found = asyncio.run(drive())
    record = read().record
    ordered = leaderboard(record)
    assert found["order"] == [str(trial.number) for trial in ordered]
    assert found["head"].startswith("tiny: 3 of 3 trials, 3 complete") and "finished" in found["head"]
    last = ordered[-1]
    assert f"train.learning_rate = {last.params['train.learning_rate']:.4g}" in found["values"]
    assert found["curve"].startswith(f"perplexity of trial {last.number} (o), and trial {ordered[0].number}, the best")
    assert found["curve"].count("o", found["curve"].index("\n")) == len(last.curve)
    assert last.ticket is not None
    assert f"{last.ticket.worker}" in str(list((tmp_path / "runs/tiny" / LOGS).iterdir()))
    assert found["log"].strip()


def test_without_a_terminal_another_command_is_named(cli: Cli) -> None:
    pytest.importorskip("textual", reason="nothing was drawn: pip install 'lmsearch[top]'")
    said = cli("top", "default")
    assert (said.returncode, said.stderr) == (
        2,
        "lmsearch: lmsearch top needs a terminal; elsewhere: lmsearch status --watch\n",
    )


def _text(widget: Any) -> str:
    return str(widget.content)
