"""What optuna-dashboard is given of a study: notes, plots and files, in the store and in a real browser."""

import dataclasses
import io
import json
import shlex
import types
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna_dashboard
import pytest
from playwright.sync_api import expect

from lmsearch.cli.searching import Keeper
from lmsearch.report.figures import make_figure
from lmsearch.report.publishing import END_OF_OURS, FILES, PLOTS, Publisher, artifact_id, study_note, trial_note
from lmsearch.results.reading import read
from lmsearch.store.opening import open_storage
from lmsearch.store.records import optuna_study
from lmsearch.store.url import parse_url
from tests.dashboard.served import served
from tests.factories import write_study
from tests.report.test_report import HOSTILE
from tests.results.made import Made, make_study, some_trials
from tests.unit.test_cli_words import make_trial


def command(words: Sequence[str]) -> str:
    return " ".join(words)


@pytest.fixture
def url(prepared_sqlite: Path, tmp_path: Path) -> str:
    (tmp_path / "store.db").write_bytes(prepared_sqlite.read_bytes())
    return f"sqlite:///{tmp_path / 'store.db'}"


def with_failures() -> list[Made]:
    failed = {"reason": "ValueError: a bug", "traceback": "Traceback\nValueError: a bug", "sample": ""}
    sampled = [dataclasses.replace(trial, attributes={"sample": "the list is"}) for trial in some_trials(24)]
    return [*sampled, Made(params=some_trials(1)[0].params, perplexities=[], outcome="failed", attributes=failed)]


def test_the_note_says_what_is_best_and_how_to_join_add_and_confirm(storage_url: str) -> None:
    storage, _ = make_study(storage_url, with_failures())
    results = read("made", storage)
    Publisher(storage=storage, command=command).publish(results, Path("runs/made"), make_figure)
    study = optuna_study(storage, "made")
    note = optuna_dashboard.get_note(study)
    best = results.record.best
    assert best is not None
    assert f"{best.perplexity:.2f} in epoch {best.best_epoch}" in note
    for expected in ("lmsearch worker made", "lmsearch enqueue made model.", "lmsearch confirm made --top 3 --seeds 3"):
        assert expected in note
    attributes = storage.get_study_system_attrs(study._study_id)
    plots = {key.split(":")[2] for key in attributes if key.startswith("dashboard:plot_data:")}
    assert plots == {f"lmsearch-{name}" for name in PLOTS if name != "confirmation"}
    ids = [trial._trial_id for trial in study.get_trials()]
    assert "ValueError: a bug" in attributes[f"dashboard:{ids[-1]}:note_str:0"]
    assert attributes[f"dashboard:{ids[0]}:note_str:0"] == "Its model wrote:\n\n> the list is"


def test_what_a_person_wrote_into_the_note_stays_and_nothing_is_written_twice(url: str) -> None:
    storage, _ = make_study(url, with_failures())
    results = read("made", storage)
    study = optuna_study(storage, "made")
    optuna_dashboard.save_note(study, "remember the milk")
    publisher = Publisher(storage=storage, command=command)
    publisher.publish(results, Path("runs/made"), make_figure)
    assert optuna_dashboard.get_note(study) == study_note(results, command) + END_OF_OURS + "remember the milk"
    before = storage.get_study_system_attrs(study._study_id)
    publisher.publish(results, Path("runs/made"), make_figure)
    assert storage.get_study_system_attrs(study._study_id) == before


def test_markup_in_a_note_is_text() -> None:
    trial = dataclasses.replace(make_trial(0), outcome="failed", reason=HOSTILE)
    assert "<script>" not in trial_note(trial)
    assert "\\<script\\>" in trial_note(trial)


def test_a_search_keeps_its_note_and_its_files_current(searched: Path) -> None:
    opened = open_storage(parse_url(f"sqlite:///{searched / 'runs/lmsearch.db'}"))
    study = optuna_study(opened, "tiny")
    assert "3 of 3 trials have ended" in optuna_dashboard.get_note(study)
    offered = {
        json.loads(value)["filename"]
        for key, value in opened.get_study_system_attrs(study._study_id).items()
        if key.startswith("artifacts:")
    }
    assert offered == {"best-config.json", "trials.csv", "best-model.zip"}


def test_what_cannot_be_drawn_or_written_for_the_dashboard_ends_no_search(
    searched: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = open_storage(parse_url(f"sqlite:///{searched / 'runs/lmsearch.db'}"))
    results = read("tiny", opened)

    def broken(*given: Any, **named: Any) -> None:
        raise ZeroDivisionError("a figure")

    monkeypatch.setattr(Publisher, "publish", broken)
    setup: Any = types.SimpleNamespace(storage=opened, command=shlex.join, folder=searched)
    keeper = Keeper(setup)
    for _ in range(2):
        keeper.end(results, interrupted=True)
    assert capsys.readouterr().err.count("warning: notes and plots for the dashboard cannot be written") == 1


@pytest.fixture
def searched(cli: Any, tmp_path: Path) -> Path:
    write_study(tmp_path)
    said = cli("run", "tiny.toml", "--workers", "1", "--quiet")
    assert said.returncode == 0, said.stderr
    return tmp_path


def test_the_dashboard_serves_a_studys_files_from_where_they_lie_and_takes_none(
    searched: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("report", "tiny").returncode == 0
    url = f"sqlite:///{searched / 'runs/lmsearch.db'}"
    info = read("tiny", url).record.info
    monkeypatch.chdir(searched)
    with served(url, searched / "log") as server:
        here = f"/artifacts/{info.ref.id}/"
        for name in ("best-config.json", "report.html", "trials.csv"):
            answer = server.ask(here + artifact_id(info, name))
            assert (answer.status, answer.body) == (200, (searched / "runs/tiny" / name).read_bytes())
            assert answer.headers["content-type"] == FILES[name]
        packed = zipfile.ZipFile(io.BytesIO(server.ask(here + artifact_id(info, "best-model.zip")).body))
        assert "best-model/config.json" in packed.namelist()
        upload = {"file": "data:text/html;base64,PGI+", "filename": "x.html"}
        assert server.ask(f"/api/artifacts/{info.ref.id}", "POST", upload, Sec_Fetch_Site="same-origin").status == 403
        assert server.ask("/api/studies/1/trials", "POST", {}, Sec_Fetch_Site="same-origin").status == 404
        (searched / "runs/tiny/trials.csv").unlink()
        assert server.ask(here + artifact_id(info, "trials.csv")).status == 404


@pytest.mark.slow
def test_the_pages_show_note_plots_and_files_and_hostile_text_does_not_run(
    url: str, browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = {"sample": HOSTILE, "reason": HOSTILE}
    trials = [dataclasses.replace(trial, attributes=hostile) for trial in with_failures()]
    name = HOSTILE.replace("/", "")[:80]
    storage, info = make_study(url, trials, name=name)
    results = read(name, storage)
    folder = tmp_path / "runs" / "hostile"
    folder.mkdir(parents=True)
    Publisher(storage=storage, command=command).publish(results, folder, make_figure)
    monkeypatch.chdir(tmp_path)
    with served(url, tmp_path / "log") as server:
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        troubles: list[str] = []
        page.on("console", lambda said: troubles.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on(
            "request",
            lambda asked: (
                None if asked.url.startswith((server.origin, "data:", "blob:")) else troubles.append(asked.url)
            ),
        )
        page.goto(f"{server.origin}/dashboard/studies/{info.ref.id}/note")
        expect(page.get_by_text("This page cannot add a trial.")).to_be_visible(timeout=30_000)
        page.goto(f"{server.origin}/dashboard/studies/{info.ref.id}")
        for plot in ("budget", "by-parameters", "timeline"):
            expect(page.get_by_text(f"lmsearch: {plot}")).to_be_visible(timeout=30_000)
        page.goto(f"{server.origin}/dashboard/studies/{info.ref.id}/trials")
        expect(page.get_by_text("Its model wrote").first).to_be_visible(timeout=30_000)
        assert page.title() != "taken" and troubles == []
