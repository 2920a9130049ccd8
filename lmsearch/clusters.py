"""Where an adaptive softmax cuts the vocabulary: a shortlist of the most frequent words, and tails of rarer ones.

After Grave, Joulin, Cissé, Grangier and Jégou (2017), Efficient softmax approximation for GPUs, arXiv 1609.04309.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from lmsearch.errors import ConfigError

_MOST_TAILS = 3
_MARKS = 24  # places at which the vocabulary may be cut, at equal distances of the rank's logarithm
_NARROWER = 4  # what the width of an untied tail is divided by, from tail to tail


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """The words of a vocabulary by their rank in the train split, the most frequent first, cut into parts."""

    ends: tuple[int, ...]  # one past the last rank of the shortlist and of each tail; the last is the vocabulary's size
    widths: tuple[int, ...]  # of the features that each tail reads

    @property
    def shortlist(self) -> int:
        """Return the number of words that have a logit of their own in each prediction."""
        return self.ends[0]

    @property
    def tails(self) -> int:
        """Return the number of tails."""
        return len(self.widths)

    def tail(self, number: int) -> tuple[int, int]:
        """Return the first rank of a tail and one past its last."""
        return self.ends[number], self.ends[number + 1]


def cut(words: int, features: int, tied: bool, cutoffs: Sequence[int] | None) -> Clusters:
    """Cut a vocabulary at the ranks given, or where a prediction takes the least work. Raises `ConfigError`.

    A tied tail is as wide as the embedding, whose rows it shares; an untied one is narrower from tail to tail.
    """
    if cutoffs is None:
        cutoffs = _least_work(words)
    if cutoffs[-1] >= words:
        raise ConfigError(f"model.cutoffs must be below the vocabulary's {words:,} words, got {list(cutoffs)}")
    widths = (features if tied else max(1, features // _NARROWER ** (n + 1)) for n in range(len(cutoffs)))
    return Clusters(ends=(*cutoffs, words), widths=tuple(widths))


@functools.lru_cache
def _least_work(words: int) -> tuple[int, ...]:
    """Return the cut-offs with the fewest logits for a prediction, if words are distributed by Zipf's law.

    They depend on the vocabulary's size alone and not on the device, so that all workers of a study have one model; nor
    on the widths of untied tails, whose small products would leave a shortlist of a few words.
    """
    if words < 2:
        raise ConfigError("an adaptive decoder needs a vocabulary of at least 2 words")
    steps = [words ** (number / _MARKS) for number in range(1, _MARKS)]
    marks = sorted({min(words - 1, max(1, round(step))) for step in steps})
    choices = [chosen for tails in range(1, _MOST_TAILS + 1) for chosen in itertools.combinations(marks, tails)]
    return min(choices, key=lambda chosen: _work(words, chosen))


def _work(words: int, cutoffs: tuple[int, ...]) -> float:
    """Return the logits that a prediction takes on average."""
    harmonic = math.log(words) + 0.5772  # Euler's constant
    tails = itertools.pairwise((*cutoffs, words))
    return cutoffs[0] + len(cutoffs) + sum((end - first) * math.log(end / first) / harmonic for first, end in tails)
