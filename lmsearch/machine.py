"""What this host has: devices for workers, and the kernel's count of processes ended for want of memory."""

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import IO

from lmsearch.config import DEVICES
from lmsearch.errors import DeviceError
from lmsearch.processes import python


def default_devices(device: str, workers: int | None) -> list[str]:
    """List the device of each worker: the GPUs in turn, otherwise the CPU; by default one worker per device.

    GPUs that another search of this user has come last, and by default only where all are in use. Raises `DeviceError`
    for a device that is not there.
    """
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", device) is None:
        raise DeviceError(f"no device is called {device!r}; there are: {', '.join(DEVICES)}")
    gpus = [] if device == "cpu" else [f"cuda:{number}" for number in range(_count_gpus())]
    if device in gpus:
        names = [device]
    elif device.startswith("cuda:") or (device == "cuda" and not gpus):
        raise DeviceError(f"the device {device} was asked for, and this machine has {len(gpus)} CUDA devices")
    else:
        free = [gpu for gpu in gpus if not is_in_use(gpu)]
        names = [*free, *(gpu for gpu in gpus if gpu not in free)] if workers else free or gpus
        names = names or ["cpu"]
    default = len(names) if names[0].startswith("cuda") else usable_cpus()
    return [names[number % len(names)] for number in range(workers or default)]


def hold_gpu(device: str) -> None:
    """Mark a GPU as in use by this process until it ends, so that other searches of this user take another one."""
    if (path := _lock_of(device)) is not None:
        with contextlib.suppress(OSError):
            file = path.open("a")
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            _held.append(file)


def is_in_use(device: str) -> bool:
    """Whether a worker of this user holds a GPU on this host; false for what is no GPU."""
    path = _lock_of(device)
    if path is None or not path.exists():
        return False
    with contextlib.suppress(OSError), path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


_held: list[IO[str]] = []  # open until this process ends


def _lock_of(device: str) -> Path | None:
    """Return the lock of a GPU, in a folder that is this user's alone; None where there is none to be had."""
    kind, _, number = device.partition(":")
    if kind != "cuda" or not number.isdecimal():
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")  # numbers, or names that begin with GPU- or MIG-
    index = int(number)
    name = visible[index].strip() if index < len(visible) and visible[index].strip() else number
    folder = Path(tempfile.gettempdir()) / f"lmsearch-gpus-{os.getuid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.lstat().st_uid == os.getuid() and not folder.is_symlink() and "/" not in name:
            return folder / f"{name}.lock"
    return None


def usable_cpus() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_running(process: int) -> bool:
    """Whether a process of this host is there and not merely unburied: one that died does nothing any more."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        return (
            Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
            != "Z"
        )
    except (OSError, IndexError):
        return True


def has_nvidia_driver() -> bool:
    """Whether NVIDIA's driver is on this host."""
    return shutil.which("nvidia-smi") is not None or Path("/dev/nvidiactl").exists()


def _count_gpus() -> int:
    """Return the number of GPUs that this process may use; asks a child, since PyTorch takes seconds to load."""
    if not has_nvidia_driver():
        return 0
    code = "import torch; print(torch.cuda.device_count())"
    process = subprocess.run(python("-c", code), capture_output=True, text=True, check=False)
    return int(process.stdout) if process.returncode == 0 else 0


def count_oom_kills(control: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the number of processes here that the kernel ended for want of memory; 0 where it does not say."""
    with contextlib.suppress(OSError):
        for controller, name in (("memory", "memory.oom_control"), ("", "memory.events")):
            found = re.search(r"^oom_kill (\d+)$", read_control_group(controller, name, control, root), re.MULTILINE)
            if found is not None:
                return int(found[1])
    return 0


def free_memory(meminfo: Path = Path("/proc/meminfo")) -> float | None:
    """Return the bytes that new processes may have; None where the system does not say."""
    if not meminfo.is_file():
        return None
    found = re.search(r"^MemAvailable: +(\d+) kB$", meminfo.read_text(encoding="utf-8"), re.MULTILINE)
    return None if found is None else 1024.0 * int(found[1])


def cpu_limit(control: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return how many processors this control group may use at a time; None without a limit."""
    # Version 2 has both numbers in one file, version 1 has a file for each.
    words = read_control_group("", "cpu.max", control, root).split() or [
        read_control_group("cpu", "cpu.cfs_quota_us", control, root),
        read_control_group("cpu", "cpu.cfs_period_us", control, root),
    ]
    return int(words[0]) / int(words[1]) if all(word.isdecimal() for word in words[:2]) else None


def memory_left(control: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the bytes that this control group may still take; None without a limit."""
    for controller, limit, used in (
        ("", "memory.max", "memory.current"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        words = [read_control_group(controller, name, control, root) for name in (limit, used)]
        # Version 1 writes "no limit" as a number beyond any memory.
        if all(word.isdecimal() for word in words) and int(words[0]) < 1 << 60:
            return float(max(0, int(words[0]) - int(words[1])))
    return None


def read_control_group(controller: str, name: str, control: Path, root: Path) -> str:
    """Read a file of this process's control group; "" where there is none."""
    lines = control.read_text(encoding="utf-8").splitlines() if control.is_file() else []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controller in controllers.split(","):
            # Inside a container the group's own folder may be the root of what is mounted.
            for path in (root / controller / group.lstrip("/") / name, root / controller / name):
                if path.is_file():
                    return path.read_text(encoding="utf-8").strip()
    return ""
