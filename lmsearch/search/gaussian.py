"""A Gaussian process over a study's space that knows how uncertain each value is, and what it would try next.

Matérn 5/2 kernel, half of it over all values at once and half a sum over single ones (additive kernels, Duvenaud et
al., NeurIPS 2011), which few points tell more about. A length scale for each value, chosen among a few by the marginal
likelihood with a log-normal prior; noise that differs between points, since a forecast from two epochs is worth less
than a finished trial; expected improvement, with running trials taken to reach what is predicted of them (kriging
believer, Ginsbourger et al. 2010).

Shapes: N points, C candidates, D encoded values (a range has one, a choice one for each option).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lmsearch.config import Value
from lmsearch.space import Choice
from lmsearch.study.spec import StudySpec

Floats = npt.NDArray[np.float64]

_SCALES = 16  # sets of length scales that are compared
_MIDDLE, _SPREAD = math.log(0.8), 0.8  # of the log-normal prior of a length scale, in shares of a range
_NOISE = 0.02  # variance that every point has, in units of the values' spread
_ANYWHERE, _NEARBY = 500, 400  # candidates over the whole space, and around the best points
_STEP = 0.12  # how far the latter are from these, in shares of a range
_BEST = 3
_MOST_POINTS = 400  # beyond, a proposal would take seconds
_ADDITIVE = 0.5  # share of the kernel
_HIGHEST = 1.5  # values are cut there, in units of their spread: how bad a bad point is does not matter


def encode(spec: StudySpec, points: Sequence[Mapping[str, Any]]) -> Floats:
    """Return points as rows of numbers from 0 to 1, of shape (N, D)."""
    rows = []
    for point in points:
        row: list[float] = []
        for path, value in spec.open.items():
            if isinstance(value, Choice):
                row += [math.sqrt(0.5) * (point[path] == choice) for choice in value.choices]
            else:
                row.append(value.share_of(point[path]))
        rows.append(row)
    return np.array(rows, dtype=np.float64)


def propose(
    spec: StudySpec,
    points: Sequence[Mapping[str, Any]],
    values_N: Floats,
    deviations_N: Floats,
    running: Sequence[Mapping[str, Any]],
    rng: np.random.Generator,
) -> dict[str, Value]:
    """Return the candidate with the highest expected improvement over the best point (lower values are better).

    `running` are points whose value is not known at all yet. Of very many points the best and an even sample of the
    others are used.
    """
    if len(points) > _MOST_POINTS:
        order = np.argsort(values_N, kind="stable")
        half = _MOST_POINTS // 2
        rest = order[half:][np.linspace(0, len(order) - half - 1, half).astype(int)]
        chosen = np.sort(np.concatenate([order[:half], rest]))
        points = [points[int(place)] for place in chosen]
        values_N, deviations_N = values_N[chosen], deviations_N[chosen]
    inputs_ND = encode(spec, points)
    middle = float(np.median(values_N))
    spread = max(1e-3, float(np.std(np.minimum(values_N, np.quantile(values_N, 0.8)))))
    scaled_N = np.minimum((values_N - middle) / spread, _HIGHEST)
    noise_N = (deviations_N / spread) ** 2 + _NOISE
    scales_D = _length_scales(inputs_ND, scaled_N, noise_N, rng)
    model = _Process(inputs_ND, scaled_N, noise_N, scales_D)
    best = float(model.mean(inputs_ND).min())
    if running:
        running_RD = encode(spec, running)
        model = _Process(
            np.vstack([inputs_ND, running_RD]),
            np.concatenate([scaled_N, model.mean(running_RD)]),
            np.concatenate([noise_N, np.full(len(running_RD), _NOISE)]),
            scales_D,
        )
    candidates = _candidates(spec, points, values_N, rng)
    mean_C, deviation_C = model.predict(encode(spec, candidates))
    return candidates[int(np.argmax(_expected_improvement(best, mean_C, deviation_C)))]


class _Process:
    """A process that has seen values at points, with the noise of each."""

    def __init__(self, inputs_ND: Floats, values_N: Floats, noise_N: Floats, scales_D: Floats) -> None:
        self._inputs_ND, self._scales_D = inputs_ND, scales_D
        covariance_NN = _kernel(inputs_ND, inputs_ND, scales_D) + np.diag(noise_N)
        self.lower_NN = np.linalg.cholesky(covariance_NN)
        self.weights_N = np.linalg.solve(self.lower_NN.T, np.linalg.solve(self.lower_NN, values_N))
        self.likelihood = float(-0.5 * values_N @ self.weights_N - np.log(np.diag(self.lower_NN)).sum())

    def mean(self, inputs_CD: Floats) -> Floats:
        return np.asarray(_kernel(inputs_CD, self._inputs_ND, self._scales_D) @ self.weights_N)

    def predict(self, inputs_CD: Floats) -> tuple[Floats, Floats]:
        kernel_CN = _kernel(inputs_CD, self._inputs_ND, self._scales_D)
        known_NC = np.linalg.solve(self.lower_NN, kernel_CN.T)
        variance_C = np.maximum(1e-6, 1 - (known_NC**2).sum(0))
        return kernel_CN @ self.weights_N, np.sqrt(variance_C)


def _kernel(left_ND: Floats, right_MD: Floats, scales_D: Floats) -> Floats:
    distance_NMD = np.abs(left_ND[:, None, :] - right_MD[None, :, :]) / scales_D
    together_NM = _matern(np.sqrt((distance_NMD**2).sum(2)))
    return (1 - _ADDITIVE) * together_NM + _ADDITIVE * np.asarray(_matern(distance_NMD).mean(2))


def _matern(distance: Floats) -> Floats:
    scaled = math.sqrt(5) * distance
    return np.asarray((1 + scaled + scaled**2 / 3) * np.exp(-scaled))


def _length_scales(inputs_ND: Floats, values_N: Floats, noise_N: Floats, rng: np.random.Generator) -> Floats:
    """Return the most likely of a few sets of length scales."""
    size = inputs_ND.shape[1]
    drawn = [np.exp(rng.normal(_MIDDLE, _SPREAD, size)) for _ in range(_SCALES - 1)]
    best, highest = np.full(size, math.exp(_MIDDLE)), -math.inf
    for scales_D in [best, *drawn]:
        prior = -0.5 * float((((np.log(scales_D) - _MIDDLE) / _SPREAD) ** 2).sum())
        found = _Process(inputs_ND, values_N, noise_N, scales_D).likelihood + prior
        if found > highest:
            best, highest = scales_D, found
    return best


def _candidates(
    spec: StudySpec, points: Sequence[Mapping[str, Any]], values_N: Floats, rng: np.random.Generator
) -> list[dict[str, Value]]:
    best = [points[int(place)] for place in np.argsort(values_N)[:_BEST]]
    anywhere = rng.random((_ANYWHERE, len(spec.open)))
    found = [
        {path: value.from_share(float(share)) for (path, value), share in zip(spec.open.items(), row, strict=True)}
        for row in anywhere
    ]
    for _ in range(_NEARBY):
        near = best[int(rng.integers(len(best)))]
        found.append({path: _moved(spec, path, near[path], rng) for path in spec.open})
    return found


def _moved(spec: StudySpec, path: str, value: Value, rng: np.random.Generator) -> Value:
    open_value = spec.open[path]
    if isinstance(open_value, Choice):
        return open_value.from_share(float(rng.random())) if rng.random() < _STEP else value
    share = open_value.share_of(value) + rng.normal(0, _STEP)
    return open_value.from_share(min(max(float(share), 0.0), 1.0))


def _expected_improvement(best: float, mean_C: Floats, deviation_C: Floats) -> Floats:
    gain_C = (best - mean_C) / deviation_C
    below_C = np.array([0.5 * math.erfc(-gain / math.sqrt(2)) for gain in gain_C])
    return np.asarray(deviation_C * (gain_C * below_C + np.exp(-(gain_C**2) / 2) / math.sqrt(2 * math.pi)))
