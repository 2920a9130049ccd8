"""Samplers and allocations against each other in virtual time: how many tokens until a search is as good as random's.

    python benchmarks/search.py [--budget 24x8] [--workers 4] [--worlds smooth hard cliffs …] [--methods tpe+median …]
                                [--repetitions 50] [--quick] [--processes 2] [--results FILE] [--show]

Every decision is made by the functions that workers call: `make_sampler`, `make_pruner`, `allocate`. A method is
SAMPLER+ALLOCATION, or SAMPLER+ALLOCATION+prior: the start design is around the prior of the table's study (of a made-up
world: the optimum, missed by 0.1 of each range; +prior0.25: by 0.25). Workers take events from a queue by time; the
seconds that a decision takes are charged. Methods are compared over the same repetitions, with new trials without limit
and as many epochs as the budget (24x8: 192).

A world is made up (smooth, hard, cliffs, noisy, nothing), or plays a recorded table: in `pool-a` its nearest unused
configuration answers; in `trees-a` and `process-a` a model of its curves does (with scikit-learn: pip install
'.[benchmarks]'), if it orders left-out configurations well. The target is the median over repetitions of the best loss
that random search has observed after its whole trials. Columns: epochs until the target as a share of the budget
(median over repetitions, those that never reach it count as more than all; 90 % bootstrap interval), the share of
repetitions that reach it, what the incumbent is worth without noise (millinats above random search with twice the
budget; at a quarter, half and all of the budget), trials begun, and complete once the search has ended as `lmsearch
run` ends one (no new trial starts; what can still become the best is trained), for how many more epochs that took as a
share of the budget, how often the best of the begun trials was then trained to its end, and how often the final loss
lay within a forecast's 90 % interval. Results are kept in FILE as they finish; what is there already is not run again.
"""

import argparse
import heapq
import json
import math
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from worlds import KINDS, Model, Pool, Surrogate, Table, World, made_up, prior_of, seeded, table_file

from lmsearch.curves import allocate
from lmsearch.curves.forecast import forecast
from lmsearch.curves.promote import Promotion
from lmsearch.losses import perplexity
from lmsearch.search.allocation import Policy, policy_of
from lmsearch.search.forecasting import ForecastSampler
from lmsearch.search.strategies import SAMPLERS, make_pruner, make_sampler, suggest
from lmsearch.study.options import asha_rung, startup_trials

METHODS = (
    "random+none", "random2x+none", "tpe+median", "gp+none", "gp-optuna+none", "random+asha", "random+hyperband",
    "random+one-epoch", "random+promote", "random+thaw", "tpe+thaw", "gp+median", "gp+thaw", "tpe+median+prior",
    "gp+thaw+prior",
)  # fmt: skip
# What is judged and is not in the package's list.
SAMPLERS["gp-optuna"] = lambda asked: ForecastSampler(
    asked.spec, asked.ticket, asked.seed, startup_trials("gp", asked.options), own=False
)

EPOCH_SECONDS = 3.2  # of the default study on one core
INTERVAL = 1.645  # standard deviations of a 90 % interval


@dataclass
class Played:
    """One trial of a virtual search."""

    ticket: int
    trial: optuna.Trial
    values: dict[str, Any]
    losses: Any  # of all its epochs, of which `epochs` are known
    truth: float
    epochs: int = 0
    state: str = allocate.RUNNING

    @property
    def known(self) -> tuple[float, ...]:
        """Return the losses that the search has seen."""
        return tuple(float(loss) for loss in self.losses[: self.epochs])


@dataclass
class Search:
    """A virtual search: its trials, and what was seen after each epoch."""

    world: World
    sampler: str
    trials: list[Played] = field(default_factory=list)
    best: list[float] = field(default_factory=list)  # the lowest observed loss after each epoch
    worth: list[float] = field(default_factory=list)  # of the incumbent, without noise
    covered: tuple[int, int] = (0, 0)  # forecasts at the end of the budget whose interval held, and all
    seconds: float = 0.0  # of decisions
    budget: int = 0  # epochs until no new trial starts
    after: int = 0  # epochs trained after that, until the search had ended

    def __post_init__(self) -> None:
        self.study = optuna.create_study()

    def begin(self) -> Played:
        """Start a new trial with the values that the sampler proposes; raises `LookupError` once the budget is used."""
        if self.is_over:
            raise LookupError("the budget is used")
        ticket = len(self.trials)
        self.study.sampler = make_sampler(self.world.spec, self.sampler, ticket)
        trial = self.study.ask()
        values = suggest(trial, self.world.spec)
        played = Played(ticket, trial, values, self.world.curve(values, ticket), self.world.truth(values, ticket))
        self.trials.append(played)
        return played

    @property
    def is_over(self) -> bool:
        """Whether the budget is used: then what has started is ended."""
        return len(self.best) >= self.budget

    @property
    def waiting(self) -> int:
        """Return the tickets that have not started, as a policy is told: without limit, then none."""
        return int(not self.is_over)

    def standings(self) -> list[allocate.Standing]:
        """Return the trials as the store would have them."""
        return [allocate.Standing(ticket=one.ticket, losses=one.known, state=one.state) for one in self.trials]

    def end(self, played: Played, state: str) -> None:
        """End a trial: complete, or pruned."""
        played.state = state
        if state == allocate.COMPLETE:
            self.study.tell(played.trial, perplexity(min(played.known)))
        else:
            self.study.tell(played.trial, state=optuna.trial.TrialState.PRUNED)


class Pruning:
    """Trials are stopped for good, by a pruner of Optuna's."""

    def __init__(self, search: Search, name: str) -> None:
        self.search = search
        search.study.pruner = make_pruner(search.world.spec, name)

    def next(self) -> Played:
        """Return the trial that a free worker takes."""
        return self.search.begin()

    def after_epoch(self, played: Played) -> str:
        """Decide about a trial after an epoch that is not its last."""
        return allocate.PRUNE if played.trial.should_prune() else allocate.CONTINUE


class Pausing:
    """Trials pause and continue, by a policy of ours."""

    def __init__(self, search: Search, policy: Policy) -> None:
        self.search, self.policy = search, policy

    def next(self) -> Played:
        """Return the best paused trial that is due, or a new one."""
        for ticket in self.policy.next_paused(self.search.standings(), self.search.waiting):
            played = self.search.trials[ticket]
            played.state = allocate.RUNNING
            return played
        return self.search.begin()

    def after_epoch(self, played: Played) -> str:
        """Decide about a trial after an epoch that is not its last."""
        return self.policy.after_epoch(played.ticket, self.search.standings(), self.search.waiting)


class OneEpoch:
    """Half of the budget for one epoch of many trials, the rest for the best of them (arXiv 2307.15422)."""

    def __init__(self, search: Search, trials: int) -> None:
        self.search, self.first = search, trials * search.world.spec.epochs // 2

    def next(self) -> Played:
        """Return a new trial, then the best after one epoch."""
        if len(self.search.trials) < self.first and not self.search.is_over:
            return self.search.begin()
        waiting = [one for one in self.search.trials if one.state == allocate.PAUSED]
        if not waiting:
            return self.search.begin()
        best = min(waiting, key=lambda one: one.known[0])
        best.state = allocate.RUNNING
        return best

    def after_epoch(self, played: Played) -> str:
        """Pause after the first epoch."""
        return allocate.PAUSE if played.epochs == 1 else allocate.CONTINUE


def allocation(name: str, search: Search, trials: int) -> Any:
    """Return an allocation by its name."""
    spec = search.world.spec
    if name == "promote":  # `asha` with promote = true
        return Pausing(search, Promotion.of(spec.epochs, asha_rung(spec.epochs), 2))
    if (policy := policy_of(spec, name, trials)) is not None:
        return Pausing(search, policy)
    if name == "one-epoch":
        return OneEpoch(search, trials)
    return Pruning(search, name)


def play(world: World, method: str, trials: int, workers: int) -> Search:
    """Play one search until its epochs are used up, and then until what has started is ended, as a search ends."""
    sampler, name, *rest = method.split("+")
    world = replace(world, spec=replace(world.spec, prior=prior_of(world, rest[0]) if rest else {}))
    search = Search(world, sampler.removesuffix("2x"))
    search.budget = trials * world.spec.epochs * (2 if sampler.endswith("2x") else 1)
    rule = allocation(name, search, trials)
    queue: list[tuple[float, int, Played | None]] = [(0.0, worker, None) for worker in range(workers)]
    incumbent = None
    while queue:
        now, worker, played = heapq.heappop(queue)
        started = time.process_time()
        if played is not None:
            played.epochs += 1
            loss = float(played.losses[played.epochs - 1])
            if search.is_over:
                search.after += 1
            else:
                if incumbent is None or loss < search.best[-1]:
                    incumbent = played
                search.best.append(min(loss, search.best[-1] if search.best else math.inf))
                search.worth.append(incumbent.truth)
                if search.is_over:
                    search.covered = coverage(search)
            played = after(search, rule, played, loss)
        if played is None:
            try:
                played = rule.next()
            except LookupError:  # the table has no configuration left, or nothing is worth an epoch any more
                continue
        took = time.process_time() - started
        search.seconds += 0.0 if search.is_over else took
        heapq.heappush(queue, (now + took + EPOCH_SECONDS, worker, played))
    return search


def after(search: Search, rule: Any, played: Played, loss: float) -> Played | None:
    """Report an epoch and decide; return the trial where its worker continues with it."""
    played.trial.report(perplexity(loss), played.epochs)
    if played.epochs == search.world.spec.epochs:
        search.end(played, allocate.COMPLETE)
        return None
    verdict = rule.after_epoch(played)
    if verdict == allocate.CONTINUE:
        return played
    if verdict == allocate.PAUSE:
        played.state = allocate.PAUSED
    else:
        search.end(played, allocate.COMPLETE if verdict == allocate.FINISH else allocate.ENDED)
    return None


def coverage(search: Search) -> tuple[int, int]:
    """Count the forecasts of unfinished trials at the end of a search whose 90 % interval has what they would reach."""
    known = [one for one in search.trials if one.epochs]
    complete = [one.state == allocate.COMPLETE for one in known]
    found = forecast([one.known for one in known], search.world.spec.epochs, complete)
    inside = total = 0
    for one, mean, deviation in zip(known, found.mean_N, found.deviation_N, strict=True):
        if one.state != allocate.COMPLETE and one.epochs > 1:
            total += 1
            inside += abs(float(min(one.losses)) - float(mean)) <= INTERVAL * float(deviation)
    return inside, total


# Cells: one method in one world with one budget and number of workers.


@dataclass(frozen=True)
class Cell:
    """What is played in one go."""

    world: str
    trials: int
    epochs: int
    workers: int
    method: str
    repetitions: int

    @property
    def key(self) -> str:
        """Return the name under which its result is kept."""
        return f"{self.world} {self.trials}x{self.epochs} {self.workers} {self.method} {self.repetitions}"


_tables: dict[str, Table] = {}
_models: dict[str, Model] = {}


def open_world(name: str, epochs: int, repetition: int) -> World:
    """Return a world by its name."""
    if name in KINDS:
        return made_up(name, epochs, repetition)
    mode, _, table = name.partition("-")
    if mode not in ("pool", "trees", "process"):
        raise SystemExit(f"no world is called {name}")
    if table not in _tables:
        _tables[table] = Table(table_file(table))
    opened = _tables[table]
    spec = seeded(opened.cut(epochs), repetition)
    if mode == "pool":
        return Pool(opened, spec, repetition)
    if name not in _models:
        _models[name] = Model(opened, mode)
        overall, best = _models[name].check()
        if overall < 0.9 or best < 0.5:
            raise SystemExit(f"{name} is no judge: left-out ranks correlate by {overall:.2f}, {best:.2f} of the best")
    return Surrogate(_models[name], spec, repetition)


def play_cell(cell: Cell) -> dict[str, Any]:
    """Play all repetitions of a cell; returns its result as plain values."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    started = time.process_time()
    runs: list[dict[str, Any]] = []
    for repetition in range(cell.repetitions):
        search = play(open_world(cell.world, cell.epochs, repetition), cell.method, cell.trials, cell.workers)
        known = [one for one in search.trials if one.epochs]
        best = min(known, key=lambda one: float(min(one.losses)))
        inside, total = search.covered
        runs.append(
            {
                "best": [round(loss, 5) for loss in search.best],
                "worth": [round(search.worth[place], 5) for place in _quarters(len(search.worth))],
                "begun": len(known),
                "complete": sum(one.state == allocate.COMPLETE for one in known),
                "winner": best.state == allocate.COMPLETE,
                "after": search.after,
                "inside": inside,
                "forecasts": total,
                "decisions": round(search.seconds, 3),
            }
        )
    return {"key": cell.key, "runs": runs, "seconds": round(time.process_time() - started, 1)}


def _quarters(epochs: int) -> list[int]:
    return [max(0, round(epochs * share) - 1) for share in (0.25, 0.5, 1.0)]


def reached(run: dict[str, Any], target: float, budget: int) -> float:
    """Return the epochs until a run has observed the target, as a share of the budget; infinite where it has not."""
    return next((epoch / budget for epoch, loss in enumerate(run["best"], 1) if loss <= target), math.inf)


def interval(values: Sequence[float], statistic: Callable[[Any], float]) -> tuple[float, float]:
    """Return the 90 % bootstrap interval of a statistic over repetitions."""
    rng = np.random.default_rng(0)
    numbers = np.array(values)
    drawn = [statistic(numbers[rng.integers(len(numbers), size=len(numbers))]) for _ in range(500)]
    low, high = sorted(drawn)[24], sorted(drawn)[474]
    return low, high


def show(cells: Sequence[Cell], results: dict[str, dict[str, Any]]) -> None:
    """Print a table for each world, budget and number of workers."""
    groups = sorted({(cell.world, cell.trials, cell.epochs, cell.workers, cell.repetitions) for cell in cells})
    for world, trials, epochs, workers, repetitions in groups:
        chosen = [cell for cell in cells if cell.key.startswith(f"{world} {trials}x{epochs} {workers} ")]
        found = {cell.method: results[cell.key] for cell in chosen if cell.key in results}
        if "random+none" not in found:
            continue
        budget = trials * epochs
        target = float(np.median([run["best"][-1] for run in found["random+none"]["runs"]]))
        twice = found.get("random2x+none", found["random+none"])
        floor = float(np.mean([run["worth"][-1] for run in twice["runs"]]))
        print(f"\n{world}, {trials} x {epochs}, {workers} workers, {repetitions} repetitions; target {target:.3f} nats")
        head = "to target  (90 %)         reach  worth at 1/4, 1/2, 1   begun  whole after  winner  90 % cover"
        print(f"{'':18}{head}  CPU s a decision")
        for method, result in found.items():
            runs = result["runs"]
            shares = [reached(run, target, budget) for run in runs]
            low, high = interval(shares, lambda numbers: float(np.median(numbers)))
            worth = [1000 * (float(np.mean([run["worth"][place] for run in runs])) - floor) for place in range(3)]
            inside, total = (sum(run[name] for run in runs) for name in ("inside", "forecasts"))
            after = float(np.mean([run["after"] for run in runs])) / budget
            decisions = sum(run["decisions"] for run in runs) / sum(len(run["best"]) for run in runs)
            print(
                f"{method:18}{np.median(shares):9.2f}  ({low:.2f} to {high:.2f})  {np.mean(np.isfinite(shares)):8.0%}"
                f"  {worth[0]:7.0f}{worth[1]:7.0f}{worth[2]:7.0f}  {np.mean([run['begun'] for run in runs]):7.0f}"
                f"{np.mean([run['complete'] for run in runs]):7.0f}  {after:5.0%}"
                f"  {np.mean([run['winner'] for run in runs]):6.0%}"
                f"  {inside / total if total else math.nan:10.0%}  {decisions:16.4f}"
            )


def main() -> None:
    """Play what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", nargs="+", default=["24x8"], help="trials x epochs")
    parser.add_argument("--workers", nargs="+", type=int, default=[4])
    parser.add_argument("--worlds", nargs="+", default=list(KINDS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--repetitions", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="5 repetitions")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path("search-results.jsonl"))
    parser.add_argument("--show", action="store_true", help="print what FILE has, and play nothing")
    asked = parser.parse_args()
    repetitions = 5 if asked.quick else asked.repetitions
    cells = [
        Cell(world, *map(int, budget.split("x")), workers, method, repetitions)  # type: ignore[call-arg,arg-type]
        for world in asked.worlds
        for budget in asked.budget
        for workers in asked.workers
        for method in asked.methods
    ]
    results: dict[str, dict[str, Any]] = {}
    if asked.results.exists():
        lines = asked.results.read_text(encoding="utf-8").splitlines()
        results = {result["key"]: result for result in map(json.loads, lines)}
    started = time.monotonic()
    missing = [cell for cell in cells if cell.key not in results]
    if missing and not asked.show:
        os.environ["OMP_NUM_THREADS"] = "1"
        with multiprocessing.get_context("spawn").Pool(asked.processes) as pool:
            for result in pool.imap_unordered(play_cell, missing):
                results[result["key"]] = result
                with asked.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(result) + "\n")
                print(f"{result['key']}: {result['seconds']} s of CPU", flush=True)
    show(cells, results)
    print(f"\n{len(missing)} cells were played in {time.monotonic() - started:.0f} s; {len(cells)} are shown")


if __name__ == "__main__":
    main()
