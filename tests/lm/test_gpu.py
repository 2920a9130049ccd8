"""The same training on a real GPU: only where there is one (`pytest -m gpu -n 0`)."""

import pytest
import torch

from lmsearch.lm.train import Epoch, open_device, train
from tests.factories import make_corpus, make_run


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "nt-asgd"])
def test_a_gpu_reaches_what_the_cpu_reaches(optimizer: str) -> None:
    config = make_run(train__optimizer=optimizer, train__epochs=3, model__num_layers=2, train__nonmono=1)
    losses = [
        [event.valid_loss for event in train(config, make_corpus(), device, None) if isinstance(event, Epoch)]
        for device in (torch.device("cpu"), open_device("cuda"))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
