"""The optimizers are PyTorch's, bit for bit, and load nothing of its compiler."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lmsearch.lm.optimizers import Optimizer
from tests.factories import make_run

CPU = torch.device("cpu")
THEIRS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD, "nt-asgd": torch.optim.SGD}


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((7, 5), (5,), (3, 2))]


def take_steps(ours: Optimizer, theirs: torch.optim.Optimizer, pairs: list[tuple[nn.Parameter, nn.Parameter]]) -> None:
    generator = torch.Generator().manual_seed(2)
    for step in range(1, 8):
        ours.learning_rate = 0.1 / step
        theirs.param_groups[0]["lr"] = 0.1 / step
        ours.zero_grad()
        theirs.zero_grad()
        for number, pair in enumerate(pairs):
            if number == 2 and step < 4:
                continue  # one that is without a gradient at first
            gradient = torch.randn(pair[0].shape, generator=generator)
            for one in pair:
                one.grad = gradient.clone()
        ours.step()
        theirs.step()


@pytest.mark.parametrize("name", THEIRS)
def test_steps_and_states_are_those_of_pytorchs_classes_also_after_a_restore(name: str) -> None:
    config = make_run(train__optimizer=name, train__weight_decay=1e-2).train
    mine, own = parameters(), parameters()
    ours = Optimizer(mine, config, CPU)
    theirs = THEIRS[name](own, lr=1.0, weight_decay=1e-2, fused=True)  # type: ignore[operator]
    pairs = list(zip(mine, own, strict=True))
    take_steps(ours, theirs, pairs)
    again = Optimizer(mine, config, CPU)
    saved = {number: {key: slot.clone() for key, slot in slots.items()} for number, slots in ours.slots.items()}
    again.restore(saved)
    take_steps(again, theirs, pairs)
    assert all(torch.equal(one, other) for one, other in pairs)
    state = theirs.state_dict()["state"]
    assert state.keys() == again.slots.keys()
    for number, slots in state.items():
        assert slots.keys() == again.slots[number].keys()
        for key, slot in slots.items():
            assert torch.equal(slot, again.slots[number][key]) and slot.dtype == again.slots[number][key].dtype
    assert all(torch.equal(slots[key], ours.slots[n][key]) for n, slots in saved.items() for key in slots)


def test_what_does_not_fit_is_refused() -> None:
    config = make_run(train__optimizer="adam").train
    with pytest.raises(RuntimeError):
        Optimizer(parameters(), config, CPU).restore({0: {"exp_avg": torch.zeros(2, 2)}})
    with pytest.raises(RuntimeError, match="there is no parameter 3"):
        Optimizer(parameters(), config, CPU).restore({3: {}})


def test_a_training_loads_no_compiler() -> None:
    code = """
import sys, torch
from lmsearch.lm.train import train
from tests.factories import make_corpus, make_run
for name in ("adam", "sgd", "nt-asgd"):
    assert list(train(make_run(train__optimizer=name), make_corpus(), torch.device("cpu"), None))
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert said.stdout.strip() == "[]"
