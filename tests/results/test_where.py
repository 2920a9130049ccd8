"""Conditions on trials: what they mean, and that nothing else than a condition is understood."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsearch.errors import ConfigError
from lmsearch.results.reading import read
from lmsearch.results.where import parse_condition, sort_trials
from lmsearch.store.records import TrialRecord
from tests.quick.test_cli_words import make_trial
from tests.results.made import make_study, some_trials

PATHS = ["model.output_dropout", "model.tie_weights", "train.learning_rate"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.tie_weights == true", True),
        ("model.tie_weights==false", False),
        ("model.output_dropout >= 0.1 and perplexity < 40", True),
        ("not (epochs > 3 or by == 'random')", True),
        ('outcome == "complete" and by == tpe', True),
        ("outcome != complete or train.learning_rate == 1e-2", True),
        ("not not trial == 3", True),
        ("reason > 5", False),
        ("perplexity < 10 or perplexity > 30 and trial == 3", True),
    ],
)
def test_a_condition_means_what_it_says(text: str, expected: bool) -> None:
    assert parse_condition(text, PATHS)(make_trial(3)) is expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "expected more after its end"),
        ("perplexity", "expected more after its end"),
        ("perplexity < ", "expected more after its end"),
        ("perplexty < 3", "a trial has no 'perplexty'; did you mean perplexity?"),
        ("perplexity = 3", "cannot be read at '= 3'"),
        ("model.tie_weights == 1", "model.tie_weights must be true or false, got 1"),
        ("model.tie_weights == True", "model.tie_weights must be true or false, got 'True'"),
        ("model.output_dropout < much", "model.output_dropout must be a number, got 'much'"),
        ("(trial == 3", "expected more after its end"),
        ("trial == 3)", "expected nothing, or `and` or `or`, instead of ')'"),
        ("trial == 3 trial == 4", "instead of 'trial'"),
        ("== 3", "a name instead of '=='"),
        ("trial < <", "a value instead of '<'"),
        ("__import__('os').system('true') == 0", "a trial has no '__import__'"),
        ("(" * 80 + "trial == 3" + ")" * 80, "no more than 50 brackets"),
    ],
)
def test_what_is_no_condition_is_refused_with_what_was_expected(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_condition(text, PATHS)
    assert complaint in str(error.value)


@given(st.text(alphabet="trial perx.<>=!()'\"01andotr\n", max_size=60) | st.text(max_size=40))
def test_any_text_is_a_condition_or_refused(text: str) -> None:
    try:
        condition = parse_condition(text, PATHS)
    except ConfigError:
        return
    assert condition(make_trial(3)) in (True, False)


def test_trials_are_sorted_with_those_that_have_nothing_last() -> None:
    trials: list[TrialRecord] = [
        make_trial(0),
        make_trial(1, curve={}),
        make_trial(2, params={}),
        make_trial(3, epochs=1),
    ]
    assert [trial.number for trial in sort_trials(trials, "perplexity")] == [0, 2, 3, 1]
    assert [trial.number for trial in sort_trials(trials, "train.learning_rate")][-1] == 2


def test_conditions_and_orders_hold_for_what_the_store_has(prepared_sqlite: Path, tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(prepared_sqlite.read_bytes())
    url = f"sqlite:///{tmp_path / 'store.db'}"
    make_study(url, [*some_trials(6), dataclasses.replace(some_trials(1)[0], outcome="failed", perplexities=[])])
    record = read("made", url).record
    tied = [
        trial
        for trial in record.trials
        if parse_condition("model.tie_weights == true", list(record.info.spec.open))(trial)
    ]
    assert [t.number for t in tied] == [t.number for t in record.trials if t.params["model.tie_weights"] is True]
