"""What a trial's learning curve will reach, forecast from its own epochs and corrected by the study's complete trials.

The loss after k of E epochs is taken as `a + b * (k / tau + 0.05) ** -alpha` with tau = E / 8 and noise of equal size
in all curves. For each of a few exponents the posterior of a and b is a normal distribution in closed form; the
exponents are weighted by their evidence. Bayesian power laws for learning curves: Domhan et al., IJCAI 2015; that a
forecast decides what is trained on: Swersky et al., Freeze-Thaw Bayesian Optimization, arXiv 1406.3896.

Shapes: N curves, K epochs that are known, A exponents. Losses are in nats per token.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_EXPONENTS_A = np.array([0.3, 0.45, 0.6, 0.75, 0.9, 1.1, 1.3])
_LOG_PRIOR_A = -0.5 * ((_EXPONENTS_A - 0.8) / 0.35) ** 2
_SPREAD = 0.6  # standard deviation of the prior of a and b
_FIRST_NOISE = 0.014  # before the study's own curves tell
_LEAST_NOISE = 0.005
_BEYOND = 0.018  # what a power law does not know, over three doublings of the epochs
_FEWEST = 3  # complete trials before their errors correct the others
_SHIFT, _SLOPE = 0.1, 0.4  # standard deviations of the prior of a correction's two weights
_TAKEN_BACK = 0.5  # share of a forecast's own variance that its errors are expected to have
_COUNTS_AS = 4.0  # how many errors that expectation counts as
_ROUNDS = 5
_LONG_ENOUGH = 4  # epochs of a curve whose residuals count for the noise


def losses_of(reported: Mapping[int, float], diverged: bool) -> list[float]:
    """Return the losses (nats per token) of the perplexities that epochs reported, without the one that diverged.

    A trial of another program may have reported what has no logarithm.
    """
    values = [value for _, value in sorted(reported.items())]
    return [math.log(value) for value in (values[:-1] if diverged else values) if 0 < value < math.inf]


@dataclass(frozen=True, kw_only=True)
class Forecasts:
    """What each of N curves reaches at its end: its lowest loss, as mean and standard deviation."""

    mean_N: Floats
    deviation_N: Floats


def forecast(curves: Sequence[Sequence[float]], epochs: int, complete: Sequence[bool]) -> Forecasts:
    """Forecast the lowest loss of each curve at its end; what is complete is what it is.

    Every curve needs at least one epoch, and finite losses.
    """
    lengths_N = np.array([len(curve) for curve in curves])
    lowest_N = np.array([min(curve) for curve in curves], dtype=np.float64)
    done_N = np.array(complete, dtype=bool) | (lengths_N >= epochs)
    prior = _prior(curves)
    noise = _noise(curves, epochs, prior)
    mean_N, deviation_N = lowest_N.copy(), np.zeros(len(curves))
    for known in sorted(set(lengths_N[~done_N].tolist())):
        chosen_N = np.flatnonzero(~done_N & (lengths_N == known))
        means, variances = _extrapolate(_heads(curves, chosen_N, known), epochs, prior, noise)
        longer_N = np.flatnonzero(done_N & (lengths_N > known))
        seen, own = _extrapolate(_heads(curves, longer_N, known), epochs, prior, noise)
        means, variances = _correct(means, variances, seen, own, lowest_N[longer_N])
        mean_N[chosen_N] = np.minimum(means, lowest_N[chosen_N])
        deviation_N[chosen_N] = np.sqrt(variances)
    return Forecasts(mean_N=mean_N, deviation_N=deviation_N)


def backtest(curves: Sequence[Sequence[float]], epochs: int, known: int) -> tuple[float, float]:
    """Return how well the forecast and the loss at `known` epochs rank complete curves by what they reached.

    Both are Spearman's rank correlation with the lowest loss; NaN for fewer than three curves.
    """
    if len(curves) < _FEWEST:
        return math.nan, math.nan
    lowest_N = np.array([min(curve) for curve in curves])
    chosen_N = np.arange(len(curves))
    prior = _prior(curves)
    means, _ = _extrapolate(_heads(curves, chosen_N, known), epochs, prior, _noise(curves, epochs, prior))
    seen_N = np.array([min(curve[:known]) for curve in curves])
    return spearman(means, lowest_N), spearman(seen_N, lowest_N)


def spearman(left_N: Floats, right_N: Floats) -> float:
    """Return the rank correlation of two lists of numbers; ties have no order of their own."""
    left, right = (np.argsort(np.argsort(values)) for values in (left_N, right_N))
    return float(np.corrcoef(left, right)[0, 1])


@dataclass(frozen=True)
class _Prior:
    a: float
    b: float


def _prior(curves: Sequence[Sequence[float]]) -> _Prior:
    lowest = min(min(curve) for curve in curves)
    first = float(np.median([curve[0] for curve in curves]))
    return _Prior(lowest - 0.1, first - lowest + 0.1)


def _heads(curves: Sequence[Sequence[float]], chosen_N: npt.NDArray[np.int64], known: int) -> Floats:
    return np.array([curves[int(index)][:known] for index in chosen_N], dtype=np.float64).reshape(-1, known)


def _basis(epochs_K: Floats, epochs: int) -> Floats:
    """Return the falling part of the curve for each exponent, of shape (A, K)."""
    return np.asarray((epochs_K / (epochs / 8) + 0.05) ** -_EXPONENTS_A[:, None])


@dataclass(frozen=True)
class _Fit:
    """The posterior of a and b for each curve and exponent."""

    a_NA: Floats
    b_NA: Floats
    aa_A: Floats  # entries of the posterior's precision matrix
    ab_A: Floats
    bb_A: Floats
    weights_NA: Floats  # of the exponents


def _fit(losses_NK: Floats, epochs: int, prior: _Prior, noise: float) -> _Fit:
    known = losses_NK.shape[1]
    basis_AK = _basis(np.arange(1, known + 1, dtype=np.float64), epochs)
    variance, spread = noise**2, _SPREAD**2
    aa_A = np.full(len(_EXPONENTS_A), known / variance + 1 / spread)
    ab_A = basis_AK.sum(1) / variance
    bb_A = (basis_AK**2).sum(1) / variance + 1 / spread
    a_N1 = losses_NK.sum(1, keepdims=True) / variance + prior.a / spread
    b_NA = losses_NK @ basis_AK.T / variance + prior.b / spread
    determinant_A = aa_A * bb_A - ab_A**2
    mean_a = (bb_A * a_N1 - ab_A * b_NA) / determinant_A
    mean_b = (aa_A * b_NA - ab_A * a_N1) / determinant_A
    squares_N1 = (losses_NK**2).sum(1, keepdims=True) / variance
    misfit_NA = squares_N1 + (prior.a**2 + prior.b**2) / spread - (mean_a * a_N1 + mean_b * b_NA)
    evidence_NA = -0.5 * misfit_NA - 0.5 * np.log(determinant_A) + _LOG_PRIOR_A
    weights_NA = np.exp(evidence_NA - evidence_NA.max(1, keepdims=True))
    return _Fit(mean_a, mean_b, aa_A, ab_A, bb_A, weights_NA / weights_NA.sum(1, keepdims=True))


def _extrapolate(losses_NK: Floats, epochs: int, prior: _Prior, noise: float) -> tuple[Floats, Floats]:
    """Return mean and variance of the loss after all epochs, for curves of equal length."""
    fit = _fit(losses_NK, epochs, prior, noise)
    last_A = _basis(np.array([float(epochs)]), epochs)[:, 0]
    means_NA = fit.a_NA + fit.b_NA * last_A
    within_A = (fit.bb_A - 2 * fit.ab_A * last_A + fit.aa_A * last_A**2) / (fit.aa_A * fit.bb_A - fit.ab_A**2)
    mean_N = (fit.weights_NA * means_NA).sum(1)
    variance_N = (fit.weights_NA * (within_A + (means_NA - mean_N[:, None]) ** 2)).sum(1)
    beyond = _BEYOND * math.log(epochs / losses_NK.shape[1]) / math.log(8)
    return mean_N, variance_N + beyond**2


def _noise(curves: Sequence[Sequence[float]], epochs: int, prior: _Prior) -> float:
    """Return the standard deviation of the noise of an epoch, from how far all curves are from their own power laws."""
    squares, degrees = 0.0, 0
    lengths = sorted({len(curve) for curve in curves if len(curve) >= _LONG_ENOUGH})
    for known in lengths:
        chosen_N = np.array([index for index, curve in enumerate(curves) if len(curve) == known])
        losses_NK = _heads(curves, chosen_N, known)
        fit = _fit(losses_NK, epochs, prior, _FIRST_NOISE)
        basis_AK = _basis(np.arange(1, known + 1, dtype=np.float64), epochs)
        fitted = np.einsum("na,nak->nk", fit.weights_NA, fit.a_NA[:, :, None] + fit.b_NA[:, :, None] * basis_AK)
        squares += float(((losses_NK - fitted) ** 2).sum())
        degrees += len(losses_NK) * (known - 3)
    return max(_LEAST_NOISE, math.sqrt(squares / degrees)) if degrees else _FIRST_NOISE


def _correct(
    means_C: Floats, variances_C: Floats, seen_N: Floats, own_N: Floats, reached_N: Floats
) -> tuple[Floats, Floats]:
    """Correct forecasts by how wrong those of N complete trials were at the same age: a shift, and a slope.

    Bayesian linear regression of the errors on the forecast. A power law says too much about curves that begin
    unlike the others; the slope takes that back. `own_N` are the variances of the forecasts `seen_N`.
    """
    count = len(seen_N)
    if count < _FEWEST:
        return means_C, variances_C
    centre = float(np.median(seen_N))
    inputs_N2 = np.stack([np.ones(count), seen_N - centre], axis=1)
    asked_C2 = np.stack([np.ones(len(means_C)), means_C - centre], axis=1)
    errors_N = reached_N - seen_N
    variance = expected = _TAKEN_BACK * float(np.median(own_N))
    for _ in range(_ROUNDS):
        squares = inputs_N2.T @ inputs_N2 / variance
        posterior = np.linalg.inv(squares + np.diag([_SHIFT**-2, _SLOPE**-2]))
        weights = posterior @ (inputs_N2.T @ errors_N) / variance
        degrees = count - float(np.trace(posterior @ squares))
        misfit = float(((errors_N - inputs_N2 @ weights) ** 2).sum())
        variance = (misfit + _COUNTS_AS * expected) / (degrees + _COUNTS_AS)
    uncertain_C = np.einsum("ci,ij,cj->c", asked_C2, posterior, asked_C2)
    return means_C + asked_C2 @ weights, variance + uncertain_C
