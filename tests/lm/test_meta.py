"""What can be proved of a GPU without one: on the `meta` device nothing can cross to the host."""

import itertools

import pytest
import torch

from lmsearch.lm.events import Epoch, Step
from lmsearch.lm.train import train
from tests.factories import make_corpus, make_run

META = torch.device("meta")
OFTEN = [("adam", True, True), ("adamw", False, True), ("sgd", True, False), ("adam", False, False)]
COMBINATIONS = [
    pytest.param(*one, marks=() if one in OFTEN else pytest.mark.heavy)
    for one in itertools.product(["adam", "adamw", "sgd"], [True, False], [True, False])
]


@pytest.mark.parametrize(("optimizer", "locked", "shuffle"), COMBINATIONS)
def test_training_and_evaluation_run_on_meta_up_to_the_epochs_end(optimizer: str, locked: bool, shuffle: bool) -> None:
    config = make_run(
        train__optimizer=optimizer,
        train__activation_reg=1.0,
        train__temporal_activation_reg=1.0,
        train__weight_decay=1e-4,
        train__variable_bptt=True,
        model__num_layers=2,
        model__locked_dropout=locked,
        model__embedding_dropout=0.1,
        model__input_dropout=0.1,
        model__hidden_dropout=0.1,
        model__output_dropout=0.1,
        model__weight_dropout=0.1,
        data__shuffle_articles=shuffle,
    )
    events = train(config, make_corpus(article_starts=(0, 50, 90)), META, None)
    steps = 0
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        # The losses are read at the end of the epoch, and only there.
        for event in events:
            assert isinstance(event, Step)
            steps += 1
    on_cpu = train(config, make_corpus(article_starts=(0, 50, 90)), torch.device("cpu"), None)
    assert steps == sum(1 for _ in itertools.takewhile(lambda event: not isinstance(event, Epoch), on_cpu))


def test_a_crossing_inside_a_step_would_be_seen() -> None:
    """The check can fail: reading one number from the device raises there."""
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.zeros((), device=META).item()
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.zeros(3, device=META) + torch.zeros(3)
