"""What this machine offers to a search: processors, memory, GPUs, and the versions of what is installed."""

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterator
from typing import Any

from lmsearch.care.findings import NOTE, OK, PROBLEM, UNCHECKED, Finding
from lmsearch.machine import cpu_limit, free_memory, has_nvidia_driver, memory_left, usable_cpus
from lmsearch.processes import python
from lmsearch.spelling import count, listed, spell_bytes

_TORCH_SECONDS = 120.0
_LEAST_MEMORY = 5e8  # bytes for one worker: PyTorch alone takes half of it
_SHOWN = ("optuna", "torch", "sqlalchemy", "psycopg")

# In a process of its own: PyTorch takes seconds to load, and a broken one may end its process.
_ASK_TORCH = """
import json, torch
def room(number):
    try:
        return torch.cuda.mem_get_info(number)[0]
    except RuntimeError:
        return None  # so full that not even asking has room
gpus = [(torch.cuda.get_device_name(n), room(n)) for n in range(torch.cuda.device_count())]
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus}))
"""


def check_devices() -> Iterator[Finding]:
    """Check processors, memory, PyTorch and its GPUs."""
    yield _processors()
    yield _memory()
    yield _torch()


def _processors() -> Finding:
    usable = usable_cpus()
    text = f"{count(usable, 'processor')} for this process, so `lmsearch run` starts as many workers on the CPU"
    limit = cpu_limit()
    if limit is not None and limit < usable:
        wanted = max(1, int(limit))
        text += f", but its control group may use {limit:g} at a time: give it --workers {wanted}"
        return Finding(check="devices", state=NOTE, text=text)
    return Finding(check="devices", state=OK, text=text)


def _memory() -> Finding:
    free, where = free_memory(), "memory"
    limit = memory_left()
    if limit is not None and (free is None or limit < free):
        free, where = limit, "memory in its control group"
    if free is None:
        return Finding(
            check="devices", state=UNCHECKED, text=f"free memory: {platform.system()} does not say it in /proc/meminfo"
        )
    if free < _LEAST_MEMORY:
        text = f"{spell_bytes(free)} of {where} are free, which is little for one worker; end something else"
        return Finding(check="devices", state=PROBLEM, text=text)
    return Finding(check="devices", state=OK, text=f"{spell_bytes(free)} of {where} are free")


def _torch() -> Finding:
    try:
        process = subprocess.run(
            python("-c", _ASK_TORCH), capture_output=True, text=True, check=False, timeout=_TORCH_SECONDS
        )
    except subprocess.TimeoutExpired:
        text = f"PyTorch was not there after {_TORCH_SECONDS:.0f} s; is the disk that it lies on slow?"
        return Finding(check="devices", state=PROBLEM, text=text)
    if process.returncode != 0:
        words = process.stderr.strip().splitlines() or [f"its process ended with {process.returncode}"]
        text = f"PyTorch cannot be loaded ({words[-1]}); reinstall it with: pip install --force-reinstall torch"
        return Finding(check="devices", state=PROBLEM, text=text)
    found: dict[str, Any] = json.loads(process.stdout)
    gpus = [
        f"cuda:{number} {name}" + ("" if room is None else f" ({spell_bytes(room)} free)")
        for number, (name, room) in enumerate(found["gpus"])
    ]
    if gpus:
        return Finding(check="devices", state=OK, text=f"PyTorch {found['version']} uses {listed(gpus)}")
    if not has_nvidia_driver():
        text = f"PyTorch {found['version']} loads; no NVIDIA GPU is here, so trials run on the CPU"
        return Finding(check="devices", state=OK, text=text)
    why = "is built without CUDA: install one with it" if found["cuda"] is None else "finds none: check nvidia-smi"
    text = f"NVIDIA's driver is here, but PyTorch {found['version']} {why}"
    return Finding(check="devices", state=PROBLEM, text=text)


def check_versions() -> Iterator[Finding]:
    """Compare what is installed with what lmsearch asks for."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        itself = importlib.metadata.metadata("lmsearch")
    except importlib.metadata.PackageNotFoundError:
        text = (
            "lmsearch itself is not installed, so its requirements are not known here; install it with: pip install ."
        )
        yield Finding(check="versions", state=UNCHECKED, text=text)
        return
    python = platform.python_version()
    required = itself["Requires-Python"]
    wrong = [] if SpecifierSet(required).contains(python) else [f"Python {python} is not {required}"]
    installed, missing = {}, []
    needed = [Requirement(text) for text in importlib.metadata.requires("lmsearch") or ()]
    needed = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    for one in needed:
        try:
            installed[one.name] = version = importlib.metadata.version(one.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{one.name} is missing")
            missing.append(f"{one}")
            continue
        if not one.specifier.contains(version, prereleases=True):
            wrong.append(f"{one.name} {version} is not {one.specifier}")
            missing.append(f"{one}")
    if wrong:
        remedy = f"pip install {' '.join(map(repr, missing))}" if missing else f"another Python, {required}"
        text = f"{listed(wrong)}, which lmsearch {itself['Version']} asks for; get it with: {remedy}"
        yield Finding(check="versions", state=PROBLEM, text=text)
    shown = ", ".join(f"{name} {installed[name]}" for name in _SHOWN if name in installed)
    text = f"lmsearch {itself['Version']}, Python {python}, {shown}"
    text += "" if wrong else f"; all {len(needed)} packages are in the ranges it asks for"
    yield Finding(check="versions", state=NOTE if wrong else OK, text=text)
