"""Memory: whether an error means that there was not enough, and how much was used. Needs no PyTorch on a CPU."""

import contextlib
import gc
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_WORDS = (
    "can't allocate memory",  # PyTorch on a CPU
    "not enough memory",
    "bad_alloc",
    "out of memory",  # CUDA, of which torch.OutOfMemoryError is a RuntimeError
    "ALLOC_FAILED",  # cuBLAS and cuDNN
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory could not be had, on the device or on the host."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def begin_measuring(device: "torch.device | None") -> None:
    """Let `peak_memory` count from now on, where the system can; release what an earlier trial left. None: the CPU."""
    gc.collect()
    if device is not None and device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # then it counts from the start of the process
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the high-water mark


def peak_memory(device: "torch.device | None") -> int:
    """Return the most memory used since `begin_measuring`, in bytes: the device's, or on a CPU the process's."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(line.split()[1])
