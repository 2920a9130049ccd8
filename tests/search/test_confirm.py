"""A study's leaders on fresh seeds: what is queued, and what is said of it."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa

from lmsearch.errors import StudyError
from lmsearch.launch.supervise import Snapshot
from lmsearch.report.publishing import study_note
from lmsearch.report.write import document, write_report
from lmsearch.results.best import best_config, require_winner
from lmsearch.results.commands import confirm_next, next_steps
from lmsearch.results.confirmation import confirmation_sentence
from lmsearch.results.progress import State
from lmsearch.results.reading import read
from lmsearch.results.statistics import compare
from lmsearch.search.confirm import begin_confirmation, confirmation_spec, fresh_seeds
from lmsearch.store.records import SEED, configurations, open_study, store_info
from lmsearch.store.tickets import StopState, list_tickets
from lmsearch.terminal.live import _Lines
from tests.bureau import Bureau
from tests.conftest import Cli
from tests.factories import TINY_STUDY, make_spec, write_study
from tests.search.confirming import confirm


def searched(bureau: Bureau) -> Bureau:
    for _ in bureau.search(2):
        pass
    return bureau


@pytest.mark.heavy_on("sqlite")
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


@pytest.mark.heavy_on("postgresql")
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


def test_leaders_with_unequal_numbers_of_seeds_are_ordered_by_those_that_they_share(sqlite_bureau: Bureau) -> None:
    searched(sqlite_bureau)
    # The first leader is best over seven seeds, but worse than the second over the three that both have.
    confirm(sqlite_bureau, lambda rank, seed: (80.0 if seed < 5 else 60.0) if rank == 0 else 75.0 + seed / 10, top=2)
    confirm(sqlite_bureau, lambda rank, seed: 60.0, top=1, seeds=7)
    confirmation = read("tiny", sqlite_bureau.url).confirmation
    assert confirmation is not None and confirmation.winner is not None and confirmation.comparison is not None
    assert (confirmation.seeds, confirmation.compared, confirmation.comparison.order) == (3, 2, (0, 1))
    assert [len(leader.perplexities) for leader in confirmation.leaders] == [3, 7]
    assert confirmation.comparison.differences[0].mean == pytest.approx(80 - 75.3)


def test_a_leader_with_fewer_seeds_is_left_out_and_said_to_be_better_where_it_is(sqlite_bureau: Bureau) -> None:
    searched(sqlite_bureau)

    def made_up(rank: int, seed: int) -> float:
        return [80.0, 90.0, 70.0][rank] + 0.1 * (seed * rank % 3)

    confirm(sqlite_bureau, made_up, top=3, seeds=3)
    confirm(sqlite_bureau, made_up, top=2, seeds=6)
    results = read("tiny", sqlite_bureau.url)
    assert results.confirmation is not None
    # Called among the two with six seeds, but the third was better over its three.
    assert (results.confirmation.compared, results.confirmation.verdict) == (2, "tie")
    third = results.confirmation.leaders[2].trial.number
    assert f"Trial {third} has only 3 seeds and was better over those" in confirmation_sentence(results.confirmation)


def test_what_stands_stands_until_all_that_was_asked_for_since_has_ended(sqlite_bureau: Bureau) -> None:
    searched(sqlite_bureau)
    confirm(sqlite_bureau, lambda rank, seed: 90 + 5 * (rank != 1) + 0.01 * rank * seed)
    before = read("tiny", sqlite_bureau.url)
    begin_confirmation(sqlite_bureau.storage, "tiny", top=3, seeds=5)
    results = read("tiny", sqlite_bureau.url)
    assert results.confirmation is not None and before.confirmation is not None
    assert results.winner == before.winner != results.record.best
    assert results.confirmation.comparison == before.confirmation.comparison
    said = confirmation_sentence(results.confirmation)
    assert "and is the winner" in said and "More trainings were requested since: 9 of 15 trainings are done" in said
    assert confirm_next(results) == ["lmsearch", "confirm", "tiny", "--top", "3", "--seeds", "5"]
    assert best_config(results, Path("runs/tiny"), "a command")["result"]["source"] == "confirmed"


@pytest.mark.slow
@pytest.mark.parametrize(("good", "words"), [({1}, "no other leader completed"), (set(), "does not hold")])
def test_where_all_others_or_all_leaders_are_lost_it_says_so(sqlite_bureau: Bureau, good: set[int], words: str) -> None:
    searched(sqlite_bureau)
    confirm(sqlite_bureau, lambda rank, seed: 90.0 if rank in good or seed == 2 else None)
    results = read("tiny", sqlite_bureau.url)
    assert results.confirmation is not None
    assert results.confirmation.verdict == ("alone" if good else "none")
    assert words in confirmation_sentence(results.confirmation)
    commands = [" ".join(step.words) for step in next_steps(results)]
    assert commands[0].startswith("lmsearch confirm tiny --top 6 --seeds 3") is not bool(good)
    assert any(command.startswith("lmsearch test") for command in commands) is bool(good)
    assert "trial" in write_report(results, shlex.join)
    assert json.dumps(document(results), allow_nan=False)


def test_a_configuration_trained_twice_is_the_better_of_both(sqlite_bureau: Bureau) -> None:
    searched(sqlite_bureau)
    record = sqlite_bureau.record()
    first, second, *_ = record.trials
    twin = replace(second, params=first.params, curve={1: min(first.perplexity, second.perplexity) - 1})
    assert configurations([first, twin]) == [twin]


def test_a_confirmation_of_an_earlier_study_of_that_name_is_not_believed(sqlite_bureau: Bureau) -> None:
    searched(sqlite_bureau)
    confirm(sqlite_bureau, lambda rank, seed: 90.0 + rank + seed / 10)
    store_info(sqlite_bureau.storage, replace(sqlite_bureau.info, fingerprint="0123456789abcdef"))
    assert read("tiny", sqlite_bureau.url).confirmation is None
    with pytest.raises(StudyError, match=r"delete it with: lmsearch delete tiny\.confirm$"):
        begin_confirmation(sqlite_bureau.storage, "tiny", top=3, seeds=3)


def test_fresh_seeds_go_on_from_zero_beyond_the_highest(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, TINY_STUDY.replace("[train]", "[train]\nseed = 2147483646"))
    assert fresh_seeds(spec, 3) == [2147483647, 0, 1]


def test_a_confirmation_is_no_search_with_a_best_of_its_own(
    sqlite_bureau: Bureau, capsys: pytest.CaptureFixture[str]
) -> None:
    searched(sqlite_bureau)
    confirm(sqlite_bureau, lambda rank, seed: 90.0 + rank + seed / 10)
    results = read("tiny.confirm", sqlite_bureau.url)
    for ask in (
        lambda: begin_confirmation(sqlite_bureau.storage, "tiny.confirm", top=1, seeds=1),
        results.record.info.require_search,
        lambda: write_report(results, shlex.join),
        lambda: require_winner(results),
    ):
        with pytest.raises(StudyError, match=r"tiny\.confirm trains the leaders of tiny .* lmsearch report tiny$"):
            ask()
    note = study_note(results, shlex.join, State(name="finished", stop=StopState(), working=0, queued=0, waiting=0))
    assert "9 of 9 trainings have ended. This study belongs to tiny, whose note has the result." in note
    assert "lmsearch worker" not in note
    assert "9 of 9 trainings have ended" in note and "lmsearch report tiny " in note and "lmsearch confirm" not in note
    _Lines().show(Snapshot(record=results.record, seconds=0.0, seconds_left=None, workers=2, notices=()))
    printed = capsys.readouterr().out
    assert printed.count(": complete, perplexity") == 9 and "best so far" not in printed and "note: " not in printed


def test_what_differs_by_less_than_the_seeds_do_is_a_tie(sqlite_bureau: Bureau) -> None:
    searched(sqlite_bureau)
    noise = {(0, 2): 0.5, (0, 3): -0.2, (0, 4): 0.1, (1, 2): -0.6, (1, 3): 0.9, (1, 4): 0.2}
    confirm(sqlite_bureau, lambda rank, seed: 90 + noise.get((rank, seed), 0.3))
    results = read("tiny", sqlite_bureau.url)
    assert results.confirmation is not None
    assert results.confirmation.verdict == "tie"
    assert "No clear winner: it is tied with trials" in confirmation_sentence(results.confirmation)


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
    assert "did not complete with seed 3 (failed)" in confirmation_sentence(results.confirmation)


def test_a_study_with_an_open_seed_is_confirmed_on_seeds_beyond_its_range(
    tmp_path: Path, prepared_sqlite: Path
) -> None:
    (tmp_path / "store.db").write_bytes(prepared_sqlite.read_bytes())
    text = TINY_STUDY.replace("epochs = 3", "epochs = 3\nseed = { low = 1, high = 9 }")
    bureau = Bureau(tmp_path, f"sqlite:///{tmp_path / 'store.db'}", text, trials=3)
    searched(bureau)
    info = begin_confirmation(bureau.storage, "tiny", top=1, seeds=2)
    assert [ticket.fixed[SEED] for ticket in list_tickets(bureau.storage, info.ref)] == [10, 11]


def test_that_a_study_is_a_confirmation_is_stored_and_not_read_from_its_name(sqlite_bureau: Bureau) -> None:
    searched(sqlite_bureau)
    confirmation = begin_confirmation(sqlite_bureau.storage, "tiny", top=1, seeds=1)
    assert confirmation.confirms == "tiny" == open_study(sqlite_bureau.storage, "tiny.confirm").confirms
    optuna.copy_study(
        from_study_name="tiny.confirm",
        from_storage=sqlite_bureau.storage,
        to_storage=sqlite_bureau.storage,
        to_study_name="again",
    )
    assert open_study(sqlite_bureau.storage, "again").confirms == "tiny"
    with sqlite_bureau.storage.transaction() as session:  # as before 0.3.0, which stored no such fact
        session.execute(sa.text("UPDATE study_user_attributes SET value_json = json_remove(value_json, '$.confirms')"))
    assert open_study(sqlite_bureau.storage, "tiny.confirm").confirms == "tiny"
    assert open_study(sqlite_bureau.storage, "again").confirms == ""


@pytest.mark.slow
def test_the_command_confirms_and_trains_a_winner_again_whose_weights_are_gone(cli: Cli, tmp_path: Path) -> None:
    write_study(tmp_path)
    assert cli("run", "tiny.toml", "--workers", "1", "--quiet").returncode == 0
    for name in ("models", "best-model"):
        shutil.rmtree(tmp_path / "runs/tiny" / name)
    said = cli("confirm", "tiny", "--top", "2", "--seeds", "2", "--workers", "1")
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("confirm  tiny: 4 trainings requested, 4 left\n")
    config = json.loads((tmp_path / "runs/tiny/best-config.json").read_text())["result"]
    assert config["source"] == "confirmed"
    assert f"the weights of trial {config['trial']} are missing; it is trained again" in said.stderr
    metrics = json.loads((tmp_path / "runs/tiny/best-model/metrics.json").read_text())
    assert metrics["perplexity"] == pytest.approx(config["perplexity"])
    assert "warning" not in said.stderr and not (tmp_path / "runs/tiny.winner").exists()
    again = json.loads(cli("confirm", "tiny", "--top", "2", "--seeds", "2", "--workers", "1", "--json").stdout)
    assert (again["study"], again["mean"], again["verdict"]) == ("tiny", config["mean"], config["verdict"])
