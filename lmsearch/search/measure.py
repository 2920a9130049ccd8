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
from lmsearch.lm.batches import as_indices, evaluation_blocks
from lmsearch.lm.device import open_device
from lmsearch.lm.evaluate import begin_evaluation, evaluate_blocks
from lmsearch.lm.memory import begin_measuring, is_out_of_memory, peak_memory
from lmsearch.lm.model import LanguageModel
from lmsearch.lm.train import train
from lmsearch.text.corpus import Corpus, open_corpus

_WARM_STEPS = 2  # the first steps also make what later ones use again, on a GPU for seconds
_STEPS = 12  # at least, once warm
_SECONDS = (1.0, 4.0)  # at least, and at most, once warm
_BLOCKS = 6
_CONTEXT = 700_000_000  # bytes that CUDA itself takes for a process; 558 to 649 MiB were seen on an H100 with CUDA 13


def measure(config: RunConfig, corpus: Corpus, device: torch.device) -> dict[str, Any]:
    """Train and evaluate a few batches; return seconds per epoch, tokens per second, and bytes of all that it takes.

    `free` is what the device had before, on a GPU only.
    """
    begin_measuring(device)
    free = torch.cuda.mem_get_info(device)[0] + _CONTEXT if device.type == "cuda" else None
    marks = [(time.perf_counter(), 0)]  # when, and tokens until then
    for event in train(config, corpus, device, None):
        if event.tokens == marks[-1][1]:
            break  # the epoch's training is over
        if len(marks) <= _WARM_STEPS:
            _wait(device)
        marks.append((time.perf_counter(), event.tokens))
        steps, seconds = len(marks) - 1 - _WARM_STEPS, marks[-1][0] - marks[min(_WARM_STEPS, len(marks) - 1)][0]
        if (steps >= _STEPS and seconds > _SECONDS[0]) or (steps > 0 and seconds > _SECONDS[1]):
            break
    _wait(device)
    warm = marks[_WARM_STEPS] if len(marks) > _WARM_STEPS + 1 else marks[0]
    speed = (marks[-1][1] - warm[1]) / (time.perf_counter() - warm[0])
    saved = event.state()
    blocks, seconds = _evaluate(config, corpus, device)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in LanguageModel(
        config.model, len(corpus.vocabulary)
    ).state_dict().values())  # fmt: skip
    return {
        "tokens_per_second": speed,
        "epoch_seconds": len(corpus.train.tokens) / speed + seconds / max(1, blocks[0]) * blocks[1],
        "memory": _memory(device),
        "free": free,
        "checkpoint": len(saved.to_bytes()),
        "weights": weights,
    }


def _evaluate(config: RunConfig, corpus: Corpus, device: torch.device) -> tuple[tuple[int, int], float]:
    """Evaluate a few blocks; return how many of how many, and the seconds."""
    model = LanguageModel(config.model, len(corpus.vocabulary)).to(device)
    train = config.train
    tokens_N = as_indices(corpus.valid.tokens)
    blocks = evaluation_blocks(tokens_N, train.eval_batch_size, train.bptt, train.eval_context, device)
    began = time.perf_counter()
    done = 0
    for done, _ in enumerate(evaluate_blocks(model, blocks, begin_evaluation(model, blocks), -1), 1):
        if done >= _BLOCKS:
            break
    _wait(device)
    return (done, len(blocks)), time.perf_counter() - began


def _memory(device: torch.device) -> int:
    """Return the device memory of this process in bytes, with what its allocator keeps and CUDA's own."""
    return torch.cuda.max_memory_reserved(device) + _CONTEXT if device.type == "cuda" else peak_memory(device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Measure what is asked for on the standard input."""
    request = json.load(sys.stdin)
    config = RunConfig.from_paths(request["config"])
    corpus = open_corpus(config.data, Path(request["cache"]), allow_pickle=request["allow_pickle"])
    device = open_device(request["device"])
    torch.set_num_threads(config.train.threads)
    try:
        found = measure(config, corpus, device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        found = {"memory_failure": str(error), "memory": _memory(device)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
