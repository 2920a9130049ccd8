"""The report and its figures: what is in them is what is in the store."""

import csv
import dataclasses
import io
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial

from lmsearch.errors import ConfigError, NothingToShowError
from lmsearch.report.figures import FIGURES, figures_of, make_figure
from lmsearch.report.plots import BEST, COLOURS, DARK, DASHES, INK, PALETTE, SYMBOLS, round_ticks, spell_tick
from lmsearch.report.write import document, write_figure, write_report
from lmsearch.results.epochs import epochs_csv
from lmsearch.results.reading import Results, read
from tests.conftest import Cli
from tests.results.made import STUDY, Made, make_study, some_trials

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">{{ 7 * 7 }}"


def command(words: Any) -> str:
    return " ".join(words)


@pytest.fixture
def url(prepared_sqlite: Path, tmp_path: Path) -> str:
    (tmp_path / "store.db").write_bytes(prepared_sqlite.read_bytes())
    return f"sqlite:///{tmp_path / 'store.db'}"


@pytest.fixture(scope="module")
def results_url(prepared_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give the URL of a store with a study of all outcomes, which no test changes."""
    failed = Made(params=some_trials(1)[0].params, perplexities=[], outcome="failed", attributes={"reason": "a bug"})
    diverged = dataclasses.replace(some_trials(1)[0], perplexities=[12.0], outcome="diverged")
    random = [dataclasses.replace(trial, sampler="random") for trial in some_trials(20, seed=1)]
    path = tmp_path_factory.mktemp("results") / "store.db"
    path.write_bytes(prepared_sqlite.read_bytes())
    make_study(url := f"sqlite:///{path}", [*some_trials(30), *random, failed, diverged])
    return url


@pytest.fixture
def results(results_url: str) -> Results:
    return read("made", results_url)


def test_the_verdict_and_the_table_of_the_best_say_what_the_store_says(results: Results) -> None:
    page = write_report(results, command)
    best = results.record.best
    assert best is not None
    assert f"has the best validation perplexity, {best.perplexity:.2f} in epoch {best.best_epoch}" in page
    for path, value in best.params.items():
        spelled = str(value).lower() if isinstance(value, bool) else f"{value:.4g}"
        assert f'<tr><td>{path}</td><td class="number">{spelled}</td></tr>' in page
    rows = re.findall(r'<tr id="trial-(\d+)"( class="best")?>', page)
    complete = sorted((t for t in results.record.trials if t.outcome == "complete"), key=lambda t: t.perplexity)
    assert rows == [(str(t.number), ' class="best"' if t is complete[0] else "") for t in complete[:25]]
    (stored,) = re.findall(r'data-rows="trials">(.*?)</script>', page)
    grid = json.loads(stored)
    assert grid["marked"] == best.number and len(grid["rows"]) == len(results.record.trials)
    assert [row[3] for row in grid["rows"][:34]] == [float(f"{t.perplexity:.4g}") for t in complete]
    assert "34 complete, 16 pruned, 1 diverged, 1 failed" in page
    assert '<td>failed</td><td>a bug</td><td class="number">1</td><td>50</td>' in page
    for words in (
        f"<strong>{best.perplexity:.2f}</strong>",
        "<strong>not confirmed</strong>",
        "<strong>28m10s</strong>",
    ):
        assert words in page


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_every_colour_of_a_figure_has_a_contrast_of_four_and_a_half_in_both_themes() -> None:
    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    assert {*COLOURS.values(), *PALETTE, BEST, INK} <= DARK.keys()
    for light, dark in DARK.items():
        assert contrast(light, "#ffffff") >= 4.5 and contrast(dark, "#14171b") >= 4.5, (light, dark)
    assert len(set(PALETTE)) == len(set(DASHES)) == 6 and len(set(SYMBOLS.values())) == 6


@pytest.mark.parametrize(
    ("low", "high", "most", "said"),
    [
        (0.001, 0.02, 12, "0.001 0.002 0.005 0.01 0.02"),
        (1e-7, 1e-4, 5, "1e-7 1e-6 1e-5 0.0001"),
        (21.3, 95.0, 12, "25 30 40 50 60 80"),
        (21.0, 30.0, 12, "22 24 26 28 30"),
        (95.0, 2245.0, 12, "100 200 500 1000 2000"),
        (24.1, 24.9, 12, "24.2 24.4 24.6 24.8"),
    ],
)
def test_axes_have_round_numbers(low: float, high: float, most: int, said: str) -> None:
    assert " ".join(spell_tick(tick) for tick in round_ticks(low, high, most)) == said


def test_no_axis_cuts_a_point_of_a_trial_that_came_to_something(results: Results) -> None:
    best = results.record.best
    assert best is not None
    for name in ("history", "curves", "by-parameters", "by-seconds", "slice-model.weight_dropout", "samplers"):
        low, high = make_figure(results, name).layout.yaxis.range
        assert 10**low < best.perplexity / 1.02 and 10**high > best.perplexity, name
    for name in ("history", "slice-model.weight_dropout", "by-parameters", "contour"):
        assert f"best: trial {best.number}" in {trace.name for trace in make_figure(results, name).data}, name


def test_every_point_of_the_history_and_of_the_curves_is_the_stores(results: Results) -> None:
    shown = json.loads(make_figure(results, "history").to_json())["data"]
    values = {
        n: v
        for trace in shown
        if trace["mode"] == "markers" and not trace["name"].startswith("best")
        for n, v in zip(trace["x"], trace["y"], strict=True)
    }
    top = max(value for number, value in values.items())
    for trial in results.record.trials:
        if trial.curve:
            assert values[trial.number] in (trial.perplexity, top)
    traces = json.loads(make_figure(results, "curves").to_json())["data"]
    drawn = sorted((x, y) for t in traces for x, y in zip(t["x"], t["y"], strict=True) if y is not None)
    stored = sorted((epoch, value) for trial in results.record.trials for epoch, value in trial.curve.items())
    assert drawn == stored


@pytest.mark.parametrize("name", FIGURES)
def test_each_figure_stands_alone_or_says_why_there_is_none(results: Results, name: str) -> None:
    if name == "confirmation":
        with pytest.raises(NothingToShowError, match="lmsearch confirm made"):
            write_figure(results, name)
        return
    page = write_figure(results, name)
    assert f'id="plot-{name}"' in page
    assert page.count("plotly.js v") == 1


def test_a_figure_that_there_is_not_is_refused_with_the_names_that_there_are(results: Results) -> None:
    with pytest.raises(ConfigError, match=r"did you mean curves\?$"):
        make_figure(results, "curve")
    with pytest.raises(
        ConfigError, match=r"'x'; there are: history, confirmation, importance.*slice-model.weight_dropout"
    ):
        make_figure(results, "x")


def test_trials_without_an_epoch_stand_in_the_history(results: Results) -> None:
    shown = json.loads(make_figure(results, "history").to_json())["data"]
    (failed,) = (trace for trace in shown if trace["name"] == "failed")
    ended = {trial.number for trial in results.record.trials}
    assert failed["x"] == [50]
    assert {number for trace in shown if trace["mode"] == "markers" for number in trace["x"]} == ended


def test_trials_on_a_line_or_of_another_program_cost_one_figure_at_most(url: str) -> None:
    values = [n / 14 for n in range(14)]
    trials = [
        Made(
            params=dict(t.params)
            | {"model.output_dropout": 0.6 * v, "model.weight_dropout": 0.7 * v, "train.learning_rate": 1e-2},
            perplexities=[100 + v],
        )
        for t, v in zip(some_trials(14), values, strict=True)
    ]
    storage, info = make_study(url, trials)
    storage.create_new_trial(
        info.ref.id,
        create_trial(value=1.0, params={"x": 0.5}, distributions={"x": FloatDistribution(0, 1)}),
    )
    results = read("made", url)
    assert results.winner is not None and results.winner.number == 0
    with pytest.raises(NothingToShowError, match="lie on a line"):
        make_figure(results, "contour")
    assert "Which hyperparameters matter" in write_report(results, command)


def test_a_study_that_has_just_started_has_a_report_too(url: str) -> None:
    make_study(url, [])
    results = read("made", url)
    page = write_report(results, command)
    assert "No trial of made is complete yet." in page
    for name in figures_of(results):
        with pytest.raises(NothingToShowError):
            make_figure(results, name)


def test_no_band_is_drawn_for_tpe_or_beyond_half_of_the_random_trials(url: str, results: Results) -> None:
    def band(found: Results) -> Any:
        traces = json.loads(make_figure(found, "budget").to_json())["data"]
        return next((trace for trace in traces if trace.get("fill") == "toself"), None)

    assert max(band(results)["x"]) == 10  # of 20 random trials
    make_study(url, some_trials(30), name="alone")
    assert band(read("alone", url)) is None


def test_csv_and_json_hold_every_epoch_as_the_store_has_it(results: Results) -> None:
    rows = list(csv.DictReader(io.StringIO(epochs_csv(results))))
    stored = [(t, row) for t in results.record.trials for row in t.epochs]
    assert len(rows) == len(stored) + 1  # the failed trial has none
    by_key = {(row["trial"], row["epoch"]): row for row in rows}
    for trial, row in stored:
        written_row = by_key[str(trial.number), str(row.epoch)]
        assert (float(written_row["perplexity"]), float(written_row["seconds"])) == (
            trial.curve[row.epoch],
            row.seconds,
        )
        assert float(written_row["model.weight_dropout"]) == trial.params["model.weight_dropout"]
    written = json.loads(json.dumps(document(results), allow_nan=False))
    assert [trial["perplexity"] for trial in written["trials"]] == [
        trial.perplexity if math.isfinite(trial.perplexity) else None for trial in results.record.trials
    ]


def test_the_command_writes_a_page_a_figure_and_the_data(results_url: str, cli: Cli, tmp_path: Path) -> None:
    said = cli("report", "made", LMSEARCH_STORAGE=results_url)
    assert (said.returncode, said.stdout) == (0, "runs/made/report.html\n"), said.stderr
    assert "Is the winner real?" in (tmp_path / "runs/made/report.html").read_text()
    said = cli("report", "made", "--figure", "slice-train.learning_rate", LMSEARCH_STORAGE=results_url)
    assert said.stdout == "runs/made/slice-train.learning_rate.html\n"
    said = cli("report", "made", "--format", "json", LMSEARCH_STORAGE=results_url)
    assert json.loads(said.stdout)["total"] == 1
    said = cli("report", "made", "--figure", "nonsense", LMSEARCH_STORAGE=results_url)
    assert (said.returncode, "there is no figure 'nonsense'" in said.stderr) == (2, True)


def open_page(browser: Any, path: Path, width: int = 1000, theme: str = "light") -> tuple[Any, list[str]]:
    """Open a page and scroll to its end, so that all is drawn; give it, and everything that went wrong."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    troubles: list[str] = []
    page.on("console", lambda said: troubles.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:", "blob:")) else troubles.append(request.url),
    )
    page.goto(f"{path.as_uri()}?theme={theme}")
    for offset in range(0, page.evaluate("document.body.scrollHeight"), 600):
        page.evaluate(f"scrollTo(0, {offset})")
        page.wait_for_timeout(60)
    page.wait_for_function(
        "() => [...document.querySelectorAll('.plot')].every(plot => plot.querySelector('.main-svg'))"
    )
    return page, troubles


@pytest.mark.slow
def test_the_page_is_whole_in_a_browser_in_both_themes_wide_and_narrow(
    results: Results, browser: Any, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text(write_report(results, command))
    for width, theme in ((1000, "light"), (1000, "dark"), (400, "light"), (400, "dark")):
        page, troubles = open_page(browser, path, width, theme)
        assert troubles == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ink, paper = page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        )
        assert (ink == "rgb(27, 31, 36)") == (theme == "light") == (paper == "rgb(255, 255, 255)")
        page.close()
    page, _ = open_page(browser, path)
    page.click("#theme")
    assert page.evaluate("document.getElementById('plot-history').layout.font.color") == "#e4e7eb"
    page.emulate_media(media="print")
    assert page.pdf(width="210mm", height="297mm").startswith(b"%PDF")


@pytest.mark.slow
def test_the_mouse_tells_a_configuration_and_zooms(results: Results, browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "curves.html"
    path.write_text(write_figure(results, "curves"))
    page, troubles = open_page(browser, path)
    # The mouse tells any of the points within three pixels, so it goes to the last point that stands most alone.
    name, *point = page.evaluate(
        """() => {
          const plot = document.getElementById("plot-curves"), box = plot.getBoundingClientRect();
          const { _size: size, xaxis, yaxis } = plot._fullLayout;
          const points = plot.data.flatMap((trace, t) => trace.y.flatMap((y, i) => y === null ? [] :
            [{ name: trace.name, x: box.x + size.l + xaxis.c2p(trace.x[i]), y: box.y + size.t + yaxis.d2p(y) }]));
          const room = one => Math.min(...points.filter(other => other !== one)
            .map(other => Math.hypot(one.x - other.x, one.y - other.y)));
          const alone = points.filter(one => /^trial \\d+$/.test(one.name)).sort((a, b) => room(b) - room(a))[0];
          return [alone.name, alone.x, alone.y];
        }"""
    )
    page.mouse.move(point[0] - 3, point[1])
    page.mouse.move(*point)
    page.wait_for_selector(".hovertext")
    hover_text = page.locator(".hovertext").first.text_content()
    trial = next(trial for trial in results.record.trials if f"trial {trial.number}" == name)
    assert f"{name} {trial.sampler}: complete, {trial.perplexity:.2f} in epoch {trial.best_epoch}" in hover_text
    assert f"model.tie_weights = {str(trial.params['model.tie_weights']).lower()}" in hover_text
    before = page.evaluate("document.getElementById('plot-curves').layout.yaxis.range")
    area = page.locator("#plot-curves .nsewdrag").bounding_box()
    page.mouse.move(area["x"] + 60, area["y"] + 40)
    page.mouse.down()
    page.mouse.move(area["x"] + 300, area["y"] + 160, steps=8)
    page.mouse.up()
    page.wait_for_function(
        "before => document.getElementById('plot-curves').layout.yaxis.range[1] !== before[1]", arg=before
    )
    page.get_by_text("tokens", exact=True).click()
    page.wait_for_function("() => document.getElementById('plot-curves').layout.xaxis.title.text === 'tokens trained'")
    assert troubles == []


@pytest.mark.slow
def test_all_trials_are_sorted_filtered_linked_from_points_and_brushed(
    results: Results, browser: Any, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text(write_report(results, command))
    page, troubles = open_page(browser, path, 1300)
    body = "[...document.querySelectorAll('[data-grid] tbody tr')]"

    def column(number: int) -> list[str]:
        found: list[str] = page.evaluate(f"{body}.map(row => row.cells[{number}].textContent)")
        return found

    best = results.record.best
    assert best is not None and column(0)[0] == str(best.number) and len(column(0)) == 25
    page.get_by_role("button", name="show more").click()
    assert len(column(0)) == len(results.record.trials) == 52
    page.locator("th button", has_text="learning_rate").click()
    rates = [float(rate) for rate in column(10)]
    assert rates == sorted(rates)
    page.locator("th button", has_text="learning_rate").click()
    assert [float(rate) for rate in column(10)] == rates[::-1]
    page.get_by_label("filter").fill("pruned tpe")
    wanted = {str(t.number) for t in results.record.trials if (t.outcome, t.by) == ("pruned", "tpe")}
    assert set(column(0)) == wanted
    assert page.locator("[data-count]").text_content() == f"{len(wanted)} of 52 trials"
    # A point leads to its row, though the filter had left it out.
    page.evaluate("document.getElementById('plot-history').emit('plotly_click', { points: [{ customdata: 50 }] })")
    assert page.evaluate("location.hash") == "#trial-50" and "50" in column(0)
    assert page.evaluate("document.getElementById('trial-50').className") == "target"
    # Dragging over the upper half of the first axis keeps the trials that pass there.
    page.evaluate("document.getElementById('plot-parallel').scrollIntoView({ block: 'center' })")
    x, low, high = page.evaluate(
        """() => {
          const plot = document.getElementById("plot-parallel"), box = plot.getBoundingClientRect();
          const { _size: size, xaxis, yaxis } = plot._fullLayout, y = at => box.y + size.t + yaxis.d2p(at);
          return [box.x + size.l + xaxis.d2p(1), y(0.5), y(1.05)];
        }"""
    )
    page.mouse.move(x, low)
    page.mouse.down()
    page.mouse.move(x, high, steps=4)
    page.mouse.up()
    page.wait_for_function("() => document.getElementById('plot-parallel').layout.shapes?.length === 1")
    kept = page.evaluate(
        "document.getElementById('plot-parallel').data.map(trace => [trace.customdata[0], trace.y[1], trace.opacity])"
    )
    assert {opacity == 1 for _, _, opacity in kept} == {True, False}
    assert all((opacity == 1) == (height >= 0.5) for _, height, opacity in kept)
    page.mouse.dblclick(x, high)
    page.wait_for_function("() => document.getElementById('plot-parallel').data.every(trace => trace.opacity === 1)")
    assert troubles == []


@pytest.mark.slow
def test_hostile_names_corpora_reasons_and_samples_do_not_run(url: str, browser: Any, tmp_path: Path) -> None:
    attributes = {"reason": HOSTILE, "sample": HOSTILE, "traceback": HOSTILE}
    trials = [dataclasses.replace(trial, attributes=attributes, sampler=HOSTILE[:60]) for trial in some_trials(30)]
    trials.append(Made(params=some_trials(1)[0].params, perplexities=[], outcome="failed", attributes=attributes))
    name = HOSTILE.replace("/", "")
    make_study(url, trials, name=name)
    results = read(name, url)
    info = dataclasses.replace(results.record.info, corpus=HOSTILE)
    results = dataclasses.replace(results, record=dataclasses.replace(results.record, info=info))
    path = tmp_path / "report.html"
    path.write_text(write_report(results, command))
    page, troubles = open_page(browser, path)
    assert page.title() == f"lmsearch: {name}"
    assert page.locator("img").count() == 0
    assert "{{ 7 * 7 }}" in page.text_content("body") and troubles == []


@pytest.mark.heavy
def test_a_thousand_trials_are_a_page_below_15_mb_that_opens(url: str, browser: Any, tmp_path: Path) -> None:
    make_study(url, some_trials(1000, epochs=10), text=STUDY.replace("epochs = 4", "epochs = 10"))
    path = tmp_path / "report.html"
    path.write_text(write_report(read("made", url), command))
    assert path.stat().st_size < 15e6
    page = browser.new_page()
    began = time.monotonic()
    page.goto(path.as_uri())
    page.evaluate("document.getElementById('plot-curves').scrollIntoView()")
    page.wait_for_selector("#plot-curves .main-svg", state="attached")
    print(f"{path.stat().st_size / 1e6:.1f} MB, all learning curves after {time.monotonic() - began:.2f} s")
    page.close()
    _, troubles = open_page(browser, path)
    assert troubles == []
