"""How many tokens a second are trained, ours against awd-lstm-lm's own model, criterion and step, in one run.

    python benchmarks/training_speed.py --peer AWD-LSTM-LM [--device cuda] [--size paper] [--rounds 5]

Both train the same AWD-LSTM in the same setting (the paper's of WikiText-2, or a small one) on random tokens; rounds
of a number of steps alternate, so that a machine that drifts slows both, and the ratio of medians is printed. `--peer`
names a clone, whose own modules are imported. On a GPU theirs is timed with PyTorch's default precision, and with the
TF32 products that ours always uses there.
"""

import argparse
import contextlib
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmsearch.config import RunConfig
from lmsearch.lm.batches import Window, batchify, draw_windows
from lmsearch.lm.train import _Run
from lmsearch.text.corpus import Corpus, Text
from lmsearch.text.vocabulary import Vocabulary

SIZES: dict[str, dict[str, Any]] = {
    "paper": {"words": 33_278, "embedding": 400, "hidden": 1150, "layers": 3, "batch": 80},
    "small": {"words": 14_143, "embedding": 200, "hidden": 400, "layers": 2, "batch": 20},
}
BPTT = 70


def our_step(
    size: dict[str, Any], tokens: np.ndarray[Any, np.dtype[np.int32]], device: torch.device
) -> Callable[[Tensor, Window], None]:
    """Give our own training step."""
    config = RunConfig.from_paths(
        {
            "data.corpus": "python-docs",
            "data.shuffle_articles": False,
            "model.embedding_size": size["embedding"],
            "model.hidden_size": size["hidden"],
            "model.num_layers": size["layers"],
            "model.embedding_dropout": 0.1,
            "model.input_dropout": 0.65,
            "model.hidden_dropout": 0.2,
            "model.output_dropout": 0.4,
            "model.weight_dropout": 0.5,
            "train.optimizer": "nt-asgd",
            "train.learning_rate": 10.0,
            "train.weight_decay": 1.2e-6,
            "train.clip_norm": 0.25,
            "train.batch_size": size["batch"],
            "train.bptt": BPTT,
            "train.variable_bptt": True,
            "train.activation_reg": 2.0,
            "train.temporal_activation_reg": 1.0,
        }
    )
    words = Vocabulary(("<unk>", "<eos>", *(f"w{n}" for n in range(size["words"] - 2))))
    text = Text(tokens, np.zeros(1, dtype=np.int64))
    run = _Run(config, Corpus("random", "0", words, text, Text(tokens[:2_000], text.article_starts), None), device)
    run.model.train()
    return run._step


def their_step(peer: Path, size: dict[str, Any], device: torch.device) -> Callable[[Tensor, Window], None]:
    """Give a step as their `main.py` makes it, of their model and criterion."""
    sys.path.insert(0, str(peer))
    import model as theirs  # type: ignore[import-not-found]
    from splitcross import SplitCrossEntropyLoss  # type: ignore[import-not-found]

    with contextlib.redirect_stdout(sys.stderr):
        rates = {"dropout": 0.4, "dropouth": 0.2, "dropouti": 0.65, "dropoute": 0.1, "wdrop": 0.5}
        net = theirs.RNNModel(
            "LSTM", size["words"], size["embedding"], size["hidden"], size["layers"], **rates, tie_weights=True
        ).to(device)
    criterion = SplitCrossEntropyLoss(size["embedding"], splits=[], verbose=False).to(device)
    parameters = list(net.parameters()) + list(criterion.parameters())
    optimizer = torch.optim.SGD(parameters, lr=10.0, weight_decay=1.2e-6)
    net.train()
    hidden = net.init_hidden(size["batch"])

    def step(tokens_TB: Tensor, window: Window) -> None:
        nonlocal hidden
        rows = slice(window.start, window.start + window.length)
        targets = tokens_TB[window.start + 1 : window.start + 1 + window.length].reshape(-1)
        optimizer.param_groups[0]["lr"] = 10.0 * window.drawn / BPTT
        hidden = [tuple(part.detach() for part in pair) for pair in hidden]
        optimizer.zero_grad()
        output, hidden, raw, dropped = net(tokens_TB[rows], hidden, return_h=True)
        loss = criterion(net.decoder.weight, net.decoder.bias, output, targets)
        objective = loss + 2.0 * dropped[-1].pow(2).mean() + (raw[-1][1:] - raw[-1][:-1]).pow(2).mean()
        objective.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.25)
        optimizer.step()

    return step


def rate(step: Callable[[Tensor, Window], None], tokens_TB: Tensor, windows: list[Window]) -> float:
    """Train the windows; give tokens per second."""
    began = time.perf_counter()
    for window in windows:
        step(tokens_TB, window)
    if tokens_TB.is_cuda:
        torch.cuda.synchronize()
    return sum(window.length for window in windows) * tokens_TB.shape[1] / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="of each round")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="RNN module weights")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device, size = torch.device(args.device), SIZES[args.size]
    tokens = np.random.default_rng(0).integers(0, size["words"], size["batch"] * BPTT * (args.steps + 4), np.int32)
    tokens_TB = batchify(torch.from_numpy(tokens.astype(np.int64)).to(device), size["batch"])
    windows = draw_windows(len(tokens_TB), BPTT, True, np.random.default_rng(1))[: args.steps]
    theirs, ours = their_step(args.peer, size, device), our_step(size, tokens, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "one thread of the CPU"
    print(f"{name}, torch {torch.__version__}, {args.size}: {size}")
    steps = {"awd-lstm-lm": (theirs, "highest"), "awd-lstm-lm, TF32": (theirs, "high"), "lmsearch": (ours, "high")}
    if device.type != "cuda":
        del steps["awd-lstm-lm, TF32"]
    found: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(args.rounds + 1):
        for name, (step, precision) in steps.items():
            torch.set_float32_matmul_precision(precision)
            tokens_a_second = rate(step, tokens_TB, windows)
            if number > 0:  # the first round warms up
                found[name].append(tokens_a_second)
    middle = {name: statistics.median(rates) for name, rates in found.items()}
    for name, median in middle.items():
        spread = f"{min(found[name]):,.0f} to {max(found[name]):,.0f}"
        print(f"{name:18} {median:10,.0f} tokens/s ({spread}), ours is {middle['lmsearch'] / median:.2f} times as fast")


if __name__ == "__main__":
    main()
