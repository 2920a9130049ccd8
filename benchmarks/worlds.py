"""What searches are played against in benchmarks/search.py: made-up worlds, and tables of recorded curves.

A world answers a configuration with the validation losses of all its epochs (nats per token), as a training with one
seed would give them, and knows what the configuration is worth without noise.

The made-up worlds have the eight open values of the shipped default study. Their shape follows one real study of it:
a high learning rate leads early and flattens, dropout is slow and better in the end, too little of it overfits late.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from record_curves import FOLDER, read_table, study_of

from lmsearch.curves.forecast import spearman
from lmsearch.search.gaussian import encode
from lmsearch.space import Prior
from lmsearch.study.reading import load_study
from lmsearch.study.shipped import find_study_file
from lmsearch.study.spec import StudySpec

Floats = npt.NDArray[np.float64]
Values = Mapping[str, Any]

_DROPOUTS = ("model.input_dropout", "model.output_dropout", "model.weight_dropout")
_OPTIMUM = {
    "model.input_dropout": 0.5,
    "model.output_dropout": 0.45,
    "model.weight_dropout": 0.5,
    "train.learning_rate": 0.62,
    "train.weight_decay": 0.5,
    "train.activation_reg": 0.45,
    "train.temporal_activation_reg": 0.5,
}
"""About where the made-up worlds are best, in shares of the ranges."""
KINDS = ("smooth", "hard", "cliffs", "noisy", "nothing")
"""Made-up worlds: two degrees of misleading early ranks, late cliffs, constant noise, one in which all are equal."""


class World(Protocol):
    """What a search is played against, in one repetition."""

    spec: StudySpec

    def curve(self, values: Values, trial: int) -> Floats:
        """Return the losses of all epochs of a trial; asked once for each trial."""
        ...

    def truth(self, values: Values, trial: int) -> float:
        """Return what the trial's configuration is worth without noise."""
        ...


@dataclass
class MadeUp:
    """A made-up world; equal repetitions have the same noise for equal trials."""

    spec: StudySpec
    kind: str
    repetition: int

    def curve(self, values: Values, trial: int) -> Floats:
        """Return the losses of a trial: the world's curve, the seed's offset and the epochs' noise."""
        rng = np.random.default_rng([self.repetition, trial, 7])
        losses, epochs = self._losses(values), self.spec.epochs
        offset = rng.normal(0, 0.007)
        if self.kind == "cliffs":
            cliff = int(epochs * rng.uniform(0.4, 0.85))
            before = np.arange(epochs) < cliff
            height = 0.05 + 0.2 * self._share(values, "train.learning_rate")
            noise = np.where(before, height + rng.normal(0, 0.035, epochs), rng.normal(0, 0.008, epochs))
            return losses + offset + noise
        return losses + offset + rng.normal(0, 0.1 if self.kind == "noisy" else 0.012, epochs)

    def truth(self, values: Values, trial: int) -> float:
        """Return the lowest loss without noise."""
        return float(self._losses(values).min())

    def _share(self, values: Values, path: str) -> float:
        return float(self.spec.open[path].share_of(values[path]))

    def _losses(self, values: Values) -> Floats:
        epochs = np.arange(1, self.spec.epochs + 1) / (self.spec.epochs / 8)
        if self.kind == "nothing":
            return np.asarray(3.0 + 0.8 * (epochs + 0.05) ** -0.9)
        hardness = 1.0 if self.kind == "hard" else 0.5
        rate = self._share(values, "train.learning_rate")
        dropouts = [self._share(values, path) for path in _DROPOUTS]
        dropout = float(np.mean(dropouts))
        decay = self._share(values, "train.weight_decay")
        first = self._share(values, "train.activation_reg")
        second = self._share(values, "train.temporal_activation_reg")
        speed = math.exp(
            (1.3 + 0.5 * hardness) * (rate - 0.6) - (1 + 0.8 * hardness) * (dropout - 0.4) + 0.25 * (decay - 0.5)
        )
        exponent = 0.9 + 0.35 * hardness - 0.9 * max(0.0, 0.4 - rate)
        asymptote = 2.9 + (0.8 + 1.2 * hardness) * max(0.0, rate - 0.68 + 0.13 * hardness) ** 2
        asymptote += (0.5 + 0.9 * hardness) * (dropout - 0.62 - 0.06 * hardness) ** 2
        asymptote += 0.06 * ((first - 0.5) ** 2 + (second - 0.4) ** 2) + 0.08 * (dropouts[0] - dropouts[1] - 0.1) ** 2
        asymptote += 0.01 * (not values["model.tie_weights"])
        late = max(0.0, 0.35 - dropout) * 0.05 * np.maximum(0, epochs * speed - 4)
        return np.asarray(asymptote + 0.8 * (speed * (epochs + 0.05)) ** -exponent + late)


class Table:
    """A recorded table, read once: the curves of each configuration by seed."""

    def __init__(self, path: Path) -> None:
        self.head, rows = read_table(path)
        self.spec = study_of(self.head["table"])
        complete = [row for row in rows if not row["diverged"] and None not in row["valid_loss"]]
        self.points: list[Values] = []
        self.curves: list[list[Floats]] = []
        by_point: dict[int, int] = {}
        for row in sorted(complete, key=lambda row: (row["point"], row["seed"])):
            if row["point"] not in by_point:
                by_point[row["point"]] = len(self.points)
                self.points.append(row["values"])
                self.curves.append([])
            self.curves[by_point[row["point"]]].append(np.array(row["valid_loss"]))
        self.inputs_ND = encode(self.spec, self.points)
        self.seconds = float(np.median([second for row in complete for second in row["seconds"]]))

    def cut(self, epochs: int) -> StudySpec:
        """Return the table's study with trials of fewer epochs."""
        return replace(self.spec, fixed={**self.spec.fixed, "train.epochs": epochs})


@dataclass
class Pool:
    """A table whose nearest configuration that was not used yet answers: real curves, and steps that are not fine."""

    table: Table
    spec: StudySpec
    repetition: int

    def __post_init__(self) -> None:
        self._left = set(range(len(self.table.points)))
        self._of: dict[int, int] = {}
        self._rng = np.random.default_rng([self.repetition, 11])

    def curve(self, values: Values, trial: int) -> Floats:
        """Return a recorded curve, of one of its seeds at random."""
        if not self._left:
            raise LookupError(f"the table has {len(self.table.points)} configurations, and all are used")
        left = np.array(sorted(self._left))
        distances = ((self.table.inputs_ND[left] - encode(self.spec, [values])) ** 2).sum(1)
        chosen = int(left[int(np.argmin(distances))])
        self._left.discard(chosen)
        self._of[trial] = chosen
        curves = self.table.curves[chosen]
        return curves[int(self._rng.integers(len(curves)))][: self.spec.epochs]

    def truth(self, values: Values, trial: int) -> float:
        """Return the mean over the recorded seeds of the lowest loss."""
        curves = self.table.curves[self._of[trial]]
        return float(np.mean([curve[: self.spec.epochs].min() for curve in curves]))


class Model:
    """A table's curves as a function of the configuration: by trees, or by a Gaussian process on their main shapes."""

    def __init__(self, table: Table, kind: str) -> None:
        self.table, self.kind = table, kind
        self.curves_NE = np.array([np.mean(curves, axis=0) for curves in table.curves])
        self.residuals = [
            (curve - np.mean(curves, axis=0)) * math.sqrt(len(curves) / (len(curves) - 1))
            for curves in table.curves
            if len(curves) > 1
            for curve in curves
        ]
        self.predict = self._fit(table.inputs_ND, self.curves_NE, kind)
        if not self.residuals:  # one seed each: what a process, which smooths by a noise of its own, leaves
            smooth = self._fit(table.inputs_ND, self.curves_NE, "process")
            self.residuals = list(self.curves_NE - smooth(table.inputs_ND))

    def _fit(self, inputs_ND: Floats, curves_NE: Floats, kind: str) -> Callable[[Floats], Floats]:
        from sklearn.ensemble import ExtraTreesRegressor
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        if kind == "trees":
            trees = ExtraTreesRegressor(n_estimators=200, min_samples_leaf=2, random_state=0, n_jobs=1)
            trees.fit(inputs_ND, curves_NE)
            return lambda asked_ND: np.asarray(trees.predict(asked_ND))
        middle_E = curves_NE.mean(0)
        _, _, shapes = np.linalg.svd(curves_NE - middle_E, full_matrices=False)
        shapes_SE = shapes[:4]
        weights_NS = (curves_NE - middle_E) @ shapes_SE.T
        scales = np.ones(inputs_ND.shape[1])
        kernel = ConstantKernel() * Matern(scales, (0.05, 50), nu=2.5) + WhiteKernel(1e-2, (1e-5, 1))
        found = []
        for number in range(len(shapes_SE)):
            process = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=2, random_state=0)
            found.append(process.fit(inputs_ND, weights_NS[:, number]))
        return lambda asked_ND: np.asarray(
            np.stack([process.predict(asked_ND) for process in found], axis=1) @ shapes_SE + middle_E
        )

    def check(self) -> tuple[float, float]:
        """Return the rank correlation of what is predicted in ten parts left out: over all, and of the best quarter.

        A model below 0.9 or 0.5 is no judge of a search.
        """
        order = np.random.default_rng(0).permutation(len(self.curves_NE))
        predicted = np.empty(len(order))
        for part in np.array_split(order, 10):
            rest = np.setdiff1d(order, part)
            fitted = self._fit(self.table.inputs_ND[rest], self.curves_NE[rest], self.kind)
            predicted[part] = fitted(self.table.inputs_ND[part]).min(1)
        real = self.curves_NE.min(1)
        best = real <= np.quantile(real, 0.25)
        return spearman(predicted, real), spearman(predicted[best], real[best])


@dataclass
class Surrogate:
    """A model of a table, with the noise of whole recorded curves."""

    model: Model
    spec: StudySpec
    repetition: int

    def curve(self, values: Values, trial: int) -> Floats:
        """Return the predicted curve with the residuals of one recorded training."""
        rng = np.random.default_rng([self.repetition, trial, 13])
        residual = self.model.residuals[int(rng.integers(len(self.model.residuals)))]
        return self._predicted(values) + residual[: self.spec.epochs]

    def truth(self, values: Values, trial: int) -> float:
        """Return the lowest predicted loss."""
        return float(self._predicted(values).min())

    def _predicted(self, values: Values) -> Floats:
        return self.model.predict(encode(self.spec, [values]))[0, : self.spec.epochs]


def prior_of(world: World, name: str) -> Mapping[str, Prior]:
    """Return a prior by its name: `prior` is the study's own, `prior0.25` misses a made-up optimum by so much."""
    if not isinstance(world, MadeUp):
        return world.spec.prior
    missed = float(name.removeprefix("prior") or 0.1)
    found = {}
    for number, (path, value) in enumerate(world.spec.open.items()):
        sign = 1 if number % 2 else -1
        share = _OPTIMUM.get(path, 0.0 if missed < 0.2 else 0.9) + sign * missed * (path in _OPTIMUM)
        found[path] = Prior(at=value.from_share(share), spread=0.18)
    return found


def made_up(kind: str, epochs: int, repetition: int) -> MadeUp:
    """Return a made-up world with trials of so many epochs."""
    spec = load_study(find_study_file("default"))
    spec = replace(spec, fixed={**spec.fixed, "train.epochs": epochs})
    return MadeUp(seeded(spec, repetition), kind, repetition)


def seeded(spec: StudySpec, seed: int) -> StudySpec:
    """Return a study with another seed."""
    return replace(spec, settings=replace(spec.settings, seed=seed))


def table_file(name: str) -> Path:
    """Return where a table lies."""
    return FOLDER / f"{name}.jsonl.gz"
