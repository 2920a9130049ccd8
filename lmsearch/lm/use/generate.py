"""Text sampled from a model."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmsearch.errors import ConfigError
from lmsearch.lm.model import LanguageModel, States
from lmsearch.text.vocabulary import EOS, UNK, Vocabulary

_COLDEST = 1e-6  # below it the most probable word has all the probability, and logits divided by it overflow


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next word is drawn from the model's distribution."""

    temperature: float = 1.0  # 0: always the most probable word
    top_k: int = 0  # only the k most probable words; 0: all
    top_p: float = 1.0  # only the fewest words that have so much of the probability together (Holtzman et al. 2020)
    no_unk: bool = True  # never `<unk>`

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"the temperature must be a number of at least 0, got {self.temperature}")
        if self.top_k < 0:
            raise ConfigError(f"top-k must be at least 1, or 0 for all words, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top-p must be above 0 and at most 1, got {self.top_p}")


@torch.no_grad()
def generate(
    model: LanguageModel,
    vocabulary: Vocabulary,
    seed: int,
    sampling: Sampling | None = None,
    prompt: Sequence[str] = (),
) -> Iterator[str]:
    """Yield word after word, each drawn after those before it; the first follows `<eos>` and `prompt`.

    Words of the prompt that the model does not know are `<unk>` to it. The same seed gives the same words on one
    device; temperature 0 needs none. Raises `ConfigError` where the weights are too large to compute with.
    """
    sampling = sampling or Sampling()
    model.eval()
    device = model.embedding.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    words = [vocabulary.index[EOS], *vocabulary.encode(prompt)]
    tokens_T1 = torch.tensor(words, device=device)[:, None]
    states: States = model.initial_states(1)
    while True:
        features = model.features(tokens_T1, states)
        states = features.states
        logits_V = model.decoder(features.raw_TBH[-1, 0])
        if not bool(logits_V.isfinite().all()):
            raise ConfigError("the model's weights are so large that its probabilities are no numbers")
        if sampling.no_unk:
            logits_V[vocabulary.index[UNK]] = -torch.inf
        tokens_T1 = _draw(logits_V, sampling, generator).view(1, 1)
        yield vocabulary.words[int(tokens_T1)]


def _draw(logits_V: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    if sampling.temperature < _COLDEST:
        return logits_V.argmax()
    # Divided by a temperature beyond float32's numbers, minus infinity would be no number.
    scaled_V = (logits_V / sampling.temperature).masked_fill(logits_V == -torch.inf, -torch.inf)
    if sampling.top_k and sampling.top_k < len(scaled_V):
        least = scaled_V.topk(sampling.top_k).values[-1]
        scaled_V = scaled_V.masked_fill(scaled_V < least, -torch.inf)
    probabilities_V = scaled_V.softmax(0)
    if sampling.top_p < 1:
        sorted_V, order_V = probabilities_V.sort(descending=True, stable=True)
        surplus_V = sorted_V.cumsum(0) - sorted_V >= sampling.top_p  # what stands before it has enough already
        probabilities_V = probabilities_V.index_fill(0, order_V[surplus_V], 0.0)
    return torch.multinomial(probabilities_V, 1, generator=generator)


def sample_text(model: LanguageModel, vocabulary: Vocabulary, words: int, seed: int = 0) -> str:
    """Write a short text, a paragraph a line."""
    written = [word for word, _ in zip(generate(model, vocabulary, seed), range(words), strict=False)]
    return " ".join("\n" if word == EOS else word for word in written).strip()
