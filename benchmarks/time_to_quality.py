"""How soon a search is as good as what a user would write: plain Optuna over pytorch/examples' model and loop.

    python benchmarks/time_to_quality.py --peer PYTORCH-EXAMPLES [--corpus FOLDER …] [--seeds 1 2 3 4 5]
                                         [--minutes 5] [--workers 2] [--confirm] [--results FILE] [--show]

The peer is the script that a user writes: `optuna.create_study()` with Optuna's defaults (TPE, median pruner, SQLite),
one process a core, each trial the own `main.py` of a clone of pytorch/examples (word_language_model), which prints its
validation perplexity after each epoch. Ours is `lmsearch run` of a study with its defaults. Both have the same text (of
the embedded corpus, or FOLDER with train.txt, valid.txt and test.txt), in which every word of valid and test is in
train, the same sizes of the model, the same epochs, the same number of processes with one thread each, and the same
wall time, imports included. Perplexity is that of ten columns without context in both, over all words.

The best perplexity so far is read from each search's database every half second. Printed are the seconds until each
run has reached what the peer's median run ends with, and the best at the end; with --confirm also the mean of the best
configuration on three fresh seeds. Runs are kept in FILE, one a line, and not repeated. Let nothing else run.
"""

import argparse
import builtins
import contextlib
import json
import math
import multiprocessing
import os
import runpy
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

EPOCHS = 8
SIZE = 96
LAYERS = 1
TRIALS = 400  # of ours, more than five minutes suffice for; the peer has no number of its own
LOOK_SECONDS = 0.5
FRESH_SEEDS = (101, 102, 103)

STUDY = f"""
format = 1
[study]
trials = {TRIALS}
seed = SEED
[data]
corpus = "text"
min_count = 1
[model]
embedding_size = {SIZE}
hidden_size = {SIZE}
num_layers = {LAYERS}
tie_weights = {{ choices = [true, false] }}
input_dropout = {{ low = 0.0, high = 0.6 }}
output_dropout = {{ low = 0.0, high = 0.6 }}
weight_dropout = {{ low = 0.0, high = 0.5 }}
[train]
optimizer = "adam"
learning_rate = {{ low = 2e-3, high = 5e-2, log = true }}
schedule = "cosine"
weight_decay = {{ low = 1e-7, high = 1e-4, log = true }}
activation_reg = {{ low = 0.0, high = 2.0 }}
temporal_activation_reg = {{ low = 0.0, high = 2.0 }}
clip_norm = 0.25
batch_size = 20
bptt = 35
epochs = {EPOCHS}
eval_context = 0
"""
# The shipped default study's.
PRIOR = """
[prior]
"model.tie_weights" = { at = true, spread = 0.25 }
"model.input_dropout" = { at = 0.2, spread = 0.2 }
"model.output_dropout" = { at = 0.2, spread = 0.2 }
"model.weight_dropout" = { at = 0.2, spread = 0.2 }
"train.learning_rate" = { at = 1.5e-2, spread = 0.18 }
"""


def main() -> None:
    """Run what is missing, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="a clone of pytorch/examples")
    parser.add_argument("--corpus", type=Path, nargs="*", default=[], help="texts beside the embedded one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ours", default="lmsearch", help="name of ours in the results, such as gp+thaw")
    parser.add_argument("--run", default="", help="options of `lmsearch run`, such as '--sampler gp --pruner thaw'")
    parser.add_argument("--no-prior", action="store_true", help="ours without a [prior]")
    parser.add_argument("--confirm", action="store_true")
    parser.add_argument("--results", type=Path, default=Path("time-to-quality.jsonl"))
    parser.add_argument("--show", action="store_true", help="print what FILE has, and run nothing")
    asked = parser.parse_args()
    found = [json.loads(line) for line in asked.results.read_text().splitlines()] if asked.results.exists() else []
    known = {(run["text"], run["tool"], run["seed"], run["minutes"]) for run in found}
    for folder in [None, *asked.corpus]:
        name = "python-docs" if folder is None else folder.name
        for seed in asked.seeds:  # the two in turn, so that a machine that drifts slows both
            for tool in ("peer", asked.ours):
                if asked.show or (name, tool, seed, asked.minutes) in known:
                    continue
                with tempfile.TemporaryDirectory() as work:
                    write_text(folder, Path(work) / "text")
                    run = (run_peer if tool == "peer" else run_ours)(Path(work), seed, asked)
                run |= {"text": name, "tool": tool, "seed": seed, "minutes": asked.minutes}
                found.append(run)
                with asked.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(run) + "\n")
                print(f"{name} {tool} seed {seed}: {run['path'][-1][1]:.2f}, {run['trials']} trials", flush=True)
    show([run for run in found if run["minutes"] == asked.minutes])


def write_text(folder: Path | None, to: Path) -> None:
    """Write the text that both read: words that train has fewer than three times are `<unk>` in the embedded one."""
    if folder is not None:
        shutil.copytree(folder, to)
        return
    from lmsearch.config import DataConfig
    from lmsearch.text.corpus import cache_folder, open_corpus

    corpus = open_corpus(DataConfig(corpus="python-docs", min_count=3), cache_folder())
    to.mkdir()
    for name, text in (("train", corpus.train), ("valid", corpus.valid), ("test", corpus.test)):
        assert text is not None
        words = [corpus.vocabulary.words[token] for token in text.tokens.tolist()]
        lines = " ".join(words).split("<eos>")
        (to / f"{name}.txt").write_text("".join(f"{line.strip()}\n" for line in lines[:-1]), encoding="utf-8")


def watched(process: "subprocess.Popen[bytes] | Any", database: Path, seconds: float) -> list[tuple[float, float]]:
    """Return when the best perplexity in a database of Optuna's fell, and to what, until the time is over."""
    started, path = time.monotonic(), [(0.0, math.inf)]
    while (now := time.monotonic() - started) < seconds and process.poll() is None:
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(database, timeout=1)) as store:
            best = store.execute("SELECT min(intermediate_value) FROM trial_intermediate_values").fetchone()[0]
            if best is not None and best < path[-1][1]:
                path.append((round(now, 1), best))
        time.sleep(LOOK_SECONDS)
    return path


def begun(database: Path) -> int:
    """Count the trials with an epoch."""
    with contextlib.closing(sqlite3.connect(database)) as store:
        return int(store.execute("SELECT count(DISTINCT trial_id) FROM trial_intermediate_values").fetchone()[0])


# Ours.


def run_ours(work: Path, seed: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Search with `lmsearch run` for so long."""
    text = STUDY.replace("SEED", str(seed)) + ("" if asked.no_prior else PRIOR)
    (work / "study.toml").write_text(text, encoding="utf-8")
    words = [sys.executable, "-m", "lmsearch.cli.main", "run", "study.toml", "--workers", str(asked.workers), "--quiet"]
    words += ["--device", "cpu", *asked.run.split()]
    with (work / "said").open("wb") as said:
        process = subprocess.Popen(words, cwd=work, stdout=said, stderr=said)
        path = watched(process, work / "runs" / "lmsearch.db", 60 * asked.minutes)
        process.send_signal(signal.SIGINT)
        process.wait()
    assert len(path) > 1, (work / "said").read_text()
    found = {"path": path, "trials": begun(work / "runs" / "lmsearch.db")}
    return found | ({"confirmed": confirm_ours(work, asked)} if asked.confirm else {})


def confirm_ours(work: Path, asked: argparse.Namespace) -> list[float]:
    """Train the best complete trial's configuration with fresh seeds."""
    words = [sys.executable, "-m", "lmsearch.cli.main", "confirm", "study", "--top", "1", "--seeds", "3", "--json"]
    said = subprocess.run(
        [*words, "--workers", str(asked.workers)], cwd=work, capture_output=True, text=True, check=True
    )
    return [float(value) for value in json.loads(said.stdout)["seeds"].values()]


# The peer.


def run_peer(work: Path, seed: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Search with plain Optuna over the peer's script, in one process a core, for so long."""
    import optuna

    url = f"sqlite:///{work / 'optuna.db'}"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    optuna.storages.RDBStorage(url)  # processes that make its tables at once disturb each other
    context = multiprocessing.get_context("spawn")
    group = _Group(
        [context.Process(target=_optimize, args=(url, work, asked.peer, seed, n)) for n in range(asked.workers)]
    )
    path = watched(group, work / "optuna.db", 60 * asked.minutes)
    group.end()
    found = {"path": path, "trials": begun(work / "optuna.db")}
    if not asked.confirm:
        return found
    best = optuna.load_study(study_name="user", storage=url).best_trial.params
    with context.Pool(asked.workers) as pool:
        values = pool.starmap(_train_again, [(work, asked.peer, best, fresh) for fresh in FRESH_SEEDS])
    return found | {"confirmed": values}


class _Group:
    """Processes that start together; as long as one lives, they do."""

    def __init__(self, processes: list[Any]) -> None:
        self._processes = processes
        for process in processes:
            process.start()

    def poll(self) -> int | None:
        return None if any(process.is_alive() for process in self._processes) else 0

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def _optimize(url: str, work: Path, peer: Path, seed: int, number: int) -> None:
    import optuna
    import torch

    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=1000 * seed + number)  # Optuna's default, with a seed
    study = optuna.create_study(study_name="user", storage=url, sampler=sampler, load_if_exists=True)

    def objective(trial: optuna.Trial) -> float:
        values = {
            "dropout": trial.suggest_float("dropout", 0.0, 0.6),
            "lr": trial.suggest_float("lr", 1.0, 40.0, log=True),
            "tied": trial.suggest_categorical("tied", [True, False]),
        }

        def report(epoch: int, perplexity: float) -> None:
            trial.report(perplexity, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        return _train_peers(work, peer, values, 1111, number, report)

    study.optimize(objective, catch=(OverflowError,))  # of main.py, which prints exp of any loss


def _train_again(work: Path, peer: Path, values: dict[str, Any], seed: int) -> float:
    import torch

    torch.set_num_threads(1)
    return _train_peers(work, peer, values, seed, seed, lambda epoch, perplexity: None)


def _train_peers(work: Path, peer: Path, values: dict[str, Any], seed: int, number: int, report: Any) -> float:
    """Run the peer's main.py in this process and return its lowest perplexity; `report` gets that of each epoch."""
    perplexities: list[float] = []

    def hear(*said: object, **_: object) -> None:
        line = " ".join(map(str, said))
        if "| end of epoch" in line:
            perplexities.append(float(line.rpartition("valid ppl")[2].strip(" |")))
            report(len(perplexities), perplexities[-1])

    folder = peer / "word_language_model"
    words = ["main.py", "--data", str(work / "text"), "--model", "LSTM", "--emsize", str(SIZE), "--nhid", str(SIZE)]
    words += ["--nlayers", str(LAYERS), "--epochs", str(EPOCHS), "--lr", str(values["lr"]), "--seed", str(seed)]
    words += ["--dropout", str(values["dropout"]), "--save", str(work / f"model-{number}.pt")]
    words += ["--tied"] if values["tied"] else []
    before, loud = sys.argv, builtins.print
    sys.argv, builtins.print = words, hear
    sys.path.insert(0, str(folder))
    try:
        runpy.run_path(str(folder / "main.py"), run_name="__main__")
    finally:
        sys.argv, builtins.print = before, loud
        sys.path.remove(str(folder))
    return min(perplexities)


def show(runs: list[dict[str, Any]]) -> None:
    """Print, for each text, when each tool had reached what the peer's median run ends with."""
    for text in dict.fromkeys(run["text"] for run in runs):
        peers = [run for run in runs if (run["text"], run["tool"]) == (text, "peer")]
        if not peers:
            continue
        target = statistics.median(run["path"][-1][1] for run in peers)
        print(f"\n{text}: the peer's median run ends with {target:.2f}; {len(peers)} seeds, {os.cpu_count()} cores")
        times: dict[str, dict[int, float]] = {}
        for run in (run for run in runs if run["text"] == text):
            when = next((seconds for seconds, best in run["path"] if best <= target), math.inf)
            times.setdefault(run["tool"], {})[run["seed"]] = when
            more = ""
            if "confirmed" in run:
                more = f", on fresh seeds {statistics.mean(run['confirmed']):.2f}"
            reached = f"after {when:.0f} s" if math.isfinite(when) else "not reached"
            print(f"  {run['tool']:12} seed {run['seed']}: {reached}; best {run['path'][-1][1]:.2f}{more}")
        middle = statistics.median(times["peer"].values())
        for tool in times.keys() - {"peer"}:
            ratio = middle / statistics.median(times[tool].values())
            pairs = sorted(times["peer"][seed] / times[tool][seed] for seed in times[tool].keys() & times["peer"].keys()
                           if math.isfinite(times["peer"][seed]))  # fmt: skip
            spread = f"{pairs[0]:.1f} to {pairs[-1]:.1f}" if pairs else "no pair"
            print(f"  {tool} is as good {ratio:.1f} times as soon (median over median; by seed {spread})")


if __name__ == "__main__":
    main()
