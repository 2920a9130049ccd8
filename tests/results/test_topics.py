"""What is said of a study, on studies whose answer is known."""

import dataclasses
import math
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from lmsearch.results.budget import budget_sentences, judge_budget
from lmsearch.results.pruning import closeness, pruning_sentences
from lmsearch.results.ranges import edge_line, edge_sentence, edges
from lmsearch.results.reading import Results, read
from lmsearch.results.timing import time_sentences, work_of
from lmsearch.results.verdict import verdict
from lmsearch.search.strategies import make_sampler, suggest
from lmsearch.store import tickets
from lmsearch.store.records import StudyInfo, optuna_study
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import EpochRow, HeldTicket, Progress
from tests.results.made import STUDY, Made, make_study, some_trials


@pytest.fixture
def url(prepared_sqlite: Path, tmp_path: Path) -> str:
    (tmp_path / "store.db").write_bytes(prepared_sqlite.read_bytes())
    return f"sqlite:///{tmp_path / 'store.db'}"


def made(url: str, trials: list[Made]) -> Results:
    make_study(url, trials)
    return read("made", url)


def crowded(low: float, high: float, path: str = "model.weight_dropout") -> list[Made]:
    """Make twelve complete trials, of which the five best have `path` between two values."""
    trials = some_trials(12, outcome="complete")
    return [
        dataclasses.replace(
            trial,
            perplexities=[90.0 + number],
            params=dict(trial.params) | {path: low + (high - low) * number / 4 if number < 5 else 0.05},
        )
        for number, trial in enumerate(trials)
    ]


def test_an_end_that_the_best_crowd_is_named_with_the_line_to_paste(url: str) -> None:
    results = made(url, crowded(0.66, 0.70))
    (edge,) = edges(results.record)
    assert str(edge) == "5 of the 5 best have model.weight_dropout within 10% of its upper end 0.7"
    assert (edge.path, edge.end, edge.wider) == ("model.weight_dropout", "high", 0.88)
    assert edge_line(results.record, edge) == "weight_dropout = { low = 0.0, high = 0.88 }"


@pytest.mark.parametrize(
    "spelled",
    [
        "weight_dropout.low = 0.0\nweight_dropout.high = 0.7\n",
        "tie_weights = { choices = [true, false] }\n[model.weight_dropout]\nlow = 0.0\nhigh = 0.7\n",
    ],
)
def test_the_line_to_paste_is_toml_however_the_file_is_written(url: str, spelled: str) -> None:
    text = STUDY.replace("weight_dropout = { low = 0.0, high = 0.7 } # how much?\n", "")
    text = text.replace(
        "tie_weights = { choices = [true, false] }\n",
        "" if "choices" in spelled else "tie_weights = { choices = [true, false] }\n",
    )
    text = text.replace("[train]", spelled + "[train]")
    make_study(url, crowded(0.66, 0.70), text=text)
    record = read("made", url).record
    assert edge_line(record, edges(record)[0]) == "weight_dropout = {low = 0.0, high = 0.88}"


def test_a_grid_and_a_seed_are_not_warned_of_and_a_logarithmic_scale_is_named(url: str, tmp_path: Path) -> None:
    rate = crowded(0.08, 0.1, "train.learning_rate")
    for name, trials, found in (("log", rate, 1), ("grid", [replace(t, sampler="grid") for t in rate], 0)):
        make_study(url, trials, name=name)
        remarks = edges(read(name, url).record)
        assert len(remarks) == found
        assert all("of its upper end 0.1 on its logarithmic scale" in str(edge) for edge in remarks)
    seeds = [replace(t, params=dict(t.params) | {"train.seed": n % 3}) for n, t in enumerate(crowded(0.1, 0.3))]
    make_study(url, seeds, name="seed", text=STUDY + "seed = { low = 0, high = 90 }\n")
    assert edges(read("seed", url).record) == []


def test_beside_trials_that_diverged_a_wider_range_is_not_advised(url: str) -> None:
    diverged = dataclasses.replace(crowded(0.66, 0.7)[0], outcome="diverged", perplexities=[5000.0])
    (edge,) = edges(made(url, [*crowded(0.66, 0.70), diverged]).record)
    assert (edge.diverged, edge.wider) == (1, None)
    assert "do not widen the range" in edge_sentence(edge)


def test_an_end_that_the_setting_itself_has_is_not_warned_about(url: str) -> None:
    assert edges(made(url, crowded(0.0, 0.03)).record) == []


def test_a_logarithmic_range_is_looked_at_in_its_own_scale(url: str) -> None:
    (edge,) = edges(made(url, crowded(1e-4, 1.5e-4, "train.learning_rate")).record)
    assert (edge.end, edge.wider) == ("low", 1e-5)


def test_fewer_than_ten_complete_trials_say_nothing_of_a_range(url: str) -> None:
    assert edges(made(url, crowded(0.66, 0.70)[:9]).record) == []


def test_without_a_confirmation_the_verdict_says_that_the_best_may_be_the_luckiest(url: str) -> None:
    results = made(url, [*some_trials(9), dataclasses.replace(some_trials(1)[0], perplexities=[70.0])])
    best, luck = verdict(results)
    assert "Trial 9 (by tpe) has the best validation perplexity, 70.00 in epoch 1" in best
    assert luck == "That is one training with one seed, the luckiest of 7."


def test_the_worth_of_the_second_half_is_what_it_improved(url: str) -> None:
    values = [100.0, 99.0, 98.0, 97.0, 96.0, 95.5, 96.0, 97.0]
    trials = [dataclasses.replace(t, perplexities=[v]) for t, v in zip(some_trials(8, 1), values, strict=True)]
    said = list(budget_sentences(judge_budget(made(url, trials).record)))
    assert (
        said[0] == "The second half of the budget (the last 4 of 8 trials that ended) was worth about 1.50 perplexity."
    )
    assert said[1] == (
        "Whether tpe beats random search at twice its budget is unknown: that needs 16 more random trials."
    )


def test_a_sampler_is_compared_with_random_search_at_twice_its_budget(url: str) -> None:
    random = [
        dataclasses.replace(t, perplexities=[100.0 + n], sampler="random") for n, t in enumerate(some_trials(12, 1))
    ]
    tpe = [dataclasses.replace(t, perplexities=[98.0 - n]) for n, t in enumerate(some_trials(8, 1))]
    said = list(budget_sentences(judge_budget(made(url, random + tpe).record)))
    assert said[-2:] == [
        "The first 6 trials of tpe found 93.00; 12 random trials find 100.00, so tpe was at least as good as random "
        "search at twice its budget. It also learned from 12 trials of other samplers, which flatters it.",
        "To compare all 8 trials of tpe needs 4 more random trials.",
    ]


def test_how_close_the_winner_came_to_being_pruned_is_reported_where_it_was_nearest(url: str) -> None:
    winner, others = [130.0, 120.0, 100.0, 80.0], [[130.0, 110.0, 101.0, 90.0 + n] for n in range(6)]
    curves = [winner, *others, [140.0, 125.0]]
    outcomes = [*["complete"] * 7, "pruned"]
    trials = [
        dataclasses.replace(t, perplexities=c, outcome=o)
        for t, c, o in zip(some_trials(8), curves, outcomes, strict=True)
    ]
    results = made(url, trials)
    # Ours prunes from the second of four epochs on.
    assert [(one.epoch, one.median, one.rank, one.reached) for one in closeness(results)] == [
        (2, 110.0, 7, 8),
        (3, 101.0, 1, 7),
    ]
    said = list(pruning_sentences(results))
    assert "a median pruner that knew all other complete trials would have stopped the winner, trial 0." in said[0]
    assert "in epoch 2: 120.00 against a median of 110.00, place 7 of 8" in said[0]
    assert said[1] == "Pruning saved 2 of 32 epochs in 1 trials, about 20s of training."
    assert closeness(made_again(url, trials[:6])) == []  # too few for a pruner to act


def made_again(url: str, trials: list[Made]) -> Results:
    make_study(url, trials, name="again")
    return read("again", url)


def test_idle_workers_and_tokens_a_second_are_counted(url: str) -> None:
    said = list(time_sentences(made(url, some_trials(3)).record))
    assert said[0] == "3 trials trained and evaluated for 1m40s, 10,000 tokens, 100 tokens/s per worker."


def rated(costs: dict[str, float], trials: int = 24, noise: float = 0.01, outcome: str = "complete") -> list[Made]:
    """Make trials whose loss is quadratic in some values, with noise between them."""
    rng = np.random.default_rng(11)
    ranges = {"model.output_dropout": (0.0, 0.6), "model.weight_dropout": (0.0, 0.7), "train.learning_rate": (-4, -1)}
    found = []
    for _ in range(trials):
        shares = {path: float(rng.random()) for path in ranges}
        params: dict[str, Any] = {path: low + shares[path] * (high - low) for path, (low, high) in ranges.items()}
        params |= {
            "model.tie_weights": bool(rng.random() < 0.5),
            "train.learning_rate": 10 ** params["train.learning_rate"],
        }
        loss = 3.0 + sum(cost * (shares[path] - 0.6) ** 2 for path, cost in costs.items()) + rng.normal(0, noise)
        epochs = 4 if outcome == "complete" else 3
        curve = [math.exp(loss + 0.3 / epoch - 0.3 / 4) for epoch in range(1, epochs + 1)]
        found.append(Made(params=params, perplexities=curve, outcome=outcome))
    return found


def test_a_value_that_matters_is_named_with_its_share_and_its_interval(url: str) -> None:
    found = made(url, rated({"train.learning_rate": 0.5})).importances
    assert found.most == found.values[0].path == "train.learning_rate" and found.trials == 24
    assert [value.path for value in found.values if value.stands_out] == ["train.learning_rate"]
    first = found.values[0]
    assert 0.7 < first.low <= first.share <= first.high <= 1.0
    (sentence,) = found.sentences()
    assert sentence.startswith("train.learning_rate matters most: alone it explains ")
    assert sentence.endswith(" of the differences between 24 trials.")


def test_nothing_is_said_where_nothing_stands_out_or_too_little_is_known(url: str) -> None:
    found = made(url, rated({})).importances
    assert found.most is None and not any(value.stands_out for value in found.values)
    assert found.sentences() == ["No searched value stands out from chance in 24 trials."]
    make_study(url, rated({"train.learning_rate": 0.5}, trials=7), name="few")
    few = read("few", url).importances
    assert few.values == ()
    assert few.sentences() == ["It needs 8 trials to say which searched values matter; 7 can be used."]
    same = [replace(trial, perplexities=[30.0, 30.0, 30.0, 30.0]) for trial in rated({})]
    make_study(url, same, name="same")
    assert read("same", url).importances.values == ()


def test_two_values_that_matter_alike_are_both_named_and_neither_as_the_first(url: str) -> None:
    found = made(url, rated({"train.learning_rate": 0.4, "model.output_dropout": 0.4}, trials=60)).importances
    assert {value.path for value in found.values if value.stands_out} == {"train.learning_rate", "model.output_dropout"}
    assert found.most is None
    assert found.sentences()[0].startswith("Several searched values matter, and which one most is open. ")


def test_trials_that_were_stopped_early_count_with_their_forecast(url: str) -> None:
    complete = rated({"train.learning_rate": 0.5}, trials=6)
    pruned = rated({"train.learning_rate": 0.5}, trials=18, outcome="pruned")
    found = made(url, complete + pruned).importances
    assert found.trials == 24 and found.most == "train.learning_rate"


def test_two_trials_more_do_not_turn_the_shares_around(url: str) -> None:
    """PED-ANOVA gave one value 87 % with 24 trials, and 9 % after two more."""
    trials = rated({"train.learning_rate": 0.3}, trials=26, noise=0.03)
    before = made(url, trials[:24]).importances
    make_study(url, trials, name="more")
    after = read("more", url).importances
    shares = [{value.path: value.share for value in found.values} for found in (before, after)]
    assert before.most == after.most == "train.learning_rate"
    assert all(abs(shares[0][path] - shares[1][path]) < 0.2 for path in shares[0])


def test_a_search_from_a_prior_says_what_the_prior_gave(url: str, tmp_path: Path) -> None:
    text = STUDY.replace("trials = 1", "trials = 4") + '[prior]\n"model.tie_weights" = true\n'
    storage, info = make_study(url, [], text=text)
    results = read("made", url)
    assert judge_budget(results.record).prior is None  # nothing has been trained
    for number, perplexity in enumerate((30.0, 33.0, 28.0, 31.0)):
        ticket = tickets.claim(
            storage, info.ref, tickets.Holder(worker=f"w{number}", host="h", process=1, device="cpu")
        )
        assert ticket is not None and ticket.number == number
        storage_trial = ask(storage, info, ticket)
        row = EpochRow(epoch=1, train_loss=3.0, valid_loss=3.0, seconds=1.0, tokens=1, learning_rate=0.1)
        with storage.reporting(row, Progress(epoch=1, step=1, tokens_per_second=None), None):
            storage_trial.report(perplexity, 1)
        storage_trial.study.tell(storage_trial, perplexity)
    budget = judge_budget(read("made", url).record)
    assert budget.prior is not None and (budget.prior.best, budget.prior.best_evenly) == (28.0, 31.0)
    said = [sentence for sentence in budget_sentences(budget) if "[prior]" in sentence]
    assert said == [
        "The search started from a [prior]: the best of 2 trials near it reached 28.00, the best of 2 that were drawn "
        "evenly beside them reached 31.00. What a prior gives is knowledge, and not the search's merit."
    ]


def ask(storage: FencedStorage, info: StudyInfo, ticket: HeldTicket) -> optuna.Trial:
    """Draw a ticket's values as a worker does."""
    study = optuna_study(storage, info.ref.name)
    study.sampler = make_sampler(info.spec, ticket.sampler, ticket.number)
    template = create_trial(state=TrialState.RUNNING, user_attrs={"ticket": ticket.number, "sampler": ticket.sampler})
    with storage.asking(ticket, template):
        trial = study.ask()
    suggest(trial, info.spec)
    return trial


def test_time_in_which_a_trial_was_paused_is_not_work() -> None:
    start = datetime(2026, 11, 30, 12)

    def row(epoch: int, second: float | None) -> EpochRow:
        ended = None if second is None else (start + timedelta(seconds=second)).timestamp()
        return EpochRow(epoch=epoch, train_loss=1, valid_loss=1, seconds=10, tokens=1, learning_rate=1, ended=ended)

    def pieces(*seconds: float | None) -> list[tuple[float, float]]:
        epochs = tuple(row(number, second) for number, second in enumerate(seconds, 1))
        made: Any = SimpleNamespace(started=start, ended=start + timedelta(seconds=200), epochs=epochs)
        return [((a - start).total_seconds(), (b - start).total_seconds()) for a, b in work_of(made)]

    assert pieces(11, 22, 150, 161) == [(1, 22), (140, 161)]
    assert pieces(11, None, 150) == [(0, 200)]  # of an earlier lmsearch
    assert pieces(11 - 3600, 22 - 3600) == [(0, 200)]  # of a host in another time zone
