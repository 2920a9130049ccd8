"""`lmsearch trials`, `show` and `compare` as a person types them, on studies that a test makes up."""

import json
from pathlib import Path
from typing import Any

import pytest

from lmsearch.results.reading import read
from lmsearch.search.confirm import confirmation_spec
from tests.conftest import Cli
from tests.report.test_report import open_page
from tests.results.made import STUDY, Made, make_study, some_trials


@pytest.fixture
def url(prepared_sqlite: Path, tmp_path: Path) -> str:
    (tmp_path / "store.db").write_bytes(prepared_sqlite.read_bytes())
    return f"sqlite:///{tmp_path / 'store.db'}"


def test_trials_are_listed_sorted_and_filtered(url: str, cli: Cli) -> None:
    make_study(url, some_trials(9))
    said = cli("trials", "--where", "outcome == complete", LMSEARCH_STORAGE=url)  # the only study
    assert said.returncode == 0, said.stderr
    complete = sorted(
        (t for t in read("made", url).record.trials if t.outcome == "complete"), key=lambda t: t.perplexity
    )
    rows = [line.split() for line in said.stdout.splitlines()[1:]]
    assert [(row[0], row[3]) for row in rows] == [(str(t.number), f"{t.perplexity:.2f}") for t in complete]
    listed = json.loads(cli("trials", "made", "--sort", "trial", "--limit", "2", "--json", LMSEARCH_STORAGE=url).stdout)
    assert [trial["trial"] for trial in listed] == [0, 1]
    lines = cli("trials", "made", "--sort", "-learning_rate", "--csv", LMSEARCH_STORAGE=url).stdout.splitlines()
    column = lines[0].split(",").index("train.learning_rate")
    rates = [float(line.split(",")[column]) for line in lines[1:]]
    assert len(rates) == 9 and rates == sorted(rates, reverse=True)
    said = cli("trials", "made", "--where", "epochs > 90", LMSEARCH_STORAGE=url)
    assert said.stdout == "made has 9 trials, and none of them matches\n"
    said = cli("trials", "made", "--sort", "perplexty", LMSEARCH_STORAGE=url)
    assert (said.returncode, "did you mean perplexity?" in said.stderr) == (2, True)


def test_a_trial_is_shown_with_its_epochs_its_sample_and_its_failure(url: str, cli: Cli) -> None:
    failed = {"reason": "ValueError: no", "traceback": "Traceback\nValueError: no"}
    make_study(
        url,
        [
            Made(params=some_trials(1)[0].params, perplexities=[120.0, 100.0], attributes={"sample": "the list is"}),
            Made(params=some_trials(1)[0].params, perplexities=[], outcome="failed", attributes=failed),
        ],
    )
    said = cli("show", "made", "0", LMSEARCH_STORAGE=url).stdout
    assert said.startswith("trial 0 of made, by tpe: complete, perplexity 100.00 in epoch 2\n")
    assert "    2   1.0000   4.6052      100.00     10.0       100\n" in said
    assert "sample of its text: the list is" in said
    said = cli("show", "made", "1", LMSEARCH_STORAGE=url).stdout
    assert "  ValueError: no\n" in said and "retry it with: lmsearch retry made 1" in said
    assert (
        json.loads(cli("show", "made", "0", "--json", LMSEARCH_STORAGE=url).stdout)["epochs"][1]["perplexity"] == 100.0
    )
    refused = cli("show", "made", "7", LMSEARCH_STORAGE=url)
    assert (refused.returncode, refused.stderr) == (2, "lmsearch: made has no trial 7; there are 0 to 1\n")


def test_searches_are_compared_with_the_spread_over_their_repetitions(url: str, cli: Cli, tmp_path: Path) -> None:
    for name, values in (("tpe-1", [100, 90, 80]), ("tpe-2", [110, 100, 84, 70]), ("random", [105, 104, 103])):
        trials = [Made(params=some_trials(1)[0].params, perplexities=[float(value)]) for value in values]
        make_study(url, trials, name=name)
    said = cli("compare", "tpe-*", "random", "--report", "page.html", LMSEARCH_STORAGE=url)
    assert said.returncode == 0, said.stderr
    rows = [line.split() for line in said.stdout.splitlines()]
    assert rows[0][-2:] == ["tpe-*", "random"]
    assert [row[-4:] for row in rows[2:5]] == [
        ["105.00", "±", "7.07", "105.00"],
        ["95.00", "±", "7.07", "104.00"],
        ["82.00", "±", "2.83", "103.00"],
    ]
    assert rows[-3] == [
        "After",
        "3",
        "trials",
        "tpe-*",
        "has",
        "found",
        "82.00",
        "±",
        "2.83,",
        "random",
        "has",
        "found",
        "103.00.",
    ]
    assert "random ran once" in said.stdout
    page = (tmp_path / "page.html").read_text()
    assert (
        "tpe-* against random" in page and "<strong>82.00 ± 2.83</strong><span>tpe-* after 3 trials, 2 studies" in page
    )
    assert "<td>tpe-2/3</td><td>random/2</td>" in page and "Where the study files differ" not in page
    # A confirmation is no repetition, and no search.
    again = confirmation_spec(read("tpe-1", url).record.info).text
    make_study(
        url,
        [Made(params=dict(some_trials(1)[0].params) | {"train.seed": 2}, perplexities=[9.0])],
        "tpe-1.confirm",
        again,
        confirms="tpe-1",
    )
    named = cli("compare", "tpe-1.confirm", LMSEARCH_STORAGE=url)
    assert (named.returncode, "is not a search" in named.stderr) == (2, True)
    listed = cli("studies", LMSEARCH_STORAGE=url).stdout
    assert "tpe-1.confirm: 0 of 1 trials, 1 complete, 1 taken over\n" in listed
    comparison = json.loads(cli("compare", "tpe-*", "--json", LMSEARCH_STORAGE=url).stdout)
    assert comparison[0]["studies"][1] == {"study": "tpe-2", "best": [110.0, 100.0, 84.0, 70.0]}
    said = cli("compare", "nothing-*", LMSEARCH_STORAGE=url)
    assert (said.returncode, "there is no study 'nothing-*'" in said.stderr) == (2, True)


def test_searches_that_cannot_be_compared_are_refused(url: str, cli: Cli) -> None:
    make_study(url, some_trials(2), name="one")
    make_study(url, some_trials(2), name="two", text=STUDY.replace("epochs = 4", "epochs = 5"))
    said = cli("compare", "one", "two", LMSEARCH_STORAGE=url)
    assert said.returncode == 2
    assert "one and two cannot be compared: trials of the one have 4 epochs, of the other 5" in said.stderr


def test_a_comparison_says_whether_repeated_searches_differ_and_in_which_settings(
    url: str, cli: Cli, tmp_path: Path
) -> None:
    wider = STUDY.replace("high = 0.6", "high = 0.8", 1)
    assert wider != STUDY
    for number, value in enumerate((70.0, 71.0, 72.0)):
        make_study(url, [Made(params=some_trials(1)[0].params, perplexities=[value])], name=f"a-{number}")
        make_study(url, [Made(params=some_trials(1)[0].params, perplexities=[value + 9])], f"b-{number}", wider)
        make_study(url, [Made(params=some_trials(1)[0].params, perplexities=[value + 1])], name=f"c-{number}")
    said = cli("compare", "a-*", "b-*", "c-*", "--report", "page.html", LMSEARCH_STORAGE=url)
    assert said.returncode == 0, said.stderr
    assert "a-* is better than b-* (difference 9.00, 95 % interval 6.15 to 11.85)." in said.stdout
    assert "Between a-* and c-* there is no clear difference (difference 1.00" in said.stdout
    page = (tmp_path / "page.html").read_text()
    assert "Where the study files differ" in page and "b-0" in page
    assert "<td>training and evaluation</td><td>30s</td>" in page  # three epochs of ten seconds


@pytest.mark.slow
def test_the_page_of_a_comparison_is_whole_in_a_browser(url: str, cli: Cli, browser: Any, tmp_path: Path) -> None:
    for name in ("<b>a</b>-1", "<b>a</b>-2", "b"):
        make_study(url, some_trials(8), name=name.replace("/", ""))
    said = cli("compare", "<b>a<b>-*", "b", "--report", "page.html", LMSEARCH_STORAGE=url)
    assert said.returncode == 0, said.stderr
    page, troubles = open_page(browser, tmp_path / "page.html", 400)
    assert troubles == [] and page.evaluate("document.documentElement.scrollWidth") <= 400
