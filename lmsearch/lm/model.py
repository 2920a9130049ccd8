"""The LSTM language model.

Shapes: T time, B batch, E embedding, H features of the last layer, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmsearch.config import ModelConfig
from lmsearch.lm.adaptive import AdaptiveDecoder
from lmsearch.lm.decoder import FullDecoder
from lmsearch.lm.layers import Generator, LstmState, MogrifierLSTM, dropout, dropout_mask, embed, run_lstm

States = list[LstmState]
"""The (hidden, cell) state of each layer, of shape (1, B, size)."""


@dataclass(frozen=True)
class Features:
    """What the LSTM makes of a block of tokens."""

    dropped_TBH: Tensor  # the last output after dropout: what the decoder reads, and AR penalises
    raw_TBH: Tensor  # the last output before dropout: what TAR penalises
    states: States


class LanguageModel(nn.Module):
    """AWD-LSTM (Merity et al., arXiv 1708.02182): an LSTM language model, regularised where it overfits.

    Embedding and decoder are uniform in ± `init_range`, biases of the decoder 0, the LSTM as PyTorch has it. With an
    adaptive decoder, `ranks_V` has each word's rank by its number in the train split (`adaptive.ranks_of`; without it
    words are taken to be in that order), and the embedding's rows are in this order. `line_end` is the number of
    `<eos>`, before which `reset_states` forgets.
    """

    def __init__(
        self, config: ModelConfig, vocabulary_size: int, ranks_V: Tensor | None = None, line_end: int = -1
    ) -> None:
        super().__init__()
        self.config = config
        self.vocabulary_size = vocabulary_size
        self._line_end = line_end
        self.embedding = nn.Embedding(vocabulary_size, config.embedding_size)
        self.layers = nn.ModuleList(_layer(config, inputs, size) for inputs, size in config.layer_sizes())
        self.decoder = self._full_decoder() if config.decoder == "full" else self._adaptive_decoder(ranks_V)

    def _full_decoder(self) -> FullDecoder:
        config = self.config
        decoder = FullDecoder(config.layer_sizes()[-1][1], self.vocabulary_size)
        if config.tie_weights:
            decoder.weight = self.embedding.weight
        with torch.no_grad():
            self.embedding.weight.uniform_(-config.init_range, config.init_range)
            if not config.tie_weights:
                decoder.weight.uniform_(-config.init_range, config.init_range)
            decoder.bias.zero_()
        return decoder

    def _adaptive_decoder(self, ranks_V: Tensor | None) -> AdaptiveDecoder:
        config = self.config
        with torch.no_grad():
            self.embedding.weight.uniform_(-config.init_range, config.init_range)
        ranks_V = torch.arange(self.vocabulary_size) if ranks_V is None else ranks_V
        tied = self.embedding.weight if config.tie_weights else None
        features = config.layer_sizes()[-1][1]
        return AdaptiveDecoder(config.clusters(self.vocabulary_size), features, ranks_V, tied, config.init_range)

    @property
    def steps_alone(self) -> bool:
        """Whether evaluation takes the time steps one by one, which PyTorch's fused LSTM does not."""
        return self.config.cell != "lstm" or self.config.reset_states

    def initial_states(self, batch_size: int) -> States:
        """Return the states at the start of a text: zeros."""
        weight = self.embedding.weight
        return [
            (weight.new_zeros(1, batch_size, size), weight.new_zeros(1, batch_size, size))
            for _, size in self.config.layer_sizes()
        ]

    def features(self, tokens_TB: Tensor, states: States, generator: Generator = None) -> Features:
        """Run the LSTM over a block; dropout is drawn from `generator` in training and absent in evaluation."""
        rates, locked, on = self.config, self.config.locked_dropout, self.training
        keep_TB1 = (
            (tokens_TB != self._line_end)[..., None].to(self.embedding.weight.dtype) if rates.reset_states else None
        )
        x = embed(self._rows_of(tokens_TB), self.embedding.weight, rates.embedding_dropout if on else 0, generator)
        x = dropout(x, rates.input_dropout if on else 0, locked, generator)
        after: States = []
        for number, (layer, state) in enumerate(zip(self.layers, states, strict=True)):
            assert isinstance(layer, nn.LSTM)
            if number > 0:
                x = dropout(x, rates.hidden_dropout if on else 0, locked, generator)
            mask = None
            if on and rates.state_dropout:
                shape = (1 if locked else len(x), *state[0].shape[1:])
                mask = dropout_mask(shape, rates.state_dropout, x, generator)
            x, state_after = run_lstm(layer, x, state, rates.weight_dropout if on else 0, mask, generator, keep_TB1)
            after.append(state_after)
        dropped = dropout(x, rates.output_dropout if on else 0, locked, generator)
        return Features(dropped, x, after)

    def _rows_of(self, tokens: Tensor) -> Tensor:
        """Return the embedding's row of each token."""
        return self.decoder.ranks[tokens] if isinstance(self.decoder, AdaptiveDecoder) else tokens

    def embedded(self, tokens: Tensor) -> Tensor:
        """Return the embeddings of tokens of any shape, which get the dimension E at their end."""
        return self.embedding(self._rows_of(tokens))  # type: ignore[no-any-return]

    def loss(self, features_TBH: Tensor, targets_TB: Tensor, host_TB: Tensor | None = None) -> Tensor:
        """Return the mean cross-entropy of the next words, in nats, over the full vocabulary.

        `host_TB` are the targets on the host, so that an adaptive decoder need not wait for those of the device.
        """
        return self.decoder.loss(*self._rows(features_TBH, targets_TB, host_TB))

    def losses(self, features_TBH: Tensor, targets_TB: Tensor, host_TB: Tensor | None = None) -> Tensor:
        """Return the negative log-likelihood of each next word, in nats, of shape (T, B), without gradients."""
        return self.decoder.losses(*self._rows(features_TBH, targets_TB, host_TB)).view(targets_TB.shape)

    def _rows(self, features_TBH: Tensor, targets_TB: Tensor, host_TB: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if host_TB is None:
            host_TB = targets_TB.cpu() if isinstance(self.decoder, AdaptiveDecoder) else targets_TB
        return features_TBH.flatten(0, 1), targets_TB.flatten(), host_TB.flatten()

    def weights(self) -> dict[str, Tensor]:
        """Return the weights by name, a tied matrix once; with an adaptive decoder also the words' ranks."""
        return {name: tensor.detach() for name, tensor in (*self.named_parameters(), *self.named_buffers())}

    @torch.no_grad()
    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Copy weights in, by the names that `weights` gives."""
        for name, parameter in self.named_parameters():
            parameter.copy_(weights[name])


def _layer(config: ModelConfig, inputs: int, size: int) -> nn.LSTM:
    if config.cell == "lstm":
        return nn.LSTM(inputs, size)
    return MogrifierLSTM(inputs, size, config.mogrifier_rounds, config.mogrifier_rank)
