"""Ours against Salesforce's awd-lstm-lm and pytorch/examples, on a text where all know the same words.

    python benchmarks/parity.py steps  --peer AWD-LSTM-LM --corpus FOLDER    # the same weights, batches and masks
    python benchmarks/parity.py asgd   --peer AWD-LSTM-LM                    # the trigger and the averages of NT-ASGD
    python benchmarks/parity.py curves --corpus FOLDER [--setting A] [--seeds 1 2 3] [--device cuda]
    python benchmarks/parity.py ablation --corpus FOLDER [--device cuda]    # one regulariser away at a time

FOLDER has train.txt, valid.txt and test.txt in which every word of valid and test is in train too; the peers' curves
below were measured on one such text, `wikitext-2-mini-unk` (14,143 words): WikiText-2's test file as train.txt, 30
articles of its validation file as valid.txt, the other 30 as test.txt, words that train lacks replaced by <unk>.
Nothing of a peer's code is here: PATH is a clone of it, whose own modules are imported.
"""

import argparse
import ast
import json
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import lmsearch.lm.layers
from lmsearch.config import DataConfig, RunConfig
from lmsearch.lm.batches import Window, batchify, draw_windows
from lmsearch.lm.device import open_device
from lmsearch.lm.evaluate import evaluate
from lmsearch.lm.events import Epoch
from lmsearch.lm.model import LanguageModel
from lmsearch.lm.optimizers import WeightAverage, should_average
from lmsearch.lm.train import _Run, train
from lmsearch.text.corpus import Corpus, Text, cache_folder, open_corpus
from lmsearch.text.vocabulary import Vocabulary

CPU = torch.device("cpu")

# awd-lstm-lm's flags: --emsize 200 --nhid 400 --nlayers 2 --batch_size 20 --bptt 70 --dropout .4 --dropouth .2
# --dropouti .4 --dropoute .1 --wdrop .3 --alpha 2 --beta 1 --lr 30 --clip .25 --wdecay 1.2e-6 --nonmono 5 --epochs 12
AWD: dict[str, Any] = {
    "model.embedding_size": 200,
    "model.hidden_size": 400,
    "model.num_layers": 2,
    "model.embedding_dropout": 0.1,
    "model.input_dropout": 0.4,
    "model.hidden_dropout": 0.2,
    "model.output_dropout": 0.4,
    "model.weight_dropout": 0.3,
    "train.optimizer": "nt-asgd",
    "train.learning_rate": 30.0,
    "train.weight_decay": 1.2e-6,
    "train.clip_norm": 0.25,
    "train.batch_size": 20,
    "train.bptt": 70,
    "train.variable_bptt": True,
    "train.activation_reg": 2.0,
    "train.temporal_activation_reg": 1.0,
    "train.nonmono": 5,
    "train.epochs": 12,
}
# pytorch/examples' word_language_model: --model LSTM --tied --emsize 200 --nhid 200 --nlayers 2 --lr 20 --clip .25
# --dropout .2 --batch_size 20 --bptt 35 --epochs 12; the learning rate is divided by 4 on a plateau.
EXAMPLES: dict[str, Any] = {
    "model.embedding_size": 200,
    "model.hidden_size": 200,
    "model.num_layers": 2,
    "model.locked_dropout": False,
    "model.input_dropout": 0.2,
    "model.hidden_dropout": 0.2,
    "model.output_dropout": 0.2,
    "train.optimizer": "sgd",
    "train.learning_rate": 20.0,
    "train.clip_norm": 0.25,
    "train.batch_size": 20,
    "train.bptt": 35,
    "train.anneal_factor": 4.0,
    "train.epochs": 12,
}
FIXED: dict[str, Any] = {"data.corpus": "python-docs", "data.shuffle_articles": False}  # the text is given beside
SETTINGS = {"A": AWD, "B": EXAMPLES}
WITHOUT: dict[str, dict[str, Any]] = {
    "all regularisers": {},
    "no weight dropout": {"model.weight_dropout": 0.0},
    "no embedding dropout": {"model.embedding_dropout": 0.0},
    "no AR and TAR": {"train.activation_reg": 0.0, "train.temporal_activation_reg": 0.0},
    "no locked dropout": {"model.input_dropout": 0.0, "model.hidden_dropout": 0.0, "model.output_dropout": 0.0},
    "untied": {"model.tie_weights": False},
}
"""The ablation: setting A, 6 epochs, one seed."""

PEERS = {
    "A": {
        1: [458.9, 314.7, 256.0, 247.9, 212.5, 199.6, 191.8, 216.3, 189.5, 171.4, 170.2, 185.2],
        2: [482.0, 318.7, 331.7, 237.7, 225.3, 201.8, 200.9, 220.7, 174.9, 191.6, 179.3, 174.9],
        3: [470.1, 309.8, 261.3, 234.6, 231.9, 214.4, 210.5, 189.7, 171.7, 192.9, 174.9, 159.5],
    },
    "B": {
        1: [316.7, 287.2, 200.1, 196.0, 192.0, 178.5, 183.7, 157.9, 156.8, 157.1, 154.7, 154.4],
        2: [323.2, 226.0, 225.7, 212.4, 180.1, 190.0, 157.1, 155.9, 156.1, 154.1, 153.8, 154.0],
    },
}
"""Validation perplexity by seed and epoch, as each peer prints it; torch 2.13, one core of a Xeon."""


# The same weights, batches and masks.


def steps(peer: Path, corpus: Corpus, count: int) -> None:
    """Train awd-lstm-lm's model and ours side by side; print the largest difference of the losses."""
    sys.path.insert(0, str(peer))
    import model as theirs  # type: ignore[import-not-found]
    from splitcross import SplitCrossEntropyLoss  # type: ignore[import-not-found]

    torch.set_num_threads(1)
    # In float32 the two drift apart as any two runs do whose sums are rounded otherwise: at this learning rate a
    # difference grows tenfold every few steps.
    torch.set_default_dtype(torch.float64)
    # Their embedding reads `padding_idx = -1`, so the last word's row never learns: an unused word takes that place.
    words = Vocabulary((*corpus.vocabulary.words, "<unused>"))
    corpus = Corpus(corpus.description, corpus.fingerprint, words, corpus.train, corpus.valid, corpus.test)
    config = RunConfig.from_paths({"data.corpus": "python-docs", **AWD, "train.seed": 1})
    ours = _Run(config, corpus, CPU)
    with _quiet():
        net = theirs.RNNModel("LSTM", len(words), 200, 400, 2, 0.4, 0.2, 0.4, 0.1, 0.3, tie_weights=True)
    _give_weights(ours.model, net)
    criterion = SplitCrossEntropyLoss(200, splits=[], verbose=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=30.0, weight_decay=1.2e-6)
    tokens_TB = batchify(ours._train_tokens, 20).to(ours.device)
    windows = draw_windows(len(tokens_TB), 70, True, np.random.default_rng(1))[:count]
    hidden = net.init_hidden(20)
    worst, ours_mask = 0.0, lmsearch.lm.layers.dropout_mask
    ours.model.train()
    net.train()
    print("step  rows  awd-lstm-lm      ours  difference")
    for number, window in enumerate(windows, 1):
        masks, theirs_loss, hidden = _their_step(net, criterion, optimizer, tokens_TB, window, hidden)
        before = float(ours.train_total)
        lmsearch.lm.layers.dropout_mask = _replay(masks)
        try:
            ours._step(tokens_TB, window)
        finally:
            lmsearch.lm.layers.dropout_mask = ours_mask
        assert not masks, "a mask was left over"
        mine = (float(ours.train_total) - before) / window.length
        worst = max(worst, abs(mine - theirs_loss))
        if number in (1, 2, 5, 10, 20, 30, 40, count):
            print(f"{number:4}  {window.length:4}  {theirs_loss:11.6f}  {mine:8.6f}  {abs(mine - theirs_loss):.1e}")
    print(f"largest difference over {len(windows)} steps: {worst:.1e} nats")


def _their_step(
    net: Any, criterion: Any, optimizer: Any, tokens_TB: Tensor, window: Window, hidden: Any
) -> tuple[list[Tensor], float, Any]:
    """Take one step of awd-lstm-lm's: its masks, its loss without AR and TAR, its next states."""
    rows = slice(window.start, window.start + window.length)
    targets = tokens_TB[window.start + 1 : window.start + 1 + window.length].reshape(-1)
    hidden = [tuple(part.detach() for part in pair) for pair in hidden]
    with _recorded() as masks:
        output, hidden, raw, dropped = net(tokens_TB[rows], hidden, return_h=True)
    logits = torch.nn.functional.linear(output, net.decoder.weight, net.decoder.bias)
    loss = torch.nn.functional.cross_entropy(logits, targets)
    with torch.no_grad():  # their own sum, which is taken in float32 and would bring its rounding into the gradient
        own = float(criterion(net.decoder.weight, net.decoder.bias, output, targets))
    assert abs(own - float(loss.detach())) < 1e-5
    objective = loss + 2.0 * dropped[-1].pow(2).mean() + (raw[-1][1:] - raw[-1][:-1]).pow(2).mean()
    optimizer.zero_grad()
    objective.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 0.25)
    optimizer.param_groups[0]["lr"] = 30.0 * window.drawn / 70
    optimizer.step()
    return masks, float(loss.detach()), hidden


def _give_weights(ours: LanguageModel, net: Any) -> None:
    named = dict(net.named_parameters())
    with torch.no_grad():
        for name, tensor in ours.weights().items():
            theirs = name.replace("embedding.", "encoder.")
            theirs = re.sub(r"^layers\.(\d+)\.", r"rnns.\1.module.", theirs).replace("weight_hh_l0", "weight_hh_l0_raw")
            named[theirs].copy_(tensor)


class _recorded:
    """Keep every mask that the peer draws, in order: those of its own `bernoulli_`, and of dropout on its weights."""

    def __enter__(self) -> list[Tensor]:
        self.masks: list[Tensor] = []
        self.bernoulli, self.dropout = torch.Tensor.bernoulli_, torch.nn.functional.dropout

        def bernoulli_(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            drawn = self.bernoulli(tensor, *args, **kwargs)
            self.masks.append(drawn.clone())
            return drawn

        def dropout(tensor: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
            return tensor * torch.empty_like(tensor).bernoulli_(1 - p) / (1 - p)

        torch.Tensor.bernoulli_ = bernoulli_  # type: ignore[method-assign, assignment]
        torch.nn.functional.dropout = dropout
        return self.masks

    def __exit__(self, *exception: object) -> None:
        torch.Tensor.bernoulli_ = self.bernoulli  # type: ignore[method-assign]
        torch.nn.functional.dropout = self.dropout


class _quiet:
    def __enter__(self) -> None:
        self.out, sys.stdout = sys.stdout, sys.stderr

    def __exit__(self, *exception: object) -> None:
        sys.stdout = self.out


def _replay(masks: list[Tensor]) -> Callable[..., Tensor]:
    def mask(shape: tuple[int, ...], rate: float, like: Tensor, generator: object) -> Tensor:
        drawn = masks.pop(0)
        assert tuple(drawn.shape) == tuple(shape), f"a mask of {tuple(drawn.shape)}, and {tuple(shape)} was wanted"
        return drawn / (1 - rate)

    return mask


# NT-ASGD.


def asgd(peer: Path) -> None:
    """Ask their own condition and ours over random validation losses, and compare averages with a plain loop."""
    source = (peer / "main.py").read_text()
    (found,) = re.findall(r"and (\(len\(best_val_loss\)>args\.nonmono and .*\)):$", source, re.MULTILINE)
    condition = compile(ast.parse(found, mode="eval"), "main.py", "eval")
    rng, same, fired = random.Random(0), 0, 0
    for _ in range(1_000):
        nonmono, losses = rng.randrange(1, 8), []
        level = 6.0
        for _epoch in range(40):
            level += rng.gauss(-0.05, 0.1)
            names = {"best_val_loss": losses, "val_loss": level, "args": SimpleNamespace(nonmono=nonmono)}
            theirs, ours = bool(eval(condition, names)), should_average(losses, level, nonmono)
            same += theirs == ours
            fired += theirs
            losses.append(level)
    print(f"the trigger: {same:,} of 40,000 decisions are the same, {fired:,} of them to switch")

    torch.manual_seed(0)
    config = RunConfig.from_paths({"data.corpus": "python-docs", "model.embedding_size": 8, "model.hidden_size": 8})
    model = LanguageModel(config.model, 30)
    average = WeightAverage(model)
    sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in model.weights().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(200):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        average.update(model)
        for name, tensor in model.weights().items():
            sums[name] += tensor.double()
    worst = max(float((tensor - sums[name] / 200).abs().max()) for name, tensor in average.model.weights().items())
    scale = max(float(total.abs().max()) / 200 for total in sums.values())
    print(f"the averages: at most {worst:.1e} from a plain loop's, where the largest weight is {scale:.2f}")


# Curves.


def curves(corpus: Corpus, setting: str, seeds: list[int], output: Path | None, device: torch.device) -> None:
    """Train ours in a peer's setting, seed after seed; compare the means of the best so far."""
    bests = []
    for seed in seeds:
        began = time.perf_counter()
        changes = SETTINGS[setting] | {"train.seed": seed}
        config = RunConfig.from_paths(FIXED | changes)
        curve, test = _trained(config, corpus, device)
        bests.append(min(curve))
        print(f"seed {seed}: {' '.join(f'{value:.1f}' for value in curve)}  best {min(curve):.1f}  test {test:.1f}  "
              f"({(time.perf_counter() - began) / len(curve):.0f} s an epoch)", flush=True)  # fmt: skip
        if output is not None:
            with output.open("a") as file:
                file.write(json.dumps({"setting": setting, "seed": seed, "curve": curve, "test": test}) + "\n")
    peers = [min(curve) for curve in PEERS[setting].values()]
    ours, theirs = statistics.mean(bests), statistics.mean(peers)
    print(
        f"setting {setting}: mean of the best {ours:.1f} over {len(bests)} seeds, the peer's {theirs:.1f} over "
        f"{len(peers)}: {100 * (ours / theirs - 1):+.1f} %"
    )


def ablation(corpus: Corpus, names: list[str], device: torch.device) -> None:
    """Take one regulariser away at a time."""
    for name in names:
        config = RunConfig.from_paths(FIXED | AWD | {"train.epochs": 6} | WITHOUT[name])
        curve, _ = _trained(config, corpus, device)
        print(f"{name:22} {' '.join(f'{value:.1f}' for value in curve)}  best {min(curve):.1f}", flush=True)


def _trained(config: RunConfig, corpus: Corpus, device: torch.device) -> tuple[list[float], float]:
    curve: list[float] = []
    weights: dict[str, Tensor] = {}
    for epoch in _epochs(config, corpus, device):
        if not curve or epoch.valid_perplexity < min(curve):
            weights = epoch.weights()
        curve.append(epoch.valid_perplexity)
    model = LanguageModel(config.model, len(corpus.vocabulary)).to(device)
    model.set_weights(weights)
    assert corpus.test is not None
    tokens = torch.from_numpy(np.asarray(corpus.test.tokens, dtype=np.int64)).to(device)
    return curve, float(np.exp(evaluate(model, tokens, 1, config.train.bptt).loss))


def _epochs(config: RunConfig, corpus: Corpus, device: torch.device) -> Iterator[Epoch]:
    return (event for event in train(config, corpus, device, None) if isinstance(event, Epoch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["steps", "asgd", "curves", "ablation"])
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--setting", choices=list(SETTINGS), default="A")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--without", nargs="+", choices=list(WITHOUT), default=list(WITHOUT))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--device", default="cpu", help="of curves and ablation: cpu or cuda")
    args = parser.parse_args()
    if args.what == "asgd":
        asgd(args.peer)
        return
    corpus = open_corpus(DataConfig(corpus=str(args.corpus.resolve())), cache_folder())
    assert isinstance(corpus.train, Text)
    match args.what:
        case "steps":
            steps(args.peer, corpus, args.count)
        case "curves":
            curves(corpus, args.setting, args.seeds, args.output, open_device(args.device))
        case "ablation":
            ablation(corpus, args.without, open_device(args.device))


if __name__ == "__main__":
    main()
