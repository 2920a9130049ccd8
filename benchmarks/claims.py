"""How often what the report says is wrong: statistics against known answers, a thousand simulated studies each.

    python benchmarks/claims.py confirm     # a winner where there is none; how often a true gap is called
    python benchmarks/claims.py range       # a range warned about, and one not warned about
    python benchmarks/claims.py band        # how often the band around the typical best covers it
    python benchmarks/claims.py importance  # a value said to matter, or to matter most, that does not
    python benchmarks/claims.py noise STUDY URL   # writes seed_noise.json from a confirmed study

The noise is that of real seeds: seed_noise.json has the perplexities of a real confirmation, leader by leader.
"""

import argparse
import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from lmsearch.results.importance import Importances, explain
from lmsearch.results.ranges import edges
from lmsearch.results.reading import read
from lmsearch.results.statistics import BAND_LEVEL, LEVEL, Draws, compare
from lmsearch.search.strategies import make_sampler, suggest
from lmsearch.store.distributions import distribution
from lmsearch.store.records import StudyInfo, StudyRecord, TrialRecord
from lmsearch.store.tables import StudyRef
from lmsearch.study.reading import parse_study

NOISE = Path(__file__).parent / "seed_noise.json"
GAPS = (1, 2, 4, 8)  # in standard deviations of a seed
SEEDS = (3, 5, 10)

SPACE = """
format = 1
[study]
sampler = "tpe"
[data]
corpus = "python-docs"
[model]
{others}
weight_dropout = {{ low = 0.1, high = 0.5 }}
[train]
epochs = 1
"""
OTHERS = """
output_dropout = { low = 0.0, high = 0.6 }
input_dropout = { low = 0.0, high = 0.6 }
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """Leaders of a simulated confirmation: true means in deviations of a seed, and how often somebody looks."""

    means: list[float]
    looks: int = 1  # each after the first at twice the seeds
    like: list[int] | None = None


def residuals() -> list[np.ndarray]:
    """Give each real leader's deviations from its mean, in units of the deviation of all of them."""
    stored = json.loads(NOISE.read_text())["leaders"]
    rows = [np.array(list(leader["seeds"].values())) for leader in stored]
    centred = [(row - row.mean()) * math.sqrt(len(row) / (len(row) - 1)) for row in rows]
    whole = math.sqrt(float(np.mean([np.mean(row**2) for row in centred])))
    return [row / whole for row in centred]


def real_noise(rng: np.random.Generator, rows: int, seeds: int, like: Sequence[int] | None = None) -> np.ndarray:
    """Draw deviations of leaders (rows) over seeds, each leader's from one real leader's, smoothed a little.

    `like` says which real leader each is like; without, chance does.
    """
    real = residuals()
    drawn = np.array([rng.choice(real[one], seeds) for one in like or rng.integers(len(real), size=rows)])
    smooth = 0.2
    return (drawn + smooth * rng.normal(size=drawn.shape)) / math.sqrt(1 + smooth**2)


def called(rng: np.random.Generator, case: Case, seeds: int) -> bool:
    """Simulate one confirmation; tell whether its winner was called, at any of its looks."""
    stages = [seeds * 2**look for look in range(case.looks)]
    table = np.array(case.means)[:, None] + real_noise(rng, len(case.means), stages[-1], case.like)
    found = [compare(table[:, :stage].tolist(), looks=look) for look, stage in enumerate(stages, 1)]
    return any(one is not None and one.is_called for one in found)


def confirm_rates(studies: int) -> dict[str, dict[int, float]]:
    """Give, by case and number of seeds, the share of studies in which a winner was called."""
    noisy = sorted(range(len(residuals())), key=lambda one: -float(residuals()[one].std()))
    cases = {
        "no winner: two equal": Case([0, 0]),
        "no winner: three equal": Case([0, 0, 0]),
        "no winner: five equal": Case([0, 0, 0, 0, 0]),
        "no winner: two equal, one 4 worse": Case([0, 0, 4]),
        "no winner: the two noisiest equal, two calm ones 8 worse": Case([0, 0, 8, 8], like=noisy),
        "no winner: two equal, asked four times, each with twice the seeds": Case([0, 0], looks=4),
    }
    cases |= {f"a winner, {gap} better than two": Case([0, gap, gap]) for gap in GAPS}
    found: dict[str, dict[int, float]] = {}
    for number, (name, case) in enumerate(cases.items()):
        for seeds in SEEDS:
            rng = np.random.default_rng([seeds, number])
            found.setdefault(name, {})[seeds] = sum(called(rng, case, seeds) for _ in range(studies)) / studies
    return found


def simulate_range(seed: int, optimum: float, cost: float, dimensions: int, trials: int = 40) -> bool:
    """Run TPE on log perplexity quadratic in the searched scale, noise of deviation 1; tell whether it was warned of.

    `optimum` is a place in the scale of `model.weight_dropout`, 0 and 1 its ends; `cost` what a whole range costs.
    """
    spec = parse_study(SPACE.format(others=OTHERS if dimensions > 1 else ""), Path("/"))
    rng = np.random.default_rng(seed)
    others = {path: float(rng.uniform(0.25, 0.75)) for path in spec.open if path != "model.weight_dropout"}
    study = optuna.create_study(sampler=make_sampler(spec, "tpe", seed))
    distributions = {path: distribution(value) for path, value in spec.open.items()}
    records = []
    for number in range(trials):
        trial = study.ask(distributions)
        positions = {path: (trial.params[path] - r.low) / (r.high - r.low) for path, r in spec.open.items()}  # type: ignore[union-attr]
        logarithm = cost * (positions["model.weight_dropout"] - optimum) ** 2 + float(rng.normal())
        logarithm += sum(48 * (positions[path] - best) ** 2 for path, best in others.items())
        perplexity = 100 * math.exp(0.005 * logarithm)
        study.tell(trial, perplexity)
        records.append(_record(number, dict(trial.params), perplexity))
    info = StudyInfo(ref=StudyRef(name="s", id=1, key="k"), spec=spec, folder="/", corpus="", fingerprint="",
                     vocabulary_size=10, home_id=1)  # fmt: skip
    found = edges(StudyRecord(info=info, trials=tuple(records), tickets=()))
    return any(edge.path == "model.weight_dropout" for edge in found)


def _record(number: int, params: dict[str, Any], perplexity: float) -> TrialRecord:
    values: dict[str, Any] = {field.name: "" for field in dataclasses.fields(TrialRecord)}
    values |= {"number": number, "outcome": "complete", "params": params, "curve": {1: perplexity}}
    values |= {"parameters": 1, "started": None, "ended": datetime(2026, 1, 1), "ticket": None, "epochs": ()}
    return TrialRecord(**values)


def range_rates(studies: int) -> dict[str, float]:
    """Give the share of studies with a warning, by where the optimum lies and how many values are searched."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found = {}
    for dimensions in (1, 3):
        values = "1 value" if dimensions == 1 else "3 values"
        warned = {"inside": 0, "flat": 0, "beyond": 0}
        for number in range(studies):
            rng = np.random.default_rng([number, dimensions])
            inside, steepness = float(rng.uniform(0.25, 0.75)), float(np.exp(rng.uniform(np.log(3), np.log(300))))
            warned["inside"] += simulate_range(number, inside, steepness, dimensions)
            warned["flat"] += simulate_range(number, 0.5, 0.0, dimensions)
            beyond = float(rng.choice([-0.25, 1.25]))
            warned["beyond"] += simulate_range(number, beyond, 3 / 0.25**2, dimensions)
        found[f"{values}, optimum in the middle half: warned"] = warned["inside"] / studies
        found[f"{values}, it does not matter at all: warned"] = warned["flat"] / studies
        found[f"{values}, optimum a quarter beyond, the end costs 3 deviations: not warned"] = (
            1 - warned["beyond"] / studies
        )
    return found


def band_rates(studies: int) -> dict[str, float]:
    """Give how often the band covers the true typical best, by distribution and budget, for 24 random trials."""
    rng = np.random.default_rng(0)

    def quadratic(count: int) -> np.ndarray:
        real = np.concatenate(residuals())
        cost: np.ndarray = (48 * (rng.uniform(0, 1, (count, 3)) - 0.5) ** 2).sum(axis=1)
        return cost + rng.choice(real, count) + 0.2 * rng.normal(size=count)

    samplers = {"quadratic, real noise": quadratic, "exponential": lambda n: rng.exponential(size=n),
                "normal": lambda n: rng.normal(size=n)}  # fmt: skip
    found = {}
    for name, sample in samplers.items():
        many = sample(1_000_000)
        for budget in (1, 4, 8, 12):
            truth = float(np.quantile(many, 1 - 0.5 ** (1 / budget)))
            bands = [Draws(tuple(sample(24).tolist())).band(budget) for _ in range(studies)]
            covered = sum(band is not None and band[0] <= truth <= band[1] for band in bands)
            found[f"{name}, budget {budget} of 24"] = covered / studies
    return found


IMPORTANCE_SPACE = """
format = 1
[study]
seed = {seed}
[data]
corpus = "python-docs"
[model]
tie_weights = {{ choices = [true, false] }}
input_dropout = {{ low = 0.0, high = 0.6 }}
output_dropout = {{ low = 0.0, high = 0.6 }}
weight_dropout = {{ low = 0.0, high = 0.5 }}
[train]
learning_rate = {{ low = 1e-3, high = 2e-2, log = true }}
weight_decay = {{ low = 1e-7, high = 1e-4, log = true }}
activation_reg = {{ low = 0.0, high = 2.0 }}
temporal_activation_reg = {{ low = 0.0, high = 2.0 }}
epochs = 1
"""
RATE, OUTPUT = "train.learning_rate", "model.output_dropout"
EFFECTS: dict[str, dict[str, float]] = {  # nats that a whole range costs, by value
    "nothing matters": {},
    "one value matters": {RATE: 0.3},
    "one matters a little": {RATE: 0.06},
    "two matter alike": {RATE: 0.2, OUTPUT: 0.2},
}


def simulate_importance(seed: int, effects: dict[str, float], sampler: str, trials: int) -> Importances:
    """Run a sampler on losses that are quadratic in some values, with the noise of a seed; return what is said."""
    spec = parse_study(IMPORTANCE_SPACE.format(seed=seed), Path("/"))
    rng = np.random.default_rng([seed, trials])
    study = optuna.create_study()
    points, losses = [], []
    for ticket in range(trials):
        study.sampler = make_sampler(spec, sampler, ticket)
        trial = study.ask()
        point = suggest(trial, spec)
        loss = 3.0 + float(rng.normal(0, 0.01))
        for path, cost in effects.items():
            loss += cost * (spec.open[path].share_of(point[path]) - (0.7 if path == RATE else 0.3)) ** 2  # type: ignore[union-attr]
        trial.report(math.exp(loss), 1)
        study.tell(trial, math.exp(loss))
        points.append(point)
        losses.append(loss)
    return explain(spec, points, np.array(losses))


def importance_rates(studies: int) -> dict[str, list[float]]:
    """Give, by case, how often a wrong and a right value is said to matter most, and a wrong one to matter."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found = {}
    for trials, sampler in itertools.product((12, 24, 48), ("tpe", "random")):
        for case, effects in EFFECTS.items():
            said = [simulate_importance(seed, effects, sampler, trials) for seed in range(studies)]
            largest = {path for path in effects if effects[path] == max(effects.values())}
            found[f"{trials} trials of {sampler}, {case}"] = [
                sum(one.most is not None and one.most not in largest for one in said) / studies,
                sum(one.most in largest for one in said) / studies,
                sum(any(v.stands_out and v.path not in effects for v in one.values) for one in said) / studies,
            ]
    return found


def write_noise(study: str, storage: str) -> None:
    """Write down what real seeds gave."""
    results = read(study, storage)
    assert results.confirmation is not None, f"{study} has no confirmation"
    leaders = [
        {"trial": leader.trial.number, "seeds": {str(seed): value for seed, value in leader.perplexities.items()}}
        for leader in results.confirmation.leaders
    ]
    document = {"study": study, "corpus": Path(results.record.info.corpus).name, "leaders": leaders}
    NOISE.write_text(json.dumps(document, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claim", choices=("confirm", "range", "band", "importance", "noise"))
    parser.add_argument("study", nargs="*", help="for noise: the study, and its store's URL")
    parser.add_argument("--studies", type=int, default=1000)
    args = parser.parse_args()
    if args.claim == "noise":
        write_noise(*args.study)
    elif args.claim == "confirm":
        print(
            f"share of {args.studies} studies in which a winner is called ({LEVEL:.0%}); gaps in deviations of a seed"
        )
        print(f"{'':66}" + "".join(f"{seeds:>10} seeds" for seeds in SEEDS))
        for case, shares in confirm_rates(args.studies).items():
            print(f"{case:66}" + "".join(f"{shares[seeds]:16.1%}" for seeds in SEEDS))
    elif args.claim == "importance":
        print(f"shares of {args.studies} studies in which a value is said to matter")
        print(f"{'':50}{'most, wrongly':>16}{'most, rightly':>16}{'wrongly':>10}")
        for case, rates in importance_rates(args.studies).items():
            print(f"{case:50}{rates[0]:16.1%}{rates[1]:16.1%}{rates[2]:10.1%}")
    elif args.claim == "range":
        for case, share in range_rates(args.studies).items():
            print(f"{case:75} {share:6.1%}")
    else:
        print(f"share of {args.studies} studies in which the band covers the truth; its level is {BAND_LEVEL:.0%}")
        for case, share in band_rates(args.studies).items():
            print(f"{case:45} {share:6.1%}")


if __name__ == "__main__":
    main()
