"""What a worker that a cluster places would find: the doctor's own checks, made in a job."""

import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmsearch.care.findings import CHECKS, OK, PROBLEM, Finding
from lmsearch.errors import LmsearchError
from lmsearch.launch import ray_core, slurm
from lmsearch.processes import python
from lmsearch.search.placement import Placement
from lmsearch.store.artifacts import ARTIFACTS, Artifacts
from lmsearch.version import __version__

WISHES = "LMSEARCH_DOCTOR"
"""The variable by which a job is told what is expected of its node, as JSON."""

_JOB_SECONDS = 180.0
_RUN_ONCE: dict[str, Callable[[Sequence[str], Placement, Mapping[str, str], float], str]] = {
    "slurm": slurm.run_once,
    "ray": ray_core.run_once,
}


def check_nodes(
    placement: Placement, storage: str, store_timeout: float, artifacts: Artifacts | None = None
) -> Iterator[Finding]:
    """Run the doctor where the launcher places a worker, and yield what it found there.

    `storage` is the store's URL, with its password: it travels in the environment.
    """
    mark = Path.cwd() / f".lmsearch-probe-{secrets.token_hex(4)}"
    mark.write_text(token := secrets.token_hex(8), encoding="utf-8")
    wishes = {"version": __version__, "gpus": placement.resources.gpus or 0, "mark": str(mark), "token": token}
    environment = dict(os.environ) | {"LMSEARCH_STORAGE": storage, WISHES: json.dumps(wishes)}
    environment |= {} if artifacts is None else {ARTIFACTS: artifacts.url}
    command = python("-m", "lmsearch.cli.main", "doctor", "--json", "--store-timeout", f"{store_timeout:g}s")
    try:
        said = _RUN_ONCE[placement.kind](command, placement, environment, _JOB_SECONDS)
        yield from _read(said)
    except LmsearchError as error:
        yield Finding(check="nodes", state=PROBLEM, text=str(error))
    finally:
        mark.unlink(missing_ok=True)


def _read(said: str) -> Iterator[Finding]:
    start = said.find("{")
    try:
        document: dict[str, Any] = json.JSONDecoder().raw_decode(said, max(0, start))[0]
        host, found = document["host"], document["checks"]
    except (ValueError, KeyError, TypeError):
        last = next((line for line in reversed(said.splitlines()) if line.strip()), "nothing")
        yield Finding(check="nodes", state=PROBLEM, text=f"lmsearch cannot be run on a node; it said: {last[:300]}")
        return
    for one in found:
        if one["check"] in CHECKS and one["check"] not in ("leases", "connections"):
            yield Finding(check="nodes", state=one["state"], text=f"on {host}: {one['check']}: {one['text']}")


def check_wishes(devices: Sequence[Finding], has_artifacts: bool = False) -> Iterator[Finding]:
    """In a job of `check_nodes`: check this node against what is expected of it; nothing elsewhere.

    With artifacts, hosts need share no folder.
    """
    try:
        wishes = json.loads(os.environ.get(WISHES, ""))
        version, gpus, mark, token = (wishes[name] for name in ("version", "gpus", "mark", "token"))
    except (ValueError, KeyError, TypeError):
        return
    if version != __version__:
        text = f"lmsearch {__version__} here, {version} where it was called; install the same"
        yield Finding(check="versions", state=PROBLEM, text=text)
    if gpus and not any("cuda:0" in finding.text for finding in devices):
        yield Finding(check="devices", state=PROBLEM, text=f"{gpus:g} GPUs a worker were asked for, and there is none")
    if has_artifacts:
        return
    path = Path(mark)
    try:
        shared = path.read_text(encoding="utf-8") == token
        draft = path.with_name(f"{path.name}-{socket.gethostname()}-{time.time_ns()}")
        draft.write_text("", encoding="utf-8")
        draft.unlink()
    except OSError as error:
        shared = False
        text = f"the folder {path.parent} of the search cannot be read and written here: {error.strerror}"
    else:
        text = f"the folder {path.parent} here is another one than where the search is called"
    if shared:
        yield Finding(
            check="disk", state=OK, text=f"the folder {path.parent} of the search is shared and can be written"
        )
    else:
        yield Finding(check="disk", state=PROBLEM, text=f"{text}; share a folder, or name --artifacts URL")
