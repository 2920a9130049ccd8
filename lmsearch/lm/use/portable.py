"""A model for programs without PyTorch: an ONNX file that gives the same log-probabilities.

Shapes: T time, B batch, V vocabulary, H size of a layer.
"""

import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from lmsearch.extras import load
from lmsearch.files import replace_file
from lmsearch.lm.model import LanguageModel
from lmsearch.lm.use.trained import TrainedModel

_OPSET = 17


class _Portable(nn.Module):
    """Tokens and the states before them in; log-probabilities of the next words and the states after out."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens_TB: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Run a block; `states` are hidden and cell of each layer in turn, each of shape (1, B, H)."""
        found = self.model.features(tokens_TB, list(zip(states[::2], states[1::2], strict=True)))
        after = [state for pair in found.states for state in pair]
        return self.model.decoder(found.raw_TBH).log_softmax(-1), *after


def names_of_states(model: LanguageModel) -> list[str]:
    """Return what the file calls the states: hidden and cell of each layer in turn."""
    return [f"{kind}_{number}" for number in range(len(model.layers)) for kind in ("hidden", "cell")]


def write_onnx(trained: TrainedModel, path: Path) -> None:
    """Write a model as ONNX: inputs `tokens` (T, B), `hidden_0`, `cell_0` … (1, B, H); zeros at the start of a text.

    Outputs are `log_probabilities` (T, B, V), natural logarithms by the model's vocabulary, and `hidden_0_after` and so
    on. T and B are free; where the model takes its steps one by one, T is 1. Raises `ConfigError` where the package
    onnx is missing.
    """
    load("onnx", "onnx")
    model = trained.model.cpu().eval()
    states = names_of_states(model)
    free = {name: {1: "batch"} for state in states for name in (state, f"{state}_after")}
    time = {} if model.steps_alone else {0: "time"}
    free |= {name: time | {1: "batch"} for name in ("tokens", "log_probabilities")}
    length = 1 if model.steps_alone else 4
    example = (torch.zeros(length, 2, dtype=torch.int64), *(s for pair in model.initial_states(2) for s in pair))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        written = Path(folder) / "model.onnx"
        warnings.simplefilter("ignore")  # of the exporter, on what a trace keeps of sizes: those that are free here
        torch.onnx.export(
            _Portable(model),
            example,
            str(written),
            input_names=["tokens", *states],
            output_names=["log_probabilities", *(f"{state}_after" for state in states)],
            dynamic_axes=free,
            opset_version=_OPSET,
            dynamo=False,
        )
        replace_file(path, written.read_bytes())
