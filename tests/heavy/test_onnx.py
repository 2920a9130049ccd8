"""A model as ONNX, run by ONNX Runtime: the same log-probabilities as here."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmsearch.lm.model import LanguageModel
from lmsearch.lm.use.portable import names_of_states, write_onnx
from lmsearch.lm.use.trained import TrainedModel
from tests.factories import make_corpus, make_run

pytestmark = pytest.mark.heavy


@pytest.mark.parametrize(
    "changes",
    [
        {"model__num_layers": 2},
        {"model__tie_weights": False},
        {"model__decoder": "adaptive"},
        {"model__cell": "mogrifier", "model__num_layers": 2},
        {"model__reset_states": True},
    ],
)
def test_the_file_gives_the_same_probabilities(changes: dict[str, Any], tmp_path: Path) -> None:
    import onnxruntime  # an extra

    torch.manual_seed(1)
    corpus = make_corpus()
    config = make_run(model__init_range=0.8, **changes)
    model = LanguageModel(config.model, 12, torch.randperm(12), corpus.vocabulary.index["<eos>"])
    trained = TrainedModel(model.eval(), corpus.vocabulary, config, {})
    write_onnx(trained, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    tokens_TB = torch.randint(0, 12, (9, 3))
    states = model.initial_states(3)
    given = {
        name: state.numpy() for name, state in zip(names_of_states(model), (s for p in states for s in p), strict=True)
    }
    found: list[np.ndarray[Any, Any]] = []
    step = 1 if model.steps_alone else 4  # blocks, the last one shorter, each with the states of the one before
    for start in range(0, 9, step):
        block = tokens_TB[start : start + step].numpy()
        output, *after = session.run(None, {"tokens": block, **given})
        found.append(output)
        given = dict(zip(names_of_states(model), after, strict=True))
    with torch.no_grad():
        wanted = model.decoder(model.features(tokens_TB, states).raw_TBH).log_softmax(-1)
    np.testing.assert_allclose(np.concatenate(found), wanted.numpy(), atol=1e-5)
