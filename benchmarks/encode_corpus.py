"""How fast a large text is encoded, and in how much memory, each in a process of its own on one core.

    python benchmarks/encode_corpus.py [--tokens 20000000] [--peer PATH]

The text is generated: words by Zipf's law, 25 a line. `--peer` names a clone of awd-lstm-lm, whose own `data.Corpus`
then reads the same text; the last line is the ratio.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

OURS = """
import json, os, resource, sys, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from pathlib import Path
from lmsearch.config import DataConfig
from lmsearch.text.corpus import open_corpus
began = time.perf_counter()
corpus = open_corpus(DataConfig(corpus=sys.argv[1]), Path(sys.argv[2]))
seconds = time.perf_counter() - began
tokens = len(corpus.train.tokens) + len(corpus.valid.tokens) + len(corpus.test.tokens)
again = time.perf_counter()
open_corpus(DataConfig(corpus=sys.argv[1]), Path(sys.argv[2]))
again = time.perf_counter() - again
print(json.dumps([tokens, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, again]))
"""

PEER = """
import json, os, resource, sys, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
sys.path.insert(0, sys.argv[3])
import data
began = time.perf_counter()
corpus = data.Corpus(sys.argv[1])
tokens = len(corpus.train) + len(corpus.valid) + len(corpus.test)
print(json.dumps([tokens, time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 0]))
"""


def write_text(folder: Path, tokens: int) -> int:
    """Write train, valid and test of a generated text; give the bytes of all."""
    rng = np.random.default_rng(0)
    words = np.array([f"word{number}" for number in range(200_000)], dtype=object)
    for split, share in (("train", 0.9), ("valid", 0.05), ("test", 0.05)):
        with (folder / f"{split}.txt").open("w") as file:
            for start in range(0, int(share * tokens), 1_000_000):
                count = min(1_000_000, int(share * tokens) - start)
                drawn = words[rng.zipf(1.15, count) % len(words)]
                file.write("".join(" ".join(drawn[i : i + 24]) + "\n" for i in range(0, count, 24)))
    return sum(path.stat().st_size for path in folder.iterdir())


def measured(program: str, *words: str) -> list[float]:
    """Run one program; give tokens, seconds, megabytes at the most, and seconds to open again."""
    said = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    found: list[float] = json.loads(said.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument("--peer", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name) / "text"
        folder.mkdir()
        size = write_text(folder, args.tokens)
        print(f"{size / 1e6:,.0f} MB of text, {time.strftime('%Y-%m-%d')}")
        tokens, seconds, megabytes, again = measured(OURS, str(folder), str(Path(folder_name) / "cache"))
        print(
            f"lmsearch: {tokens / 1e6:.1f} million tokens in {seconds:.1f} s, {tokens / seconds / 1e6:.2f} million "
            f"a second, {megabytes:,.0f} MB at the most; opened again, and checked, in {again:.2f} s"
        )
        if args.peer is not None:
            tokens, theirs, megabytes, _ = measured(PEER, str(folder), "", str(args.peer.resolve()))
            print(
                f"awd-lstm-lm: {tokens / 1e6:.1f} million tokens in {theirs:.1f} s, {megabytes:,.0f} MB at the most\n"
                f"ratio: {theirs / seconds:.1f} times as fast"
            )


if __name__ == "__main__":
    main()
