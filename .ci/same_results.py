"""Compare what short searches give at another commit and here: `python .ci/same_results.py COMMIT [FILE]`.

Three searches run with the code of each: TPE with pruning, a grid with NT-ASGD, and random points of which one is
killed and resumed, with its confirmation. Learning curves must be equal to the last bit. So must the reports' JSON, the
rows of the stores and the tensors of checkpoints and models, in which times, durations, keys, host names and paths are
masked. Both sides run on this machine, one after the other; what COMMIT gave is kept in FILE, where one is named, and
read from there the next time. Tables that one side alone has are named and not compared.
"""

import contextlib
import difflib
import hashlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors

REPOSITORY = Path(__file__).parents[1]

STUDY = """
format = 1
[study]
trials = 6
sampler = "{sampler}"
pruner = "{pruner}"
[data]
corpus = "python-docs"
min_count = 3
[model]
embedding_size = 24
hidden_size = 24
num_layers = 2
tie_weights = {{ choices = [true, false] }}
input_dropout = {{ low = 0.0, high = 0.6, grid = [0.1, 0.3, 0.5] }}
weight_dropout = 0.2
[train]
optimizer = "{optimizer}"
learning_rate = {rate}
activation_reg = 1.0
temporal_activation_reg = 1.0
batch_size = 40
bptt = 35
epochs = 4
"""
STUDIES = {
    "pruned": {
        "sampler": "tpe",
        "pruner": "median",
        "optimizer": "adam",
        "rate": "{ low = 1e-3, high = 2e-2, log = true, grid = [2e-3] }",
    },
    "grid": {"sampler": "grid", "pruner": "none", "optimizer": "nt-asgd", "rate": "10.0"},
    "random": {"sampler": "random", "pruner": "none", "optimizer": "sgd", "rate": "5.0"},
}

_MASKED = re.compile(
    r"seconds|time|date|began|ended|started|complete$|key|host|path|folder|place|process|worker|boot|expires|seen|hours"
    r"|memory|speed|per_second|lmsearch|version|machine|command|file|store|device|digest|signature|log$|peak|cost|^batch$"
)
_TEXTS = (
    (re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "UUID"),
    (re.compile(r"\b[0-9a-f]{12,64}\b"), "HEX"),
    (re.compile(r"/\S+"), "PATH"),
    (re.compile(r"\d{4}-\d\d-\d\d[ T][\d:.]+\S*"), "TIME"),
    (re.compile(r"\b[\d.,]+ ?(s|min|h|ms|seconds?|minutes?|hours?|MiB|GiB|MB|GB)\b"), "AMOUNT"),
    (re.compile(r"[\w.-]+-\d+-[0-9a-f]{8}"), "WORKER"),
)


def main(commit: str, kept: Path | None = None) -> int:
    """Run both sides and print what differs; the exit code says whether anything does."""
    with tempfile.TemporaryDirectory(prefix="same-results-") as scratch:
        if kept is not None and kept.exists():
            before = json.loads(kept.read_text())
        else:
            before = _run_commit(commit, Path(scratch))
            if kept is not None:
                kept.write_text(json.dumps(before))
        after = _run(REPOSITORY, Path(scratch) / "after")
    different = 0
    for name in sorted({*before, *after}):
        if name.startswith("rows/") and not (name in before and name in after):
            print(f"{name}: at {commit if name in before else 'this commit'} alone")
            continue
        if before.get(name) == after.get(name):
            print(f"{name}: same ({len(before[name])} lines)")
            continue
        different += 1
        print(f"{name}: DIFFERENT")
        print("\n".join(list(difflib.unified_diff(before.get(name, []), after.get(name, []), lineterm="", n=0))[:40]))
    return 1 if different else 0


def _run_commit(commit: str, scratch: Path) -> dict[str, list[str]]:
    git = ["git", "-C", str(REPOSITORY), "worktree"]
    subprocess.run([*git, "add", "-q", "--detach", scratch / "code", commit], check=True)
    try:
        return _run(scratch / "code", scratch / "before")
    finally:
        subprocess.run([*git, "remove", "--force", scratch / "code"], check=True)


def _run(code: Path, folder: Path) -> dict[str, list[str]]:
    """Run the searches with the code in one folder; return the lines of all that is compared, by name."""
    folder.mkdir()
    own = {"PYTHONPATH": str(code), "LMSEARCH_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LMSEARCH_")} | own
    lmsearch = [sys.executable, "-m", "lmsearch.cli.main"]

    def call(*words: str) -> str:
        done = subprocess.run(
            [*lmsearch, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"lmsearch {' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    found: dict[str, list[str]] = {}
    for name, values in STUDIES.items():
        (folder / f"{name}.toml").write_text(STUDY.format(**values))
        words = ["run", f"{name}.toml", "--workers", "1", "--quiet"]
        if name == "random":
            found["tensors/checkpoint"] = _kill_at_first_checkpoint([*lmsearch, *words], folder, environment)
        call(*words)
        report = json.loads(call("report", name, "--format", "json", "--output", "-"))
        found[f"report/{name}"] = json.dumps(_masked(report), indent=1).splitlines()
    call("confirm", "random", "--top", "2", "--seeds", "2", "--workers", "1", "--quiet")
    report = json.loads(call("report", "random", "--format", "json", "--output", "-"))
    found["report/confirmed"] = json.dumps(_masked(report), indent=1).splitlines()
    call("train", "runs/pruned/best-config.json", "--epochs", "2", "--name", "again")
    store = sqlite3.connect(folder / "runs/lmsearch.db")
    curves = (
        "SELECT study_name, number, step, intermediate_value FROM trial_intermediate_values"
        " JOIN trials USING (trial_id) JOIN studies USING (study_id) ORDER BY 1, 2, 3"
    )
    found["curves"] = [repr(row) for row in store.execute(curves)]
    tables = [name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    for table in tables:
        rows = store.execute(f"SELECT * FROM {table}")
        columns = [column[0] for column in rows.description]
        found[f"rows/{table}"] = sorted(json.dumps(_row(columns, row)) for row in rows)
    for path in sorted(folder.rglob("*.safetensors")):
        names = [re.sub(r"[0-9a-f]{8,}", "HEX", part) for part in path.relative_to(folder).parts]
        found[f"tensors/{'/'.join(names)}"] = _tensors(load_safetensors(path.read_bytes()))
    return found


def _kill_at_first_checkpoint(command: list[str], folder: Path, environment: dict[str, str]) -> list[str]:
    checkpoints = folder / "runs/random/checkpoints"
    with subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True) as search:
        while not (there := sorted(checkpoints.glob("*-*"))):
            if search.poll() is not None:
                sys.exit("the search to be killed ended before it had a checkpoint")
            time.sleep(0.01)
        content = there[0].read_bytes()
        store = sqlite3.connect(folder / "runs/lmsearch.db")
        workers = [process for (process,) in store.execute("SELECT process FROM lmsearch_ticket WHERE process > 0")]
        store.close()
        for process in (search.pid, *workers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    _, head, state = content.split(b"\n", 2)
    header = json.loads(state[8 : 8 + int.from_bytes(state[:8], "little")])  # as safetensors lays out a file
    progress = json.loads(header["__metadata__"]["progress"])
    return _tensors({"head": json.loads(head), "progress": progress, "state": load_safetensors(state)})


def _row(columns: list[str], row: tuple[Any, ...]) -> dict[str, Any]:
    """Return a row with what differs from run to run masked; JSON in a column is looked into."""
    found = {}
    for column, value in zip(columns, row, strict=True):
        read = value
        if isinstance(value, str) and value[:1] in "{[":
            with contextlib.suppress(ValueError):
                read = json.loads(value)
        if column.endswith("_id") and column not in ("study_id", "trial_id"):
            continue  # counts rows in the order in which they were written, which the killed search does not repeat
        name = found.get("key") or column if column in ("value_json", "value") else column
        found[column] = _masked({str(name): read})[str(name)]
    return found


def _masked(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _masked(inner, str(key)) for key, inner in value.items()}
    if _MASKED.search(name) and name not in ("key", "trials"):
        return "MASKED"
    if isinstance(value, list):
        return [_masked(inner, name) for inner in value]
    if isinstance(value, str):
        for pattern, mask in _TEXTS:
            value = pattern.sub(mask, value)
    return value


def _tensors(value: Any, name: str = "") -> list[str]:
    """List the tensors and numbers of a nested document with digests of their bytes."""
    if isinstance(value, dict):
        return [line for key in sorted(value, key=str) for line in _tensors(value[key], f"{name}.{key}")]
    if isinstance(value, list | tuple):
        return [line for number, inner in enumerate(value) for line in _tensors(inner, f"{name}.{number}")]
    if isinstance(value, torch.Tensor):
        digest = hashlib.sha256(value.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
        return [f"{name} {tuple(value.shape)} {value.dtype} {digest}"]
    return [f"{name} {_masked(value, name.rpartition('.')[2])!r}"]


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) == 3 else None))
