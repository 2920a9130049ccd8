"""What one configuration costs, measured on a few batches in a process of its own, which may run out of memory.

Run as a program it reads a request from its input, a JSON document, and prints one.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from lmsearch.config import RunConfig
from lmsearch.lm.batches import evaluation_blocks, to_device
from lmsearch.lm.evaluate import begin_evaluation, evaluate_blocks
from lmsearch.lm.memory import begin_measuring, is_out_of_memory, peak_memory
from lmsearch.lm.model import LanguageModel
from lmsearch.lm.train import open_device, train
from lmsearch.text.corpus import Corpus, open_corpus

_WARM_STEPS = 2  # the first steps also make what later ones use again
_STEPS = 12
_SECONDS = 4.0  # of training, once warm
_BLOCKS = 6


def measure(config: RunConfig, corpus: Corpus, device: torch.device) -> dict[str, Any]:
    """Train and evaluate a few batches; give seconds per epoch, tokens per second, and bytes of all that it takes."""
    begin_measuring(device)
    began, tokens = time.perf_counter(), 0
    for steps, event in enumerate(train(config, corpus, device, None), 1):
        if steps == _WARM_STEPS:
            _wait(device)
            began, tokens = time.perf_counter(), event.tokens
        elif steps >= _WARM_STEPS + _STEPS or time.perf_counter() - began > _SECONDS:
            break
    _wait(device)
    speed = max(1, event.tokens - tokens) / max(1e-9, time.perf_counter() - began)
    saved = event.state()
    blocks, seconds = _evaluate(config, corpus, device)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in LanguageModel(
        config.model, len(corpus.vocabulary)
    ).state_dict().values())  # fmt: skip
    return {
        "tokens_per_second": speed,
        "epoch_seconds": len(corpus.train.tokens) / speed + seconds / max(1, blocks[0]) * blocks[1],
        "memory": peak_memory(device),
        "checkpoint": len(saved.to_bytes()),
        "weights": weights,
    }


def _evaluate(config: RunConfig, corpus: Corpus, device: torch.device) -> tuple[tuple[int, int], float]:
    """Evaluate a few blocks; give how many of how many, and the seconds."""
    model = LanguageModel(config.model, len(corpus.vocabulary)).to(device)
    blocks = evaluation_blocks(to_device(corpus.valid.tokens, device), config.train.eval_batch_size, config.train.bptt)
    began = time.perf_counter()
    done = 0
    for done, _ in enumerate(evaluate_blocks(model, blocks, begin_evaluation(model, blocks)), 1):
        if done >= _BLOCKS:
            break
    _wait(device)
    return (done, len(blocks)), time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Measure what is asked for on the standard input."""
    asked = json.load(sys.stdin)
    values = {f"{section}.{name}": value for section, table in asked["config"].items() for name, value in table.items()}
    config = RunConfig.from_paths(values)
    corpus = open_corpus(config.data, Path(asked["cache"]), allow_pickle=asked["allow_pickle"])
    device = open_device(asked["device"])
    torch.set_num_threads(config.train.threads)
    try:
        found = measure(config, corpus, device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        found = {"memory_failure": str(error), "memory": peak_memory(device)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
