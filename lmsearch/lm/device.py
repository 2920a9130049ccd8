"""The device on which a model is trained or used."""

import torch

from lmsearch.config import DEVICES
from lmsearch.errors import DeviceError


def open_device(name: str) -> torch.device:
    """Open `cpu`, `cuda`, `cuda:1` or `auto` (a GPU where there is one); raises `DeviceError`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"no device is called {name!r}; there are: {', '.join(DEVICES)}") from error
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise DeviceError(f"the device {name} was asked for, and this machine has {count} CUDA devices")
        device = torch.device("cuda", device.index or 0)  # one name for one device
        torch.cuda.init()  # type: ignore[no-untyped-call]  # what counts its memory does not do so by itself
        torch.set_float32_matmul_precision("high")  # TF32 products
    elif device.type != "cpu":
        raise DeviceError(f"the device {name!r} is not supported; there are: {', '.join(DEVICES)}")
    return device
