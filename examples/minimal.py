"""The idea of lmsearch in one file, over Optuna alone: a search whose trials survive the death of their worker.

Run it in two terminals at once, kill one with `kill -9`, and start it again:

    python examples/minimal.py --storage sqlite:///minimal.db --trials 12

What lmsearch adds: a fence, so that of two workers that take over one trial only one can write; leases by the clock of
the database; outages that are waited for; the model. docs/architecture.md names the modules.
"""

import argparse
import math
import pydoc_data.topics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import optuna
from optuna.trial import Trial, TrialState

EPOCHS = 6
Array = npt.NDArray[np.float64]


# A model: P(word | word before), by one matrix of logits, on the text that every Python carries.


def read_pairs(most_words: int = 150) -> tuple[npt.NDArray[np.int64], int]:
    """Return pairs of following words of the text as numbers (N × 2), and the number of words."""
    words = " ".join(pydoc_data.topics.topics.values()).split()
    counts = dict.fromkeys(words, 0)
    for word in words:
        counts[word] += 1
    known = sorted(counts, key=lambda word: (-counts[word], word))[:most_words]
    index = {word: number for number, word in enumerate(known)}
    tokens = np.array([index.get(word, most_words) for word in words])
    return np.stack([tokens[:-1], tokens[1:]], axis=1), most_words + 1


def loss_and_gradient(logits: Array, pairs: npt.NDArray[np.int64]) -> tuple[float, Array]:
    """Return the mean loss (nats per word) of pairs and its gradient."""
    chosen = logits[pairs[:, 0]]
    log_p = chosen - np.log(np.exp(chosen).sum(axis=1, keepdims=True))
    gradient_of_chosen = np.exp(log_p)
    gradient_of_chosen[np.arange(len(pairs)), pairs[:, 1]] -= 1
    gradient = np.zeros_like(logits)
    np.add.at(gradient, pairs[:, 0], gradient_of_chosen / len(pairs))
    return float(-log_p[np.arange(len(pairs)), pairs[:, 1]].mean()), gradient


def train(rate: float, decay: float, checkpoint: Path) -> Iterator[tuple[int, float]]:
    """Yield (epoch, validation loss) from where the checkpoint stands; it is written before the epoch is reported."""
    pairs, words = read_pairs()
    split = len(pairs) * 9 // 10
    logits, done = np.zeros((words, words)), 0
    if checkpoint.exists():
        saved = np.load(checkpoint)
        logits, done = saved["logits"], int(saved["epoch"])
    for epoch in range(done + 1, EPOCHS + 1):
        for batch in np.array_split(np.random.default_rng(epoch).permutation(pairs[:split]), 40):
            _, gradient = loss_and_gradient(logits, batch)
            logits -= rate * (gradient + decay * logits)
        draft = checkpoint.with_suffix(".draft.npz")
        np.savez(draft, logits=logits, epoch=epoch)
        draft.rename(checkpoint)  # a crash leaves the old file or the new one
        yield epoch, loss_and_gradient(logits, pairs[split:])[0]


# A worker: takes a trial, trains it, reports each epoch, stops what the pruner stops.


def next_trial(study: optuna.Study, budget: int, lease_seconds: float) -> Trial | None:
    """Take over a trial without a recent heartbeat, or start one within the budget; None where there is neither."""
    trials = study.get_trials(deepcopy=False)
    for trial in trials:
        silent_seconds = time.time() - trial.user_attrs.get("heartbeat", 0.0)
        if trial.state == TrialState.RUNNING and silent_seconds > lease_seconds:
            print(f"trial {trial.number} is resumed")
            return Trial(study, trial._trial_id)
    return study.ask() if len(trials) < budget else None


def run(study: optuna.Study, trial: Trial, folder: Path) -> None:
    """Run one trial to its end."""
    trial.set_user_attr("heartbeat", time.time())
    rate = trial.suggest_float("rate", 0.1, 100.0, log=True)
    decay = trial.suggest_float("decay", 1e-8, 1e-2, log=True)
    checkpoint = folder / f"trial-{trial.number}.npz"
    value = math.inf
    for epoch, loss in train(rate, decay, checkpoint):
        trial.set_user_attr("heartbeat", time.time())
        value = math.exp(loss)
        trial.report(value, epoch)
        print(f"trial {trial.number}: epoch {epoch}, perplexity {value:.2f}")
        if trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return
    study.tell(trial, value)


def main() -> None:
    """Work until the budget is used up; then print the best trial."""
    options = argparse.ArgumentParser(description="Search for a bigram model; start it as often as you like.")
    options.add_argument("--storage", default="sqlite:///minimal.db")
    options.add_argument("--trials", type=int, default=12)
    options.add_argument("--lease-seconds", type=float, default=10.0, help="Without a heartbeat a trial is resumed.")
    options.add_argument("--folder", type=Path, default=Path("minimal-checkpoints"))
    args = options.parse_args()
    args.folder.mkdir(exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="minimal", storage=args.storage, load_if_exists=True,
        sampler=optuna.samplers.TPESampler(n_startup_trials=4), pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
    )  # fmt: skip
    while True:
        trial = next_trial(study, args.trials, args.lease_seconds)
        if trial is not None:
            run(study, trial, args.folder)
        elif any(one.state == TrialState.RUNNING for one in study.get_trials(deepcopy=False)):
            time.sleep(0.5)  # somebody else runs it, or its lease is about to end
        else:
            break
    best = study.best_trial
    print(f"best: trial {best.number}, perplexity {best.value:.2f}, {best.params}")


if __name__ == "__main__":
    main()
