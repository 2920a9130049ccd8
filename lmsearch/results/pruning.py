"""What pruning did: how close the winner came to being pruned, and what pruning saved."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean, median

from lmsearch.results.reading import Results
from lmsearch.spelling import spell_seconds
from lmsearch.store.records import StudyRecord, TrialRecord
from lmsearch.study.options import MEDIAN_STARTUP, median_warmup


@dataclass(frozen=True, kw_only=True)
class Saving:
    """The epochs that pruning left out."""

    epochs: int
    of: int  # epochs that there would have been without it
    trials: int  # that were pruned
    seconds: float  # about, at the mean duration of an epoch


@dataclass(frozen=True, kw_only=True)
class Closeness:
    """How near the winner came to being pruned, at the epoch where it was nearest."""

    epoch: int
    perplexity: float  # of the winner, its lowest by then
    median: float  # over the other complete trials, of theirs
    rank: int  # among all that reached the epoch
    reached: int

    @property
    def is_stopped(self) -> bool:
        """Whether a median pruner would have stopped it there."""
        return self.perplexity > self.median


def closeness(results: Results) -> list[Closeness]:
    """Compare the winner, epoch by epoch, with what a median pruner would have held it against.

    From the epoch on at which ours prunes by default, and where as many complete trials are there as it waits for.
    """
    winner, trials = results.winner, results.record.trials
    if winner is None:
        return []
    found = []
    first = median_warmup(results.record.info.spec.epochs)
    for epoch in [epoch for epoch in list(winner.curve)[:-1] if epoch >= first]:
        here = lowest_by(winner, epoch)
        others = [lowest_by(t, epoch) for t in trials if t.number != winner.number and epoch in t.curve]
        complete = [
            lowest_by(t, epoch)
            for t in trials
            if t.number != winner.number and epoch in t.curve and t.outcome == "complete"
        ]
        if len(complete) >= MEDIAN_STARTUP:
            found.append(
                Closeness(
                    epoch=epoch,
                    perplexity=here,
                    median=median(complete),
                    rank=1 + sum(other < here for other in others),
                    reached=len(others) + 1,
                )
            )
    return found


def lowest_by(trial: TrialRecord, epoch: int) -> float:
    """Return the lowest perplexity that a trial had reached by an epoch."""
    return min(value for number, value in trial.curve.items() if number <= epoch)


def saving(record: StudyRecord) -> Saving | None:
    """Return what pruning saved; None where nothing was pruned."""
    own = [trial for trial in record.trials if trial.epochs and not trial.is_taken_over]
    pruned = [trial for trial in own if trial.outcome == "pruned"]
    seconds = [row.seconds for trial in own for row in trial.epochs]
    if not pruned or not seconds:
        return None
    epochs = sum(record.info.spec.epochs - len(trial.curve) for trial in pruned)
    return Saving(epochs=epochs, of=epochs + len(seconds), trials=len(pruned), seconds=epochs * mean(seconds))


def pruning_sentences(results: Results) -> Iterator[str]:
    """Say how close the winner came to being pruned, and what pruning saved."""
    found = closeness(results)
    if results.winner is not None and found:
        nearest = max(found, key=lambda one: one.perplexity / one.median)
        words = "would have stopped" if nearest.is_stopped else "would not have stopped"
        yield (
            f"In hindsight, a median pruner that knew all other complete trials {words} the winner, trial "
            f"{results.winner.number}. It came closest in epoch {nearest.epoch}: {nearest.perplexity:.2f} against a "
            f"median of {nearest.median:.2f}, place {nearest.rank} of {nearest.reached}."
        )
    saved = saving(results.record)
    if saved is not None:
        yield (
            f"Pruning saved {saved.epochs:,} of {saved.of:,} epochs in {saved.trials} trials, about "
            f"{spell_seconds(saved.seconds)} of training."
        )
