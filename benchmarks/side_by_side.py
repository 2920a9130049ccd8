"""Whether workers slow each other: two trainings at once against two processes of plain products, in one run.

    python benchmarks/side_by_side.py [--processes 2] [--rounds 5] [--seconds 6] [--words 14143]

Each process has one thread. In turn, one process and then several at once run (a) training steps of a small tied model
(embedding and hidden 200, two layers, batch 20, bptt 35; the step of `lmsearch train`), and (b) the matrix products of
such a step alone, into buffers that are there already. What several processes reach together, as a share of as many
times what one reaches alone, is printed for both, and their ratio: what is lost to us beyond what any program with
these products loses on this host, where processes share caches, memory and perhaps a core's hyper-threads. Medians over
rounds. Let nothing else run.
"""

import argparse
import multiprocessing
import statistics
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

SIZE, LAYERS, BATCH, BPTT = 200, 2, 20, 35


def training(words: int) -> Any:
    """Return a function that trains one step."""
    import numpy as np
    import torch

    from lmsearch.config import RunConfig
    from lmsearch.lm.batches import Window, batchify
    from lmsearch.lm.train import _Run
    from lmsearch.text.corpus import Corpus, Text
    from lmsearch.text.vocabulary import Vocabulary

    rng = np.random.default_rng(0)
    text = Text(rng.integers(0, words, 40 * BATCH * BPTT).astype(np.int32), np.zeros(1, dtype=np.int64))
    vocabulary = Vocabulary(("<unk>", "<eos>", *(f"w{number}" for number in range(words - 2))))
    config = RunConfig.from_paths(
        {
            "data.corpus": "python-docs",
            "data.shuffle_articles": False,
            "model.embedding_size": SIZE,
            "model.hidden_size": SIZE,
            "model.num_layers": LAYERS,
            "model.input_dropout": 0.2,
            "model.output_dropout": 0.2,
            "model.weight_dropout": 0.2,
            "train.batch_size": BATCH,
            "train.bptt": BPTT,
        }
    )
    run = _Run(config, Corpus("made up", "0", vocabulary, text, text, None), torch.device("cpu"))
    tokens_TB = batchify(torch.from_numpy(text.tokens.astype(np.int64)), BATCH)
    run.model.train()
    return lambda: run._step(tokens_TB, Window(0, BPTT, BPTT))


def products(words: int) -> Any:
    """Return a function that computes a step's products: decoder, and LSTM with the gates of all steps at once."""
    import torch

    rows = BATCH * BPTT
    x, weight, logits = torch.randn(128, SIZE), torch.randn(words, SIZE), torch.empty(128, words)
    grad_x, grad_weight = torch.empty(128, SIZE), torch.zeros(words, SIZE)
    inputs, gates = torch.randn(rows, SIZE), torch.empty(rows, 4 * SIZE)
    recurrent, back = torch.randn(4 * SIZE, SIZE), torch.empty(rows, SIZE)

    def step() -> None:
        for _ in range(-(-rows // 128)):
            torch.mm(x, weight.t(), out=logits)
            torch.mm(logits, weight, out=grad_x)
            grad_weight.addmm_(logits.t(), x, beta=0)
        for _ in range(2 * LAYERS):
            torch.mm(inputs, recurrent.t(), out=gates)
            torch.mm(gates, recurrent, out=back)
            torch.mm(gates.t(), inputs)

    return step


KINDS = {"training": training, "products": products}


def work(kind: str, words: int, seconds: float, barrier: Barrier, told: Any) -> None:
    """Compute steps for so long, once all are ready, and tell how many a second."""
    import torch

    torch.set_num_threads(1)
    with torch.no_grad() if kind == "products" else torch.enable_grad():
        step = KINDS[kind](words)
        for _ in range(3):
            step()
        barrier.wait()
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            step()
            steps += 1
        told.put(steps / (time.perf_counter() - began))


def together(kind: str, processes: int, words: int, seconds: float) -> float:
    """Return the steps a second of so many processes at once."""
    context = multiprocessing.get_context("spawn")
    barrier, told = context.Barrier(processes), context.Queue()
    children = [context.Process(target=work, args=(kind, words, seconds, barrier, told)) for _ in range(processes)]
    for child in children:
        child.start()
    found = [told.get() for _ in children]
    for child in children:
        child.join()
    return sum(found)


def hyper_threads() -> str:
    """Return how many of this host's processors share a core."""
    path = Path("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list")
    siblings = path.read_text(encoding="utf-8").strip() if path.exists() else "unknown"
    return f"threads of the first core: {siblings}"


def main() -> None:
    """Measure, and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--words", type=int, default=14_143)
    asked = parser.parse_args()
    shares: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(asked.rounds):
        for kind in KINDS:
            alone = together(kind, 1, asked.words, asked.seconds)
            both = together(kind, asked.processes, asked.words, asked.seconds)
            shares[kind].append(both / (asked.processes * alone))
            print(
                f"round {number + 1}: {kind:9} {alone:7.2f} steps/s alone, {both:7.2f} of {asked.processes} together: "
                f"{shares[kind][-1]:.0%}",
                flush=True,
            )
    medians = {kind: statistics.median(values) for kind, values in shares.items()}
    ratios = sorted(a / b for a, b in zip(*shares.values(), strict=True))
    print(
        f"{asked.processes} at once reach {medians['training']:.0%} of {asked.processes} times one in training, "
        f"{medians['products']:.0%} in plain products ({hyper_threads()}): ratio "
        f"{medians['training'] / medians['products']:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


if __name__ == "__main__":
    main()
