"""What commands parse and print: durations, commands to copy, devices, curves, estimates."""

import dataclasses
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lmsearch import machine as host
from lmsearch.cli.options import command_text, duration, parse_storage
from lmsearch.errors import ConfigError, DeviceError
from lmsearch.folders import check_name
from lmsearch.launch.pace import seconds_left
from lmsearch.machine import default_devices
from lmsearch.results.best import trials_csv
from lmsearch.search.failures import repeated_failure, tracebacks_of
from lmsearch.search.start import ConfirmRequest, SearchRequest
from lmsearch.search.work import WorkOptions
from lmsearch.spelling import spell_seconds, spell_value
from lmsearch.store.records import StudyInfo, StudyRecord, TrialRecord
from lmsearch.store.tables import StudyRef, Ticket
from lmsearch.study.shipped import shipped_studies
from tests.factories import TINY_STUDY
from tests.store.test_checkpoints import make_ticket


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3h50m", 13_800), ("45m", 2_700), ("90s", 90), ("1.5h", 5_400), ("1h1m1s", 3_661), ("2d4h", 187_200)],
)
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert duration(None, None, text) == seconds  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "soon", "3", "5m3h", "-1h"])
def test_a_duration_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a duration; write 2d12h, 3h50m"):
        duration(None, None, text)  # type: ignore[arg-type]


def test_durations_and_values_are_written_for_people() -> None:
    assert [spell_seconds(s) for s in (0, 0.44, 42.4, 725, 12_000, 3_600, 187_200)] == [
        "0s", "0.4s", "42s", "12m05s", "3h20m", "1h", "2d04h"
    ]  # fmt: skip
    assert [spell_value(v) for v in (True, 0.123456, 200, "adam")] == ["true", "0.1235", "200", "adam"]


def test_a_printed_command_carries_the_store_but_never_a_password() -> None:
    words = ["lmsearch", "run", "my file.toml"]
    assert command_text(words, parse_storage("sqlite:///runs/lmsearch.db")) == "lmsearch run 'my file.toml'"
    assert command_text(words, parse_storage("postgresql://me@h/d")).endswith("--storage postgresql://me@h/d")
    secret = command_text(words, parse_storage("postgresql://me:hunter2@h/d"))
    assert secret == "lmsearch run 'my file.toml'  # with LMSEARCH_STORAGE set to the store's URL"


def test_a_search_is_resumed_by_a_command_line_that_the_request_gives() -> None:
    assert SearchRequest().words() == ["lmsearch", "run"]
    request = SearchRequest(study_file="x.toml", sampler="tpe", more=5, workers=4, time_limit=5400.0, device="cuda")
    assert " ".join(request.words()) == "lmsearch run x.toml --sampler tpe --workers 4 --device cuda --time-limit 1h30m"
    work = WorkOptions(stall=90.0, store_timeout=30.0, max_failures=5)
    assert " ".join(SearchRequest(study_file="x.toml", source="old", work=work).words()) == (
        "lmsearch run x.toml --from old --store-timeout 30s --stall 1m30s --max-failures 5"
    )
    confirmed = ConfirmRequest(study="x", top=3, seeds=5, device="cpu", work=WorkOptions(allow_pickle=True))
    assert " ".join(confirmed.words()) == "lmsearch confirm x --top 3 --seeds 5 --device cpu --allow-pickle"


def test_a_request_that_cannot_be_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match="no sampler is called 'tpee'; did you mean tpe"):
        SearchRequest(sampler="tpee")
    with pytest.raises(ConfigError, match="--trials sets the total and --more adds to it; give one of the two"):
        SearchRequest(trials=3, more=4)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "a\0b", "x" * 300])
def test_a_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="a study cannot be called"):
        check_name(name)


def test_nine_studies_travel_with_lmsearch() -> None:
    assert list(shipped_studies()) == [
        "asha-paper",
        "default",
        "lstm-wikitext2",
        "mogrifier-small",
        "mogrifier-wikitext2",
        "penn-treebank-awd-lstm",
        "tutorial",
        "tutorial-regularised",
        "wikitext2-awd-lstm",
    ]


@pytest.mark.parametrize(
    ("gpus", "device", "workers", "devices"),
    [
        (0, "auto", 3, ["cpu"] * 3),
        (0, "cpu", 1, ["cpu"]),
        (2, "auto", None, ["cuda:0", "cuda:1"]),
        (2, "cuda", 5, ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"]),
        (2, "cuda:1", 2, ["cuda:1", "cuda:1"]),
        (2, "cuda:1", None, ["cuda:1"]),
        (2, "cpu", 2, ["cpu", "cpu"]),
    ],
)
def test_gpus_are_handed_out_in_turn(
    monkeypatch: pytest.MonkeyPatch, gpus: int, device: str, workers: int | None, devices: list[str]
) -> None:
    monkeypatch.setattr(host, "_count_gpus", lambda: gpus)
    assert default_devices(device, workers) == devices


@pytest.mark.parametrize(("gpus", "device"), [(0, "cuda"), (0, "cuda:0"), (2, "cuda:2"), (2, "gpu"), (2, "mps")])
def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, gpus: int, device: str) -> None:
    monkeypatch.setattr(host, "_count_gpus", lambda: gpus)
    with pytest.raises(DeviceError, match=device):
        default_devices(device, None)


NOON = datetime(2026, 11, 24, 12)


def make_trial(
    number: int, outcome: str = "complete", seconds: float = 30, epochs: int = 3, **fields: Any
) -> TrialRecord:
    record = TrialRecord(
        number=number,
        outcome=outcome,
        params={"model.output_dropout": 0.1, "model.tie_weights": True, "train.learning_rate": 0.01},
        curve={epoch: 100.0 / epoch + number for epoch in range(1, epochs + 1)},
        origin="search",
        sampler="tpe",
        reason="",
        traceback="",
        sample="",
        parameters=500,
        model="",
        origin_trial="",
        started=NOON,
        ended=NOON + timedelta(seconds=seconds),
        ticket=None,
    )
    return dataclasses.replace(record, **fields)


def tickets(done: int, left: int) -> tuple[Ticket, ...]:
    states = ["done"] * done + ["open"] * left
    return tuple(dataclasses.replace(make_ticket(number=n), state=s, epoch=0) for n, s in enumerate(states))


def make_record(*trials: TrialRecord, left: int = 0, tmp: Any = None) -> StudyRecord:
    from pathlib import Path

    from tests.factories import make_spec

    info = StudyInfo(
        ref=StudyRef(name="tiny", id=1, key="k"),
        spec=make_spec(Path("/nowhere"), TINY_STUDY),
        folder="/nowhere",
        corpus="text",
        fingerprint="f",
        vocabulary_size=14,
        home_id=1,
    )
    return StudyRecord(info=info, trials=trials, tickets=tickets(len(trials), left))


def test_the_time_left_follows_from_the_pace_so_far() -> None:
    assert seconds_left(make_record(left=5), 2) is None
    three = [make_trial(n) for n in range(3)]  # 10 s an epoch, 3 epochs each
    assert seconds_left(make_record(*three, left=4), 2) == pytest.approx(4 * 30 / 2)
    assert seconds_left(make_record(*three, left=1), 4) == pytest.approx(30)  # one trial has one worker
    pruned = [make_trial(n, "pruned", seconds=10, epochs=1) for n in range(3)]
    assert seconds_left(make_record(*pruned, left=4), 2) == pytest.approx(4 * 10 / 2)
    assert seconds_left(make_record(*three), 0) is None


def test_failures_count_only_in_a_row_and_with_one_traceback() -> None:
    def failed(number: int, traceback: str = "a") -> TrialRecord:
        return make_trial(number, "failed", seconds=number + 1, traceback=traceback, ticket=make_ticket())

    def complete(number: int) -> TrialRecord:
        return make_trial(number, seconds=number + 1, ticket=make_ticket())

    assert last_failures([failed(0), failed(1), failed(2)], 3) == "a"
    assert last_failures([failed(0), failed(1)], 3) is None
    assert last_failures([failed(0), failed(1, "b"), failed(2)], 3) is None
    assert last_failures([failed(0), failed(1), complete(2)], 3) is None
    assert last_failures([complete(0), failed(1), failed(2), failed(3)], 3) == "a"


def last_failures(ended: list[TrialRecord], limit: int) -> str | None:
    return repeated_failure(tracebacks_of(ended), limit)


def test_failures_that_others_reported_or_that_are_not_ours_end_no_search() -> None:
    """By hand, by the dashboard, by another program: they have no traceback, or no ticket."""
    ours = [make_trial(n, "failed", seconds=n + 1, traceback="a", ticket=make_ticket()) for n in range(3)]
    by_hand = [make_trial(n, "failed", seconds=n + 1, traceback="", ticket=make_ticket()) for n in range(3, 6)]
    foreign = [make_trial(n, "failed", seconds=n + 1, traceback="a") for n in range(6, 9)]
    assert last_failures(by_hand, 3) is None
    assert last_failures(foreign, 3) is None
    assert last_failures([*ours[:2], *by_hand, *foreign], 3) is None
    assert last_failures([*ours[:2], *by_hand, *foreign, ours[2]], 3) == "a"


def test_a_record_knows_its_best_and_a_trial_its_best_epoch() -> None:
    trials = [make_trial(1), make_trial(0), make_trial(2, "pruned", curve={1: 3.0, 2: 2.0, 3: 5.0})]
    record = make_record(*trials)
    assert record.best == trials[1]
    assert (trials[2].perplexity, trials[2].best_epoch) == (2.0, 2)
    assert make_record(trials[2]).best is None


def test_the_table_has_every_trial_and_leaves_unknown_cells_empty() -> None:
    record = make_record(make_trial(0), make_trial(1, "failed", epochs=0, reason="a, b", params={}))
    lines = trials_csv(record).splitlines()
    assert lines[1].startswith("0,complete,tpe,33.33")
    assert lines[2] == '1,failed,tpe,,,0,500,2026-11-24T12:00:00,2026-11-24T12:00:30,,,,"a, b"'


def test_every_fault_in_the_reliability_table_names_tests_that_are_there() -> None:
    root = Path(__file__).parents[2]
    table = (root / "docs/reliability.md").read_text()
    tests = "".join(path.read_text() for path in (root / "tests").rglob("test_*.py"))
    assert {int(number) for number in re.findall(r"^\| (\d+) ", table, re.MULTILINE)} == set(range(1, 23))
    named = set(re.findall(r"row_\d+_\w*", table))
    assert len(named) > 20 and not [name for name in named if f"def test_{name}" not in tests]
    files = set(re.findall(r"`(?:tests/\w+/)?(test_\w+\.py)`", table))
    assert len(files) > 6 and files <= {path.name for path in (root / "tests").rglob("test_*.py")}
