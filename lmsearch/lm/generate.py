"""Text sampled from a model."""

from collections.abc import Iterator

import torch

from lmsearch.lm.model import LanguageModel
from lmsearch.text.vocabulary import EOS, UNK, Vocabulary


@torch.no_grad()
def generate(model: LanguageModel, vocabulary: Vocabulary, seed: int, temperature: float = 1.0) -> Iterator[str]:
    """Give word after word from the model's distribution without `<unk>`, beginning after an `<eos>`."""
    model.eval()
    device = model.embedding.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    states = model.initial_states(1)
    token = torch.tensor([[vocabulary.index[EOS]]], device=device)
    while True:
        features = model.features(token, states)
        states = features.states
        logits_V = model.decoder(features.raw_TBH[-1, 0]) / temperature
        logits_V[vocabulary.index[UNK]] = -torch.inf
        token = torch.multinomial(logits_V.softmax(0), 1, generator=generator).view(1, 1)
        yield vocabulary.words[int(token)]


def sample_text(model: LanguageModel, vocabulary: Vocabulary, words: int, seed: int = 0) -> str:
    """Write a short text, a paragraph a line."""
    written = [word for word, _ in zip(generate(model, vocabulary, seed), range(words), strict=False)]
    return " ".join("\n" if word == EOS else word for word in written).strip()
