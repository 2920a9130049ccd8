"""What a search shows as it runs, and what a study's state and failures are called."""

import dataclasses
import io
import re
import time
from typing import Any

import pytest
from rich.console import Console

from lmsearch.launch.supervise import Snapshot
from lmsearch.results.commands import resume_words
from lmsearch.results.progress import epochs_done, state_of
from lmsearch.results.trouble import why_nothing
from lmsearch.store.records import StudyRecord
from lmsearch.store.tickets import StopState
from lmsearch.study.shipped import shipped_studies
from lmsearch.terminal.live import _Lines, render, spark
from lmsearch.terminal.status import render_status
from tests.quick.test_cli_words import make_record, make_trial

SIZES = [(50, 10), (60, 20), (80, 24), (120, 40)]


def test_a_curve_is_drawn_as_blocks_on_a_logarithmic_scale() -> None:
    assert spark([]) == "" and spark([5.0]) == "▁"
    assert spark([80, 10, 28.3]) == "█▁▅"
    assert len(spark(list(range(1, 101)))) == 24
    assert spark([200, 40, 20], low=10, high=160) == "█▅▃"  # on the study's scale, which one curve may leave


def drawn(snapshot: Snapshot, width: int = 80, height: int = 24, **since: Any) -> list[str]:
    """Draw a snapshot as a terminal of that size shows it."""
    console = Console(width=width, record=True, file=io.StringIO(), color_system=None)
    console.print(render(snapshot, width, height, **since))
    return [line.rstrip() for line in console.export_text().splitlines()]


def crowded_record() -> StudyRecord:
    """Make a record of twelve complete trials, the best five with output_dropout at its upper end."""
    trials = tuple(
        make_trial(n, params=make_trial(n).params | {"model.output_dropout": 0.49 if n < 5 else 0.2}) for n in range(12)
    )
    return make_record(*trials, left=4)


def running_record(complete: int = 7, running: int = 4) -> StudyRecord:
    """Make a record of complete trials, and of others that are in the middle of their third epoch."""
    trials = [make_trial(n) for n in range(complete)]
    trials += [make_trial(complete + n, "running", epochs=2, ended=None) for n in range(running)]
    record = make_record(*trials, left=3)
    tickets = [
        dataclasses.replace(ticket, state="running", trial_number=ticket.number, origin="search", sampler="tpe",
                            attempts=1, epoch=2, step=50, tokens_per_second=12_345.6)
        if complete <= ticket.number < complete + running else ticket
        for ticket in record.tickets
    ]  # fmt: skip
    info = dataclasses.replace(record.info, train_tokens=640)  # 20 windows of 8 times 4 tokens an epoch
    return dataclasses.replace(record, info=info, tickets=tuple(tickets))


def snapshot_of(record: StudyRecord, **fields: Any) -> Snapshot:
    values: dict[str, Any] = {"workers": 4, "seconds": 61, "seconds_left": 125.0, "notices": ()}
    return Snapshot(record=record, **(values | fields))


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_live_view_fits_its_terminal_and_keeps_what_matters(width: int, height: int) -> None:
    lines = drawn(snapshot_of(running_record()), width, height)
    assert len(lines) < height and all(len(line) <= width for line in lines)
    said = "\n".join(lines)
    for expected in ("7/14", "1m01s", "2m05s left", "4 workers", "best 33.33", "7 complete, 4 running", "2.5/3"):
        assert expected in said, expected
    running = [line for line in lines if re.match(r" +\d+ +running", line)]
    ended = [line for line in lines if re.match(r" +\d+ +complete", line)]
    assert len(running) >= (2 if height == 10 else 4) and len(ended) == (0 if height == 10 else 5)
    assert ("12,346" in said, "output_dropout 0.1" in said) == (width >= 70, True)
    assert ("Ctrl-C saves all trials" in said) == (height > 10)


def test_where_there_is_little_room_running_trials_come_before_those_that_ended() -> None:
    lines = drawn(snapshot_of(running_record(complete=9, running=12)), 50, 12)
    assert len(lines) < 12 and sum(" running " in line for line in lines[3:]) >= 6
    assert not [line for line in lines if " complete " in line and "9 complete" not in line]


def test_between_two_heartbeats_the_view_goes_on_at_the_speed_of_the_trial() -> None:
    record = running_record(complete=0, running=1)
    ticket, trial = record.tickets[0], record.trials[0]
    assert epochs_done(record, ticket, trial) == pytest.approx(2.5)
    assert epochs_done(record, ticket, trial, later=0.01) == pytest.approx(2.5 + 0.01 * 12_345.6 / 640)
    assert epochs_done(record, ticket, trial, later=60.0) == pytest.approx(2.99)  # an evaluation follows
    unknown = dataclasses.replace(record, info=dataclasses.replace(record.info, train_tokens=None))
    assert epochs_done(unknown, ticket, trial, later=1.0) == 2.0  # of a study that an earlier version started
    assert any("2.6/3" in line for line in drawn(snapshot_of(record), since={0: 0.006}))


def test_a_search_that_starts_or_is_stopped_says_what_it_waits_for() -> None:
    first = drawn(snapshot_of(make_record(left=3), workers=2, seconds_left=None))
    assert "0/3" in first[0] and "estimating the time left, 2 workers" in first[0]
    assert first[1] == "starting 2 workers, loading PyTorch …"
    stopping = " ".join(drawn(snapshot_of(running_record(), stopping=1)))
    assert "stopping: saving 4 trials (a second Ctrl-C ends the workers at once" in stopping
    assert "left, " not in stopping and "Ctrl-C saves all trials" not in stopping
    assert "stopping now" in " ".join(drawn(snapshot_of(running_record(), stopping=2)))


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_view_shows_the_best_configuration_and_what_needs_a_look(width: int) -> None:
    snapshot = snapshot_of(crowded_record(), workers=2, seconds_left=None)
    lines = drawn(snapshot, width)
    said = " ".join(" ".join(lines).split())
    assert "best 33.33 trial 0 by tpe: output_dropout 0.49, tie_weights true, learning_rate 0.01" in said
    assert "note: 5 of the 5 best have model.output_dropout within 10% of its upper end 0.5" in said
    assert all(len(line) <= width for line in lines)


def test_lines_for_a_log_report_each_new_best_and_each_note_once(capsys: pytest.CaptureFixture[str]) -> None:
    view = _Lines()
    for seconds in (1.0, 2.0):
        view.show(snapshot_of(crowded_record(), workers=2, seconds=seconds, seconds_left=None))
    said = capsys.readouterr().out
    assert said.count("best so far 33.33 (trial 0): model.output_dropout = 0.49") == 1
    assert said.count("note: 5 of the 5 best have model.output_dropout") == 1
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in said.splitlines())
    view.show(snapshot_of(running_record(complete=1, running=1), seconds=99.0))
    assert "about 2m05s left; trial 1 at epoch 2.5/3" in capsys.readouterr().out
    view.show(snapshot_of(running_record(complete=1, running=1), seconds=99.5, stopping=1))
    assert "stopping: saving 1 trial " in capsys.readouterr().out


def test_status_says_who_works_what_is_queued_and_how_to_resume() -> None:
    record = running_record(complete=2, running=1)
    leased = dataclasses.replace(record.tickets[2], boot="b", expires=50.0, seen=18.0)
    record = dataclasses.replace(record, tickets=(*record.tickets[:2], leased, *record.tickets[3:]))
    now, later = (20.0, "b"), (60.0, "b")
    at = time.mktime((2026, 11, 1, 9, 5, 0, 0, 0, -1))
    stopped = StopState(requests=1, stopped=True, at=at)
    assert str(state_of(record, now, StopState())) == "1 trial running, 3 queued"
    assert str(state_of(record, now, stopped)) == "being stopped on 2026-11-01 at 09:05: 1 trial left to save"
    assert str(state_of(record, later, StopState())) == "nobody is working, 3 queued"
    assert state_of(record, later, stopped).name == "stopped"
    assert str(state_of(record, later, stopped)) == (
        "stopped by `lmsearch stop` on 2026-11-01 at 09:05, 3 queued, nobody is working"
    )
    assert str(state_of(make_record(make_trial(0)), now, stopped)) == "finished"
    console = Console(width=100, record=True, file=io.StringIO(), color_system=None)
    console.print(render_status(record, now, state_of(record, now, StopState()), 90.0, "lmsearch run tiny"))
    said = console.export_text()
    assert "1 trial running, 3 queued, about 1m30s left" in said and "resume with" not in said
    assert re.search(r"2 +running +2\.9/3 +52\.00 +12,346 +2\.0s ago", said) and "attempts" not in said
    console.print(render_status(record, later, state_of(record, later, stopped), None, "lmsearch run tiny"))
    assert "resume with: lmsearch run tiny" in console.export_text()


def test_a_study_is_resumed_by_its_name_unless_another_file_has_it() -> None:
    def resume(name: str, text: str) -> str:
        info = make_record().info
        ref, spec = dataclasses.replace(info.ref, name=name), dataclasses.replace(info.spec, text=text)
        return " ".join(resume_words(dataclasses.replace(info, ref=ref, spec=spec)))

    shipped = shipped_studies()
    assert resume("mine", "text") == "lmsearch run mine"
    assert resume("tutorial", shipped["tutorial"].read_text()) == "lmsearch run tutorial"
    assert resume("default", shipped["default"].read_text()) == "lmsearch run"
    assert resume("default", "text") == "lmsearch run runs/default/study.toml --name default"


def test_a_search_without_a_complete_trial_says_why_and_what_to_try() -> None:
    def diverged(number: int, rate: float) -> Any:
        params = make_trial(0).params | {"train.learning_rate": rate}
        return make_trial(number, "diverged", epochs=1, reason="diverged", params=params)

    found = why_nothing(make_record(diverged(0, 0.09), diverged(1, 0.05)))
    assert found is not None and found.what == "all 2 trials of tiny diverged"
    assert found.because == [
        "The loss was no longer finite: each train.learning_rate tried was between 0.05 and 0.09, and the range begins "
        "at 0.001"
    ]
    assert " ".join(found.words) == (
        "lmsearch extend tiny --set train.learning_rate.low=1e-05 --set train.learning_rate.high=0.05"
    )
    failed = why_nothing(make_record(make_trial(0, "failed", epochs=0, reason="ValueError: no"), diverged(1, 0.09),
                                     make_trial(2, "failed", epochs=0, reason="ValueError: no")))  # fmt: skip
    assert failed is not None and failed.what == "2 of 3 trials of tiny failed"
    assert failed.because == ["The reason: ValueError: no"]
    assert failed.words == ["lmsearch", "show", "tiny", "0"]
    assert (
        why_nothing(make_record(make_trial(0))) is None and why_nothing(make_record(diverged(0, 1.0), left=1)) is None
    )
