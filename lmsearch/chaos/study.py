"""The small search that `lmsearch chaos` disturbs: its study file and its text."""

import random
from pathlib import Path

_STUDY = """\
# A small search that `lmsearch chaos` disturbs.
format = 1

[study]
trials = {trials}
sampler = "gp"
pruner = "thaw"

[pruner]
n_startup_trials = 3
interval_steps = 1

[data]
corpus = "corpus"

[model]
embedding_size = 16
hidden_size = 16
num_layers = 1
tie_weights = {{ choices = [true, false] }}
output_dropout = {{ low = 0.0, high = 0.5 }}
weight_dropout = {{ low = 0.0, high = 0.5 }}

[train]
optimizer = "adam"
learning_rate = {{ low = 1e-3, high = 1e-2, log = true }}
batch_size = 4
eval_batch_size = 4
bptt = 10
epochs = 6
"""


def write_inputs(folder: Path, trials: int) -> None:
    """Write the study and its text, in which each word hints at the next, so that there is something to learn."""
    (folder / "chaos.toml").write_text(_STUDY.format(trials=trials), encoding="utf-8")
    rng = random.Random(0)
    words = [f"word{number}" for number in range(40)]
    for split, lines in (("train", 900), ("valid", 100), ("test", 100)):
        text, at = [], 0
        for _ in range(lines):
            line = []
            for _ in range(20):
                at = (at + 1) % len(words) if rng.random() < 0.7 else rng.randrange(len(words))
                line.append(words[at])
            text.append(" ".join(line))
        (folder / "corpus").mkdir(exist_ok=True)
        (folder / "corpus" / f"{split}.txt").write_text("\n".join(text) + "\n", encoding="utf-8")
