"""Memory: whether an error means that there was not enough, and how much was used."""

import contextlib
import gc
import resource
import sys
from pathlib import Path

import torch

_WORDS = (
    "can't allocate memory",  # PyTorch on a CPU
    "not enough memory",
    "bad_alloc",
    "out of memory",  # CUDA where it is not torch.OutOfMemoryError
    "ALLOC_FAILED",  # cuBLAS and cuDNN
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory could not be had, on the device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def begin_measuring(device: torch.device) -> None:
    """Let `peak_memory` count from now on, where the system can; give back what an earlier trial left."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # then it counts from the start of the process
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the high-water mark


def peak_memory(device: torch.device) -> int:
    """Give the most memory used since `begin_measuring`, in bytes: the device's, or on a CPU the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(line.split()[1])
