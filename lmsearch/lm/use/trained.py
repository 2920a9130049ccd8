"""A trained model in use: probabilities of words, perplexity of a text, text of its own.

    from lmsearch.lm import load
    model = load("runs/default/best-model")
    model.perplexity("the quick brown fox")

Shapes: N words or contexts, T time, V vocabulary.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmsearch.config import RunConfig
from lmsearch.errors import ConfigError, CorpusError
from lmsearch.lm.evaluate import evaluate
from lmsearch.lm.model import LanguageModel
from lmsearch.lm.use.generate import Sampling, generate
from lmsearch.losses import perplexity
from lmsearch.text.lines import NORMALIZE
from lmsearch.text.vocabulary import EOS, UNK, Vocabulary

_BLOCK = 512  # words that are run through the LSTM at once
_CONTEXTS = 64  # contexts that are
_LINES = 64  # lines that are scored at once
_LONG = 1_000  # words of a line that is scored alone


@dataclass(frozen=True)
class TextResult:
    """What a model makes of a text of N tokens: N - 1 predictions, each exact over the whole vocabulary."""

    loss: float  # nats per predicted token
    known_loss: float  # the same over the predictions of words that the model knows; NaN where there are none
    tokens: int  # with one `<eos>` a line
    unknown: int  # of these, `<unk>`: words that the model does not know, and those that are `<unk>` in the text

    @property
    def perplexity(self) -> float:
        """Return exp(loss), over all tokens."""
        return perplexity(self.loss)

    @property
    def known_perplexity(self) -> float:
        """Return exp(known_loss), over the words that the model knows."""
        return perplexity(self.known_loss)


@dataclass(frozen=True, kw_only=True)
class LineScore:
    """What a model makes of one line alone: each of its words, and the `<eos>` that ends it."""

    words: tuple[str, ...]
    log_probabilities: npt.NDArray[np.float64]  # natural logarithms, the first after an `<eos>`
    unknown: int  # of the words, those that the model does not know

    @property
    def log_probability(self) -> float:
        """Return the natural logarithm of the line's probability."""
        return float(self.log_probabilities.sum())

    @property
    def perplexity(self) -> float:
        """Return the line's perplexity, over its words and its end."""
        return perplexity(-self.log_probability / len(self.words))


@dataclass(frozen=True, repr=False)
class TrainedModel:
    """A model, its words, the config that made it, and `metrics.json`."""

    model: LanguageModel
    vocabulary: Vocabulary
    config: RunConfig
    metrics: dict[str, Any]

    def __repr__(self) -> str:
        """Return in a line what model it is."""
        size = sum(parameter.numel() for parameter in self.model.parameters())
        found = self.metrics.get("perplexity")
        reached = f", validation perplexity {found:.2f}" if isinstance(found, float) else ""
        return f"TrainedModel({size:,} parameters, {len(self.vocabulary):,} words{reached})"

    @property
    def device(self) -> torch.device:
        """Return where the model is."""
        return self.model.embedding.weight.device

    def to(self, device: torch.device | str) -> "TrainedModel":
        """Move the model to a device and return it."""
        self.model.to(device)
        return self

    def words(self, text: str) -> list[str]:
        """Return the words of a text as the model was trained on them, with `<eos>` at the end of each line."""
        split = NORMALIZE[self.config.data.normalize]
        return [word for line in _lines(text) for word in (*split(line), EOS)]

    @torch.no_grad()
    def log_probabilities(self, words: Sequence[str]) -> npt.NDArray[np.float64]:
        """Return the natural logarithm of each word's probability after those before it, the first after an `<eos>`.

        Of shape (N,). A word that the model does not know has the probability of `<unk>`. Raises `ConfigError` for a
        text in place of its words, which `words` gives.
        """
        if isinstance(words, str):
            raise ConfigError("log_probabilities takes a list of words; give model.words(text)")
        tokens_N = self._encoded([EOS, *words])
        self.model.eval()
        states = self.model.initial_states(1)
        found: list[Tensor] = []
        for start in range(0, len(words), _BLOCK):
            block = tokens_N[start : start + _BLOCK + 1][:, None]
            features = self.model.features(block[:-1], states)
            states = features.states
            found.append(self.model.losses(features.raw_TBH, block[1:])[:, 0])
        return -torch.cat(found).double().cpu().numpy() if found else np.zeros(0)

    @torch.no_grad()
    def score(self, lines: Iterable[str]) -> Iterator[LineScore]:
        """Yield the score of each line alone, as for the sentences of an n-best list: no line has another before it."""
        split = NORMALIZE[self.config.data.normalize]
        taken = iter([*split(line), EOS] for line in lines)
        while batch := list(itertools.islice(taken, _LINES)):
            longest = max(map(len, batch))
            # A long line alone: others would be as long with it.
            parts = [[words] for words in batch] if longest > _LONG else [batch]
            for part in parts:
                yield from self._score(part)

    def _score(self, lines: Sequence[Sequence[str]]) -> Iterator[LineScore]:
        if len(lines) == 1:
            found = self.log_probabilities(lines[0])[:, None]
        else:
            end, longest = self.vocabulary.index[EOS], max(map(len, lines))
            filled = [[end, *self.vocabulary.encode(words), *[end] * (longest - len(words))] for words in lines]
            tokens_TB = torch.tensor(filled, device=self.device).t().contiguous()
            self.model.eval()
            features = self.model.features(tokens_TB[:-1], self.model.initial_states(len(lines)))
            found = -self.model.losses(features.raw_TBH, tokens_TB[1:]).double().cpu().numpy()
        for number, words in enumerate(lines):
            unknown = sum(word not in self.vocabulary.index for word in words)
            yield LineScore(words=tuple(words), log_probabilities=found[: len(words), number], unknown=unknown)

    @torch.no_grad()
    def states(self, words: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the last layer's output after each word of a text that begins after an `<eos>`, of shape (N, H).

        Row n is what the model predicts the word after word n from.
        """
        tokens_T1 = self._encoded([EOS, *words])[:, None]
        self.model.eval()
        raw_TBH = self.model.features(tokens_T1, self.model.initial_states(1)).raw_TBH
        return raw_TBH[1:, 0].float().cpu().numpy()

    @property
    def embeddings(self) -> npt.NDArray[np.float32]:
        """Return the embedding of each word, in the order of the vocabulary, of shape (V, E)."""
        words = torch.arange(len(self.vocabulary), device=self.device)
        return self.model.embedded(words).detach().float().cpu().numpy()

    def evaluate(self, lines: Iterable[str]) -> TextResult:
        """Return the exact perplexity of a text's lines; raises `CorpusError` where they have fewer than two tokens."""
        split = NORMALIZE[self.config.data.normalize]
        words = itertools.chain.from_iterable((*split(line), EOS) for line in lines)
        unknown = self.vocabulary.index[UNK]
        return self.measure(np.fromiter((self.vocabulary.index.get(word, unknown) for word in words), np.int64))

    def measure(self, tokens_N: npt.NDArray[np.integer[Any]]) -> TextResult:
        """Return the same of a text of N of the model's tokens."""
        if len(tokens_N) < 2:
            raise CorpusError("the text has fewer than two tokens, so there is nothing to predict")
        unknown = self.vocabulary.index[UNK]
        found = evaluate(self.model, torch.from_numpy(tokens_N.astype(np.int64)), 1, _BLOCK, unknown=unknown)
        return TextResult(found.loss, found.known_loss, len(tokens_N), int((tokens_N == unknown).sum()))

    def validation(self, tokens_N: npt.NDArray[np.integer[Any]]) -> TextResult | None:
        """Return what its training found on the N tokens of its validation split; None where it was not kept."""
        loss, known = self.metrics.get("valid_loss"), self.metrics.get("valid_known_loss")
        if not isinstance(loss, float):
            return None
        unknown = int((tokens_N == self.vocabulary.index[UNK]).sum()) if isinstance(known, float) else 0
        return TextResult(loss, known if isinstance(known, float) else math.nan, len(tokens_N), unknown)

    def perplexity(self, text: str) -> float:
        """Return the perplexity of a text: of each of its tokens but the first, after those before it."""
        return self.evaluate(_lines(text)).perplexity

    @torch.no_grad()
    def next_word(self, contexts_NT: npt.NDArray[np.integer[Any]]) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the log-probabilities of the word that follows each context, some contexts at a time: (n, V) each.

        Contexts are indices of the model's vocabulary, each the beginning of a text.
        """
        if contexts_NT.ndim != 2 or contexts_NT.dtype.kind not in "iu" or not contexts_NT.size:
            raise ConfigError(
                f"contexts must be whole numbers of shape (N, T), got {contexts_NT.dtype} of shape {contexts_NT.shape}"
            )
        check_indices(contexts_NT, len(self.vocabulary))
        self.model.eval()
        for start in range(0, len(contexts_NT), _CONTEXTS):
            part = torch.from_numpy(contexts_NT[start : start + _CONTEXTS].astype(np.int64)).to(self.device)
            features = self.model.features(part.t(), self.model.initial_states(len(part)))
            yield self.model.decoder(features.raw_TBH[-1]).log_softmax(-1).cpu().numpy()

    def generate(
        self,
        prompt: str = "",
        words: int = 100,
        seed: int = 0,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        no_unk: bool = True,
    ) -> Iterator[str]:
        """Generate words after a prompt, each its next input; `<eos>` is the end of a line.

        Args:
            temperature: what the logits are divided by; 0: always the most probable word.
            top_k: only the k most probable words; 0: all.
            top_p: only the fewest words that have so much of the probability together.
            no_unk: never `<unk>`.
        """
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, no_unk=no_unk)
        words_before = self.prompt_words(prompt)
        return itertools.islice(generate(self.model, self.vocabulary, seed, sampling, words_before), words)

    def prompt_words(self, prompt: str) -> list[str]:
        """Return the words of a prompt as the model reads them: those of a text whose last line has not ended."""
        return self.words(prompt)[:-1] if prompt.strip() else []

    def _encoded(self, words: Sequence[str]) -> Tensor:
        return torch.tensor(self.vocabulary.encode(words), device=self.device)


def _lines(text: str) -> list[str]:
    if not isinstance(text, str):
        raise ConfigError(f"a text is a str, not {type(text).__name__}; for a list of words: log_probabilities(words)")
    # As a file is read: `str.splitlines` would end lines at other characters too.
    return text.removesuffix("\n").split("\n") if text else []


def check_indices(indices: npt.NDArray[np.integer[Any]], words: int) -> None:
    """Refuse indices that are outside a vocabulary of so many words."""
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= words:
        raise ConfigError(f"the index {low if low < 0 else high} is outside the vocabulary, which has 0 to {words - 1}")
