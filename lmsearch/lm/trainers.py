"""The trainers that there are, by name. Needs no PyTorch to be imported."""

from collections.abc import Callable

from lmsearch.lm.sleeper import SleepingTrainer
from lmsearch.lm.trainer import Trainer


def _lstm(device: str) -> Trainer:
    from lmsearch.lm.lstm import LstmTrainer  # loads PyTorch

    return LstmTrainer(device)


TRAINERS: dict[str, Callable[[str], Trainer]] = {"lstm": _lstm, "sleep": SleepingTrainer}
"""Each opens a trainer on a device by its name. Raises `DeviceError`."""
