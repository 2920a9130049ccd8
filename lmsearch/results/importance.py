"""Which searched values matter: how much of the differences between trials each explains, and what chance would.

A value's share is the adjusted R² of a parabola in it (in the searched scale; a constant for each choice) for the log
perplexity, beyond the trend of the search: a sampler that learns moves towards good values of all settings together, so
that one without any effect seems to have one. Intervals are of a bootstrap over trials. A value stands out where its
share is above that of the largest of all in 95 % of permutations (max-T, Westfall and Young 1993), given those that
stand out already; it is said to matter most where it has the largest share in most bootstrap samples too.
benchmarks/claims.py importance counts how often that is wrong.

Shapes: N trials, K columns of a value's basis, R resamples.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lmsearch.curves.forecast import Floats
from lmsearch.results.forecasts import expected_losses
from lmsearch.space import Choice
from lmsearch.store.records import StudyRecord, TrialRecord
from lmsearch.study.spec import StudySpec

_LEAST_TRIALS = 8
_MOST_TRIALS = 1_000  # of a larger study an even sample
_PERMUTATIONS = 400
_RESAMPLES = 200
_ALPHA = 0.05
_SURE = 0.8  # share of resamples in which the one that matters most must come first
_LEVEL = 0.9  # of the intervals
_OUTLIER = 3.0  # values are cut so many deviations above the median: how bad a bad trial is does not matter


@dataclass(frozen=True, kw_only=True)
class Importance:
    """How much of the differences between trials one searched value explains alone, with an interval of 90 %."""

    path: str
    share: float
    low: float
    high: float
    stands_out: bool  # from what chance gives


@dataclass(frozen=True, kw_only=True)
class Importances:
    """What is known about a study's searched values, the largest share first; nothing for too few trials."""

    values: tuple[Importance, ...] = ()
    most: str | None = None  # the path of the one that matters most, where that is clear
    trials: int = 0  # that it rests on

    def document(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"trials": self.trials, "matters_most": self.most, "values": [asdict(value) for value in self.values]}

    def sentences(self) -> list[str]:
        """Say what matters, as far as it can be said."""
        if not self.values:
            return [f"It needs {_LEAST_TRIALS} trials to say which searched values matter; {self.trials} can be used."]
        out = [value for value in self.values if value.stands_out]
        if not out:
            return [f"No searched value stands out from chance in {self.trials} trials."]
        shares = [f"{value.share:.0%} ({value.low:.0%} to {value.high:.0%})" for value in out]
        of_all = f"of the differences between {self.trials} trials"
        if len(out) == 1:
            most = " most" if self.most is not None else ""
            return [f"{out[0].path} matters{most}: alone it explains {shares[0]} {of_all}."]
        each = ", ".join(f"{value.path} {share}" for value, share in zip(out, shares, strict=True))
        if self.most is not None:
            return [f"{self.most} matters most. Each alone explains {of_all}: {each}."]
        return [f"Several searched values matter, and which one most is open. Each alone explains {of_all}: {each}."]


def importances(record: StudyRecord) -> Importances:
    """Return what each open value explains; one that was stopped early counts with its forecast."""
    spec = record.info.spec
    losses = expected_losses(record)
    chosen = [trial for trial in record.trials if trial.number in losses and _is_point(trial, spec)]
    if len(chosen) > _MOST_TRIALS:
        chosen = [chosen[int(place)] for place in np.linspace(0, len(chosen) - 1, _MOST_TRIALS)]
    if len(chosen) < _LEAST_TRIALS or not spec.open:
        return Importances(trials=len(chosen))
    losses_N = np.array([losses[trial.number] for trial in chosen])
    if np.ptp(losses_N) < 1e-12:
        return Importances(trials=len(chosen))
    return explain(spec, [trial.params for trial in chosen], losses_N)


def explain(spec: StudySpec, points: Sequence[Any], losses_N: Floats) -> Importances:
    """Return what each open value explains of these losses, of trials in the order of their start."""
    rng = np.random.default_rng(0)
    paths = list(spec.open)
    bases = [_basis(spec, path, points) for path in paths]
    middle = float(np.median(losses_N))
    spread = 1.4826 * float(np.median(np.abs(losses_N - middle))) or float(np.std(losses_N))
    losses_N = np.minimum(losses_N, middle + _OUTLIER * spread)
    count = len(losses_N)
    known_NK = np.stack([np.ones(count), np.log1p(np.arange(count) / 4)], axis=1)
    shares = np.array([_share(basis, known_NK, losses_N[:, None])[0] for basis in bases])
    drawn = [_resampled(bases, known_NK, losses_N, rng) for _ in range(_RESAMPLES)]
    drawn_RD = np.array(drawn)
    first = int(np.argmax(shares))
    standing = _standing_out(bases, known_NK, losses_N, rng)
    sure = first in standing and float(np.mean(np.argmax(drawn_RD, axis=1) == first)) >= _SURE
    low, high = np.quantile(drawn_RD, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=0)
    values = [
        Importance(
            path=paths[place],
            share=max(0.0, float(shares[place])),
            low=max(0.0, float(low[place])),
            high=max(0.0, float(high[place])),
            stands_out=place in standing,
        )
        for place in np.argsort(-shares, kind="stable").tolist()
    ]
    return Importances(values=tuple(values), most=paths[first] if sure else None, trials=count)


def _is_point(trial: TrialRecord, spec: StudySpec) -> bool:
    return all(path in trial.params and value.contains(trial.params[path]) for path, value in spec.open.items())


def _basis(spec: StudySpec, path: str, points: Sequence[Any]) -> Floats:
    """Return the columns of one value, of shape (N, K)."""
    value = spec.open[path]
    if isinstance(value, Choice):
        return np.array([[float(point[path] == choice) for choice in value.choices[1:]] for point in points])
    shares_N = np.array([value.share_of(point[path]) for point in points]) - 0.5
    return np.stack([shares_N, shares_N**2], axis=1)


def _share(basis_NK: Floats, known_NK: Floats, losses_NR: Floats) -> Floats:
    """Return the adjusted share that a basis explains of each column of losses, beyond what is known, of shape (R,)."""
    count = len(losses_NR)
    outer_NK, _ = np.linalg.qr(known_NK)
    rest_NR = losses_NR - outer_NK @ (outer_NK.T @ losses_NR)
    total_R = np.maximum((rest_NR**2).sum(0), 1e-30)
    own_NK, sizes, _ = np.linalg.svd(basis_NK - outer_NK @ (outer_NK.T @ basis_NK), full_matrices=False)
    own_NK = own_NK[:, sizes > 1e-9]
    explained_R = ((own_NK.T @ rest_NR) ** 2).sum(0) / total_R
    degrees = count - known_NK.shape[1]
    return np.asarray(1 - (1 - explained_R) * degrees / max(degrees - own_NK.shape[1], 1))


def _resampled(bases: Sequence[Floats], known_NK: Floats, losses_N: Floats, rng: np.random.Generator) -> list[float]:
    rows = rng.integers(len(losses_N), size=len(losses_N))
    return [float(_share(basis[rows], known_NK[rows], losses_N[rows, None])[0]) for basis in bases]


def _standing_out(bases: Sequence[Floats], known_NK: Floats, losses_N: Floats, rng: np.random.Generator) -> set[int]:
    """Return the values that stand out from chance, found one after the other, each given those before it."""
    found: set[int] = set()
    while len(found) < len(bases) and len(losses_N) - known_NK.shape[1] > _LEAST_TRIALS // 2:
        rest = [place for place in range(len(bases)) if place not in found]
        shares = [float(_share(bases[place], known_NK, losses_N[:, None])[0]) for place in rest]
        outer_NK, _ = np.linalg.qr(known_NK)
        left_N = losses_N - outer_NK @ (outer_NK.T @ losses_N)
        permuted_NR = np.stack([rng.permutation(left_N) for _ in range(_PERMUTATIONS)], axis=1)
        chance_R = np.max([_share(bases[place], known_NK, permuted_NR) for place in rest], axis=0)
        if max(shares) <= float(np.quantile(chance_R, 1 - _ALPHA)):
            break
        best = rest[int(np.argmax(shares))]
        found.add(best)
        known_NK = np.hstack([known_NK, bases[best]])
    return found
