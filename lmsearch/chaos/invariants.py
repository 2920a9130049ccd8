"""What must hold of a search after any fault, counted: nothing lost, nothing doubled, no curve changed."""

import contextlib
import json
import math
import multiprocessing
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lmsearch.config import Value
from lmsearch.errors import StudyError
from lmsearch.lm.events import Epoch
from lmsearch.lm.train import train
from lmsearch.store.records import StudyInfo, StudyRecord, TrialRecord
from lmsearch.text.corpus import cache_folder, open_corpus

_TRACEBACK = "Traceback (most recent call last)"


@dataclass(frozen=True, kw_only=True)
class Invariant:
    """One promise, how often it was put to the test, and how often it was broken."""

    name: str
    promise: str
    checked: int
    broken: int
    detail: str = ""


@dataclass
class Watch:
    """Ended trials as they were first seen; what is lost or changed afterwards is noticed."""

    seen: dict[int, tuple[object, ...]] = field(default_factory=dict)
    lost: int = 0
    changed: int = 0

    def look(self, record: StudyRecord) -> None:
        """Compare the ended trials with how they were seen before."""
        now = {trial.number: _as_ended(trial) for trial in record.trials if trial.ended is not None}
        self.lost += len(self.seen.keys() - now.keys())
        self.changed += sum(self.seen[number] != now[number] for number in self.seen.keys() & now.keys())
        self.seen = now


def _as_ended(trial: TrialRecord) -> tuple[object, ...]:
    return trial.outcome, trial.params, trial.curve, trial.ended


def nothing_lost(watch: Watch) -> Invariant:
    """I1: no ended trial is lost or changed."""
    return Invariant(
        name="I1",
        promise="no ended trial is lost or changed",
        checked=len(watch.seen),
        broken=watch.lost + watch.changed,
        detail=f"{watch.lost} lost, {watch.changed} changed",
    )


def each_answered_once(record: StudyRecord) -> Invariant:
    """I2: every ticket is answered by exactly one ended trial."""
    ended = {trial.number for trial in record.trials if trial.ended is not None}
    unanswered = sum(not ticket.is_done or ticket.trial_number not in ended for ticket in record.tickets)
    twice = doubled(record)
    return Invariant(
        name="I2",
        promise="every ticket is answered by exactly one ended trial",
        checked=len(record.tickets),
        broken=unanswered + twice,
        detail=f"{unanswered} unanswered, {twice} doubled",
    )


def doubled(record: StudyRecord) -> int:
    """Return the number of trials beyond one a ticket, and the tickets beyond one a trial."""
    answers = Counter(ticket.trial_number for ticket in record.tickets if ticket.trial_number is not None)
    return sum(count - 1 for count in answers.values()) + sum(trial.ticket is None for trial in record.trials)


def curves_are_undisturbed(record: StudyRecord, workers: int, exact: bool = True) -> Invariant:
    """I3: every epoch is there once, and each curve is that of the same config trained here in one go, bit for bit.

    That of a trial which was pruned is its beginning. Where it is not to be exact, since nodes of a cluster may have
    other processors, it is to a thousandth.
    """
    trials = [trial for trial in record.trials if trial.outcome in ("complete", "pruned")]
    torn = sum([row.epoch for row in trial.epochs] != list(range(1, len(trial.epochs) + 1)) for trial in trials)
    context = multiprocessing.get_context("spawn")  # PyTorch's threads do not survive a fork
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        undisturbed = pool.map(train_in_one_go, [record.info] * len(trials), [trial.params for trial in trials])
        other = sum(
            not _same([row.valid_loss for row in trial.epochs], _as_far(curve, trial), 0.0 if exact else 1e-3)
            for trial, curve in zip(trials, undisturbed, strict=True)
        )
    how = "bit for bit" if exact else "to 0.1 %"
    attempts = [trial.ticket.attempts for trial in trials if trial.ticket is not None]
    continued = sum(count > 1 for count in attempts)
    return Invariant(
        name="I3",
        promise=f"every epoch once, and each curve that of an undisturbed training, {how}",
        checked=len(trials),
        broken=torn + other,
        detail=f"{continued} of them continued, up to {max(attempts, default=1) - 1} times; "
        f"{torn} with an epoch missing or twice, {other} with another curve",
    )


def _as_far(curve: Sequence[float], trial: TrialRecord) -> Sequence[float]:
    return curve if trial.outcome == "complete" else curve[: len(trial.epochs)]


def _same(curve: Sequence[float], other: Sequence[float], tolerance: float) -> bool:
    return len(curve) == len(other) and all(
        math.isclose(one, two, rel_tol=tolerance) for one, two in zip(curve, other, strict=True)
    )


def train_in_one_go(info: StudyInfo, params: Mapping[str, Value]) -> list[float]:
    """Train one point of a study's space and return the validation loss of each epoch."""
    config = info.spec.close(params, info.vocabulary_size)
    corpus = open_corpus(config.data, cache_folder())
    events = train(config, corpus, torch.device("cpu"), None)
    return [event.valid_loss for event in events if isinstance(event, Epoch)]


def ended_by_itself(in_time: bool, seconds: float) -> Invariant:
    """I4: the search ends by itself once nobody disturbs it."""
    return Invariant(
        name="I4",
        promise="the search ends by itself",
        checked=1,
        broken=int(not in_time),
        detail=f"{seconds:.0f} s after the last fault",
    )


def ends_are_explained(ends: Sequence[str], unexplained: Iterable[str]) -> Invariant:
    """I5: each process ended as it was asked to, or says in one sentence why."""
    odd = list(unexplained)
    return Invariant(
        name="I5",
        promise="the exit code and one sentence tell the truth",
        checked=len(ends),
        broken=len(odd),
        detail="; ".join(odd) or "no unexplained exit",
    )


def epochs_trained_twice(logs: Path) -> int:
    """Return the number of epochs trained again though a checkpoint had them: it is written before the report.

    Raises `StudyError` where no worker has logged an epoch, and so nothing can be counted.
    """
    epochs = Counter((record["trial"], record["epoch"]) for record in _records(logs) if record.get("event") == "epoch")
    if not epochs:
        raise StudyError(f"no worker has logged an epoch in {logs}")
    return sum(count - 1 for count in epochs.values())


def tracebacks(logs: Path) -> list[str]:
    """List the logs that hold a traceback: a worker that left without a sentence."""
    return [
        f"a traceback in {path.name}"
        for path in sorted(logs.glob("*.log"))
        if _TRACEBACK in path.read_text(encoding="utf-8", errors="replace")
    ]


def _records(logs: Path) -> Iterator[dict[str, Any]]:
    """Yield what workers logged as JSON; the line in which one was killed may be half a document."""
    for path in logs.glob("*.log"):
        for line in path.read_text(errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                if isinstance(record := json.loads(line), dict):
                    yield record
