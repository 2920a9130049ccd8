"""What an adaptive softmax costs and gives beside a full one: perplexity at equal epochs, and at equal seconds.

    python benchmarks/decoders.py --corpus FOLDER [--epochs 6] [--seeds 1 2 3] [--processes 2] [--results FILE] [--show]

The same small LSTM (embedding and hidden 200, one layer, Adam with a cosine schedule) with either decoder, tied and
untied, on one thread each; cut-offs are the default ones. Runs with the same seed and tying stand beside each other, so
that a machine that drifts slows both. Printed are, as means over seeds with their standard deviation, tokens per second
of training, the perplexity of the best epoch, and at equal seconds that of an adaptive model which has been given as
many epochs as fit into the full one's time (on the same schedule, over that many epochs). Results are kept
in FILE as they finish, and not computed again. Let nothing else run.
"""

import argparse
import itertools
import json
import multiprocessing
import statistics
from pathlib import Path
from typing import Any

TIED = (True, False)


def run(asked: tuple[str, str, bool, int, int]) -> dict[str, Any]:
    """Train one model; return its perplexity and seconds after each epoch."""
    import torch

    from lmsearch.config import RunConfig
    from lmsearch.lm.events import Epoch
    from lmsearch.lm.memory import begin_measuring, peak_memory
    from lmsearch.lm.train import train
    from lmsearch.text.corpus import cache_folder, open_corpus

    text, decoder, tied, seed, epochs = asked
    config = RunConfig.from_paths(
        {
            "data.corpus": text,
            "model.embedding_size": 200,
            "model.hidden_size": 200,
            "model.num_layers": 1,
            "model.tie_weights": tied,
            "model.input_dropout": 0.3,
            "model.output_dropout": 0.3,
            "model.weight_dropout": 0.3,
            "model.decoder": decoder,
            "train.learning_rate": 5e-3,
            "train.schedule": "cosine",
            "train.weight_decay": 1e-6,
            "train.epochs": epochs,
            "train.seed": seed,
        }
    )
    corpus = open_corpus(config.data, cache_folder())
    begin_measuring(None)
    found = [event for event in train(config, corpus, torch.device("cpu")) if isinstance(event, Epoch)]
    return {
        "key": [text, decoder, tied, seed, epochs],
        "words": len(corpus.vocabulary),
        "cutoffs": list(config.model.clusters(len(corpus.vocabulary)).ends) if decoder == "adaptive" else [],
        "parameters": config.model.count_parameters(len(corpus.vocabulary)),
        "perplexities": [event.valid_perplexity for event in found],
        "seconds": list(itertools.accumulate(event.seconds for event in found)),
        "tokens_per_second": sum(e.tokens for e in found) / sum(e.train_seconds for e in found),
        "memory": peak_memory(None),
    }


def play(missing: list[tuple[str, str, bool, int, int]], asked: argparse.Namespace, known: dict[str, Any]) -> None:
    """Run what is missing, and keep each result."""
    with multiprocessing.get_context("spawn").Pool(asked.processes) as pool:
        for result in pool.imap(run, missing):
            known[json.dumps(result["key"])] = result
            with asked.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            print(result["key"], f"{result['perplexities'][-1]:.2f} after {result['seconds'][-1]:.0f} s", flush=True)


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path("decoders.jsonl"))
    parser.add_argument("--show", action="store_true", help="print what FILE has, and train nothing")
    asked = parser.parse_args()
    text = str(Path(asked.corpus).resolve()) if Path(asked.corpus).exists() else asked.corpus
    lines = asked.results.read_text(encoding="utf-8").splitlines() if asked.results.exists() else []
    known = {json.dumps(result["key"]): result for result in map(json.loads, lines)}

    def missing(epochs: dict[str, dict[bool, int]]) -> list[tuple[str, str, bool, int, int]]:
        jobs = [
            (text, decoder, tied, seed, counts[tied])
            for seed in asked.seeds
            for tied in TIED
            for decoder, counts in epochs.items()
        ]
        return [] if asked.show else [job for job in jobs if json.dumps(list(job)) not in known]

    def results(decoder: str, tied: bool, epochs: int) -> list[dict[str, Any]]:
        keys = [json.dumps([text, decoder, tied, seed, epochs]) for seed in asked.seeds]
        return [known[key] for key in keys if key in known]

    equal = dict.fromkeys(TIED, asked.epochs)
    if jobs := missing({"full": equal, "adaptive": equal}):
        play(jobs, asked, known)
    longer = {}
    for tied in TIED:  # epochs of the adaptive model in the full one's time
        full, adaptive = (results(decoder, tied, asked.epochs) for decoder in ("full", "adaptive"))
        if full and adaptive:
            ratio = statistics.mean(r["seconds"][-1] for r in full) / statistics.mean(
                r["seconds"][-1] for r in adaptive
            )
            longer[tied] = max(1, int(asked.epochs * ratio))
    if len(longer) == len(TIED) and (jobs := missing({"adaptive": longer})):
        play(jobs, asked, known)
    show(results, asked.epochs, longer)


def show(results: Any, epochs: int, longer: dict[bool, int]) -> None:
    """Print a line for each decoder and tying."""
    print(f"\n{'':28}epochs  perplexity        seconds    tokens/s     MB  parameters  cut-offs")
    for tied, more in longer.items():
        for decoder, count in (("full", epochs), ("adaptive", epochs), ("adaptive", more)):
            found = results(decoder, tied, count)
            if not found:
                continue
            last = [min(one["perplexities"]) for one in found]
            spread = statistics.stdev(last) if len(last) > 1 else float("nan")
            means = [statistics.mean(one[name] for one in found) for name in ("tokens_per_second", "memory")]
            seconds = statistics.mean(one["seconds"][-1] for one in found)
            print(
                f"{'tied' if tied else 'untied':8}{decoder:20}{count:6}  {statistics.mean(last):8.2f} ± {spread:5.2f}"
                f"  {seconds:8.0f}  {means[0]:9,.0f}  {means[1] / 1e6:5.0f}  {found[0]['parameters']:10,}"
                f"  {found[0]['cutoffs'] or ''}"
            )


if __name__ == "__main__":
    main()
