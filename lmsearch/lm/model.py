"""The LSTM language model.

Shapes: T time, B batch, E embedding, H features of the last layer, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmsearch.config import ModelConfig
from lmsearch.lm.decoder import LinearCrossEntropy, chunk_rows, row_losses
from lmsearch.lm.layers import Generator, LstmState, dropout, embed, weight_dropped_lstm

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

    Embedding and decoder are uniform in ± `init_range`, biases of the decoder 0, the LSTM as PyTorch has it.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocabulary_size = vocabulary_size
        self.embedding = nn.Embedding(vocabulary_size, config.embedding_size)
        self.layers = nn.ModuleList(nn.LSTM(inputs, size) for inputs, size in config.layer_sizes())
        self.decoder = nn.Linear(config.layer_sizes()[-1][1], vocabulary_size)
        if config.tie_weights:
            self.decoder.weight = self.embedding.weight
        with torch.no_grad():
            self.embedding.weight.uniform_(-config.init_range, config.init_range)
            if not config.tie_weights:
                self.decoder.weight.uniform_(-config.init_range, config.init_range)
            self.decoder.bias.zero_()

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
        x = embed(tokens_TB, self.embedding.weight, rates.embedding_dropout if on else 0, generator)
        x = dropout(x, rates.input_dropout if on else 0, locked, generator)
        after: States = []
        for number, (layer, state) in enumerate(zip(self.layers, states, strict=True)):
            assert isinstance(layer, nn.LSTM)
            if number > 0:
                x = dropout(x, rates.hidden_dropout if on else 0, locked, generator)
            x, state_after = weight_dropped_lstm(layer, x, state, rates.weight_dropout if on else 0, generator)
            after.append(state_after)
        dropped = dropout(x, rates.output_dropout if on else 0, locked, generator)
        return Features(dropped, x, after)

    def loss(self, features_TBH: Tensor, targets_TB: Tensor) -> Tensor:
        """Return the mean cross-entropy of the next words, in nats, over the full vocabulary."""
        rows = chunk_rows(features_TBH.device, self.vocabulary_size)
        loss: Tensor = LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
            features_TBH.flatten(0, 1), self.decoder.weight, self.decoder.bias, targets_TB.flatten(), rows
        )
        return loss

    def losses(self, features_TBH: Tensor, targets_TB: Tensor) -> Tensor:
        """Return the negative log-likelihood of each next word, in nats, of shape (T, B), without gradients."""
        losses_N = row_losses(features_TBH.flatten(0, 1), self.decoder.weight, self.decoder.bias, targets_TB.flatten())
        return losses_N.view(targets_TB.shape)

    def weights(self) -> dict[str, Tensor]:
        """Return the weights by name, a tied matrix once."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    @torch.no_grad()
    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Copy weights in, by the names that `weights` gives."""
        for name, parameter in self.named_parameters():
            parameter.copy_(weights[name])
