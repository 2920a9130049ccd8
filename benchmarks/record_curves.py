"""Learning curves of many configurations of one study, as a table that benchmarks/search.py plays searches against.

    python benchmarks/record_curves.py a [--processes 2] [--most N]
    python benchmarks/record_curves.py b --corpus FOLDER [--processes 2] [--most N]

Trains what `lmsearch train` would train: points of benchmarks/curves/TABLE.toml, each to its last epoch. The first
points are of the scrambled Sobol sequence (the sampler `qmc`); the others are near the best so far, in tens: six
proposals of the sampler `tpe`, four of the ten best with each value moved a little. Then the best 35 and 25 others
are trained with two more seeds. Every finished training is kept at once; started again, it continues. Times are CPU
seconds, so that other work on the machine changes them little. docs: benchmarks/curves/README.md.
"""

import argparse
import gzip
import json
import math
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch

from lmsearch.lm.evaluate import evaluate
from lmsearch.lm.events import Epoch
from lmsearch.lm.model import LanguageModel
from lmsearch.lm.train import train
from lmsearch.losses import perplexity
from lmsearch.search.outcome import diverged
from lmsearch.search.sobol import sobol_point
from lmsearch.search.strategies import make_sampler, suggest
from lmsearch.space import Choice
from lmsearch.store.distributions import distribution
from lmsearch.study.reading import load_study
from lmsearch.study.spec import StudySpec
from lmsearch.text.corpus import Corpus, cache_folder, open_corpus
from lmsearch.version import __version__

FOLDER = Path(__file__).parent / "curves"
PART = 0.25  # of the validation text, whose loss is recorded beside the whole one's
BATCH = 10  # points near the best that are proposed from the same trainings
MOVED = 0.08  # standard deviation of what a good point is moved by, in shares of a range
SEED = 20261129

Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """How many points a table has, and how many are trained with more seeds."""

    sobol: int
    near: int
    best_seeds: int
    other_seeds: int


TABLES = {"a": Table(110, 90, 35, 25), "b": Table(44, 36, 0, 0)}


def main() -> None:
    """Train what is missing in a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--corpus", help="of table b: a folder with train.txt and valid.txt")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--most", type=int, default=1_000_000, help="stop after this many trainings")
    asked = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    spec = study_of(asked.table, asked.corpus)
    corpus = open_corpus(spec.data, cache_folder())
    path = FOLDER / f"{asked.table}.jsonl.gz"
    head, rows = read_table(path) if path.exists() else (head_of(asked.table, spec, corpus), [])
    if head["corpus"]["fingerprint"] != corpus.fingerprint:
        parser.error(f"{path} is of another text: {head['corpus']}, here is {corpus.fingerprint}")
    with multiprocessing.get_context("spawn").Pool(asked.processes, _open, (spec,)) as pool:
        for task in rounds(TABLES[asked.table], spec, rows):
            for row in pool.imap_unordered(_train, task[: asked.most]):
                rows.append(row)
                write_table(path, head, rows)
                best = min(row["valid_loss"])
                print(f"{len(rows)}: point {row['point']} seed {row['seed']}: {perplexity(best):.2f}", flush=True)
                asked.most -= 1
            if asked.most <= 0:
                return


def study_of(table: str, corpus: str | None = None) -> StudySpec:
    """Read a table's study file, with its corpus from elsewhere where one is given."""
    spec = load_study(FOLDER / f"{table}.toml")
    if corpus is None:
        return spec
    return replace(spec, fixed={**spec.fixed, "data.corpus": str(Path(corpus).resolve())})


def head_of(table: str, spec: StudySpec, corpus: Corpus) -> Row:
    """Return what holds for all rows of a table."""
    return {
        "table": table,
        "study": (FOLDER / f"{table}.toml").read_text(encoding="utf-8"),
        "corpus": {
            "description": Path(corpus.description).name,
            "fingerprint": corpus.fingerprint,
            "vocabulary": len(corpus.vocabulary),
            "train_tokens": len(corpus.train.tokens),
            "valid_tokens": len(corpus.valid.tokens),
        },
        "part": PART,
        "epochs": spec.epochs,
        "versions": {
            "lmsearch": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "optuna": optuna.__version__,
            "python": f"{platform.python_implementation()} {platform.python_version()}",
        },
        "cpu": _cpu(),
    }


def read_table(path: Path) -> tuple[Row, list[Row]]:
    """Read a table: what holds for all rows, and the rows."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        head, *rows = map(json.loads, file)
    return head, rows


def write_table(path: Path, head: Row, rows: list[Row]) -> None:
    """Replace a table's file, so that it is whole at any moment."""
    ordered = sorted(rows, key=lambda row: (row["point"], row["seed"]))
    text = "".join(json.dumps(row) + "\n" for row in [head, *ordered])
    draft = path.with_suffix(".draft")
    draft.write_bytes(gzip.compress(text.encode(), mtime=0))
    draft.replace(path)


Task = tuple[int, str, int, dict[str, Any]]  # point, origin, seed, values by dotted path


def rounds(table: Table, spec: StudySpec, rows: list[Row]) -> Iterator[list[Task]]:
    """Yield what is still to be trained, part after part: a later part depends on the results of the earlier ones."""

    def missing(tasks: list[Task]) -> list[Task]:
        known = {(row["point"], row["seed"]) for row in rows}
        return [task for task in tasks if (task[0], task[2]) not in known]

    yield missing([(point, "sobol", 1, sobol_point(spec, point)) for point in range(table.sobol)])
    for first in range(table.sobol, table.sobol + table.near, BATCH):
        yield missing(near_the_best(spec, rows, first, min(BATCH, table.sobol + table.near - first)))
    ranked = sorted((row for row in rows if row["seed"] == 1), key=lambda row: min(row["valid_loss"]))
    chosen = ranked[: table.best_seeds]
    others = ranked[table.best_seeds :]
    if table.other_seeds:
        chosen += [others[round(index)] for index in np.linspace(0, len(others) - 1, table.other_seeds)]
    yield missing([(row["point"], row["origin"], seed, row["values"]) for seed in (2, 3) for row in chosen])


def near_the_best(spec: StudySpec, rows: list[Row], first: int, count: int) -> list[Task]:
    """Propose points from all trainings of earlier ones: six of ten by TPE, the others near the ten best."""
    earlier = sorted((row for row in rows if row["point"] < first and row["seed"] == 1), key=lambda row: row["point"])
    study = optuna.create_study()
    space = {path: distribution(value) for path, value in spec.open.items()}
    for row in earlier:
        value = perplexity(min(row["valid_loss"]))
        study.add_trial(optuna.create_trial(params=row["values"], distributions=space, value=value))
    best = sorted(earlier, key=lambda row: min(row["valid_loss"]))[:10]
    tasks: list[Task] = []
    for point in range(first, first + count):
        if (point - first) % 5 < 3:
            study.sampler = make_sampler(spec, "tpe", point)
            tasks.append((point, "tpe", 1, suggest(study.ask(), spec)))
        else:
            rng = np.random.default_rng([SEED, point])
            tasks.append((point, "near", 1, moved(spec, best[int(rng.integers(len(best)))]["values"], rng)))
    return tasks


def moved(spec: StudySpec, values: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Return a point near another one; one choice in ten is another one."""
    found = {}
    for path, value in spec.open.items():
        if isinstance(value, Choice):
            found[path] = value.from_share(float(rng.random())) if rng.random() < 0.2 else values[path]
        else:
            share = value.share_of(values[path]) + rng.normal(0, MOVED)
            found[path] = value.from_share(min(max(share, 0.0), 1.0))
    return found


_opened: list[tuple[StudySpec, Corpus]] = []


def _open(spec: StudySpec) -> None:
    os.nice(19)
    torch.set_num_threads(1)
    _opened.append((spec, open_corpus(spec.data, cache_folder())))


def _train(task: Task) -> Row:
    """Train one point to its end, as a trial without a pruner would be."""
    spec, corpus = _opened[0]
    point, origin, seed, values = task
    size = len(corpus.vocabulary)
    config = spec.close(values, size)
    config = replace(config, train=replace(config.train, seed=seed))
    part = corpus.valid.tokens[: math.ceil(PART * (len(corpus.valid.tokens) - 1)) + 1]
    tokens_N = torch.from_numpy(np.array(part, dtype=np.int64))
    row: Row = {"point": point, "origin": origin, "seed": seed, "values": values}
    row["parameters"] = config.model.count_parameters(size)
    columns: dict[str, Callable[[Epoch], float]] = {
        "train_loss": lambda event: event.train_loss,
        "valid_loss": lambda event: event.valid_loss,
        "learning_rate": lambda event: event.learning_rate,
        "tokens": lambda event: event.tokens,
    }
    row |= {name: [] for name in (*columns, "part_loss", "seconds")}
    started = time.process_time()
    for event in train(config, corpus, torch.device("cpu")):
        if not isinstance(event, Epoch):
            continue
        row["seconds"].append(round(time.process_time() - started, 3))
        for name, column in columns.items():
            row[name].append(_rounded(column(event)))
        model = LanguageModel(config.model, size)
        model.set_weights(event.weights())
        settings = config.train
        loss = evaluate(model, tokens_N, settings.eval_batch_size, settings.bptt, settings.eval_context).loss
        row["part_loss"].append(_rounded(loss))
        if diverged(event.valid_loss, size):
            break
        started = time.process_time()
    row["diverged"] = diverged(row["valid_loss"][-1], size)
    return row


def _rounded(value: float) -> float | None:
    """Return a number with seven digits, None where it is not finite."""
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
