"""Asynchronous successive halving by promotion: trials pause at rungs, and the best of each rung continue.

Li et al., "A System for Massively Parallel Hyperparameter Tuning" (ASHA), MLSys 2020, arXiv 1810.05934, algorithm 2. A
trial that is passed over now may continue later, when more trials have reached its rung. Once no trial is left to
start, the best of each rung continues whatever their number, so that a search of few trials ends with a whole one. Pure
functions of what the store has of each trial, as in `allocate`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lmsearch.curves.allocate import CONTINUE, PAUSE, PAUSED, Standing


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """Where trials pause, and how many of those that have reached a rung continue: one in `factor`."""

    rungs: tuple[int, ...]  # epochs
    factor: int

    @classmethod
    def of(cls, epochs: int, first: int, factor: int) -> "Promotion":
        """Return the rungs of trainings of so many epochs: `first`, and each `factor` times the one before."""
        rungs = []
        while first < epochs:
            rungs.append(first)
            first *= factor
        return cls(rungs=tuple(rungs), factor=factor)

    def after_epoch(self, mine: int, standings: Sequence[Standing], waiting: int) -> str:
        """Decide about a running trial after an epoch that is not its last: at a rung it pauses, or is promoted."""
        me = next((one for one in standings if one.ticket == mine), None)
        if me is None or len(me.losses) not in self.rungs:
            return CONTINUE
        return CONTINUE if any(one is me for one in self._promoted(standings, len(me.losses), waiting)) else PAUSE

    def next_paused(self, standings: Sequence[Standing], waiting: int) -> list[int]:
        """List the tickets of paused trials that are promoted, those of the highest rung first, the best first."""
        return [
            one.ticket
            for rung in sorted(self.rungs, reverse=True)
            for one in self._promoted(standings, rung, waiting)
            if one.state == PAUSED and len(one.losses) == rung
        ]

    def _promoted(self, standings: Sequence[Standing], rung: int, waiting: int) -> list[Standing]:
        """Return the best part of all trials that have reached a rung; once none waits to start, at least the best."""
        reached = [one for one in standings if len(one.losses) >= rung]
        ranked = sorted(reached, key=lambda one: (min(one.losses[:rung]), one.ticket))
        return ranked[: max(len(ranked) // self.factor, 0 if waiting else 1)]
