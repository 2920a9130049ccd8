"""A study's leaders on fresh seeds: what is owed, and what is said of it."""

import shlex
from pathlib import Path

import pytest

from lmsearch.cli.live import _Lines
from lmsearch.errors import StudyError
from lmsearch.results.advice import confirmation_sentence
from lmsearch.results.best import best_config, require_winner
from lmsearch.results.publishing import study_note
from lmsearch.results.reading import read
from lmsearch.results.report import write_report
from lmsearch.results.statistics import compare
from lmsearch.search.confirm import begin_confirmation, confirmation_spec
from lmsearch.search.extend import extended_text
from lmsearch.search.launch import Snapshot
from lmsearch.store.records import SEED
from lmsearch.store.tickets import list_tickets
from tests.bureau import Bureau
from tests.factories import TINY_STUDY
from tests.search.confirming import confirm


def searched(bureau: Bureau) -> Bureau:
    for _ in bureau.search(2):
        pass
    return bureau


def test_leaders_are_paired_with_seeds_the_study_has_not_used_and_asked_again_only_what_lacks_is_added(
    bureau: Bureau,
) -> None:
    searched(bureau)
    info = begin_confirmation(bureau.storage, "tiny", top=2, seeds=2)
    first = list_tickets(bureau.storage, info.ref)
    best = sorted(bureau.record().trials, key=lambda trial: trial.perplexity)[:2]
    assert [ticket.fixed for ticket in first] == [trial.params | {SEED: seed} for trial in best for seed in (2, 3)]
    again = list_tickets(bureau.storage, begin_confirmation(bureau.storage, "tiny", top=2, seeds=3).ref)
    assert [ticket.fixed[SEED] for ticket in again] == [2, 3, 2, 3, 4, 4]
    begin_confirmation(bureau.storage, "tiny", top=1, seeds=1)
    assert len(list_tickets(bureau.storage, info.ref)) == 6


def test_a_study_without_a_complete_trial_cannot_be_confirmed(sqlite_bureau: Bureau) -> None:
    with pytest.raises(StudyError, match="no trial of tiny is complete yet"):
        begin_confirmation(sqlite_bureau.storage, "tiny", top=3, seeds=3)


def test_a_confirmation_is_pruned_by_nothing_and_leaves_the_rest_of_the_study_as_it_is(sqlite_bureau: Bureau) -> None:
    info = sqlite_bureau.info
    spec = confirmation_spec(info)
    assert (spec.settings.pruner, spec.manual, list(spec.open)) == ("none", (), [*info.spec.open, SEED])
    assert {path: value for path, value in spec.fixed.items() if path != SEED} == dict(info.spec.fixed)


def test_equal_leaders_are_a_tie_and_a_clear_one_is_the_winner(bureau: Bureau) -> None:
    searched(bureau)
    best = sorted(bureau.record().trials, key=lambda trial: trial.perplexity)[:3]
    noise = {2: 0.0, 3: 0.4, 4: -0.4}
    # The second leader of the search is the first on fresh seeds: the study's best was the luckiest.
    confirm(bureau, lambda rank, seed: 90 + 5 * (rank != 1) + noise[seed] + 0.01 * rank * seed)
    results = read("tiny", bureau.url)
    assert results.confirmation is not None
    assert (results.confirmation.verdict, results.winner) == ("winner", best[1])
    said = confirmation_sentence(results.confirmation)
    assert f"Trial {best[1].number} has a mean perplexity of 90.03 over 3 fresh seeds" in said
    assert "is the winner" in said
    config = best_config(results, Path("runs/tiny"), "a command")
    assert (config["result"]["source"], config["result"]["trial"]) == ("confirmed", best[1].number)
    assert config["result"]["seeds"] == {
        "2": pytest.approx(90.02),
        "3": pytest.approx(90.43),
        "4": pytest.approx(89.64),
    }
    assert config["result"]["curve"] == list(best[1].curve.values())
    assert config["train"]["seed"] == 1


def test_asked_again_with_more_seeds_it_doubts_half_as_much_each_time(sqlite_bureau: Bureau) -> None:
    searched(sqlite_bureau)
    noise = [0.3, -0.3, 0.1, -0.2, 0.2, -0.1]

    def made_up(rank: int, seed: int) -> float:
        return 90 + rank + (noise[seed % 6] if rank else 0.0)

    for seeds in (3, 6):
        confirm(sqlite_bureau, made_up, top=2, seeds=seeds)
    confirmation = read("tiny", sqlite_bureau.url).confirmation
    assert confirmation is not None
    rows = [list(leader.perplexities.values()) for leader in confirmation.leaders]
    assert [len(row) for row in rows] == [6, 6]
    assert confirmation.comparison == compare(rows, looks=2) != compare(rows)
    confirm(sqlite_bureau, made_up, top=2, seeds=6)  # nothing new is asked, so it is the same look
    assert read("tiny", sqlite_bureau.url).confirmation == confirmation


def test_a_confirmation_is_no_search_with_a_best_of_its_own(
    sqlite_bureau: Bureau, capsys: pytest.CaptureFixture[str]
) -> None:
    searched(sqlite_bureau)
    confirm(sqlite_bureau, lambda rank, seed: 90.0 + rank + seed / 10)
    results = read("tiny.confirm", sqlite_bureau.url)
    for ask in (
        lambda: begin_confirmation(sqlite_bureau.storage, "tiny.confirm", top=1, seeds=1),
        lambda: extended_text(results.record.info, ["train.learning_rate=0.1"], Path()),
        lambda: write_report(results, shlex.join),
        lambda: require_winner(results),
    ):
        with pytest.raises(StudyError, match=r"tiny\.confirm trains the leaders of tiny .* lmsearch report tiny$"):
            ask()
    note = study_note(results, shlex.join)
    assert "9 of 9 trainings have ended" in note and "lmsearch report tiny " in note and "lmsearch confirm" not in note
    _Lines().show(Snapshot(record=results.record, seconds=0.0, seconds_left=None, workers=2, notices=()))
    told = capsys.readouterr().out
    assert told.count(": complete, perplexity") == 9 and "best so far" not in told and "look:" not in told


def test_what_differs_by_less_than_the_seeds_do_is_a_tie(sqlite_bureau: Bureau) -> None:
    searched(sqlite_bureau)
    noise = {(0, 2): 0.5, (0, 3): -0.2, (0, 4): 0.1, (1, 2): -0.6, (1, 3): 0.9, (1, 4): 0.2}
    confirm(sqlite_bureau, lambda rank, seed: 90 + noise.get((rank, seed), 0.3))
    results = read("tiny", sqlite_bureau.url)
    assert results.confirmation is not None
    assert results.confirmation.verdict == "tie"
    assert "It is a tie with trials" in confirmation_sentence(results.confirmation)


def test_until_the_last_training_the_studys_own_best_stands(sqlite_bureau: Bureau) -> None:
    searched(sqlite_bureau)
    begin_confirmation(sqlite_bureau.storage, "tiny", top=3, seeds=3)
    results = read("tiny", sqlite_bureau.url)
    assert results.confirmation is not None
    assert (results.confirmation.verdict, results.winner) == ("open", results.record.best)
    assert "0 of 9 trainings are done" in confirmation_sentence(results.confirmation)


def test_a_leader_that_diverges_with_one_seed_is_not_the_winner(sqlite_bureau: Bureau) -> None:
    searched(sqlite_bureau)
    confirm(sqlite_bureau, lambda rank, seed: None if (rank, seed) == (0, 3) else 80.0 + 5 * rank + 0.1 * seed * rank)
    results = read("tiny", sqlite_bureau.url)
    assert results.confirmation is not None and results.confirmation.winner is not None
    assert results.confirmation.winner.perplexities.keys() == {2, 3, 4}
    assert results.confirmation.leaders[-1].lost == {3: "failed"}
    assert "did not end well with seed 3 (failed)" in confirmation_sentence(results.confirmation)


def test_a_study_with_an_open_seed_is_confirmed_on_seeds_beyond_its_range(
    tmp_path: Path, prepared_sqlite: Path
) -> None:
    (tmp_path / "store.db").write_bytes(prepared_sqlite.read_bytes())
    text = TINY_STUDY.replace("epochs = 3", "epochs = 3\nseed = { low = 1, high = 9 }")
    bureau = Bureau(tmp_path, f"sqlite:///{tmp_path / 'store.db'}", text, trials=3)
    searched(bureau)
    info = begin_confirmation(bureau.storage, "tiny", top=1, seeds=2)
    assert [ticket.fixed[SEED] for ticket in list_tickets(bureau.storage, info.ref)] == [10, 11]
