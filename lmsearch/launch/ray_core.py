"""Workers as actors of a Ray cluster: one detached actor each, which runs `lmsearch worker` on its node.

Ray Core alone: trials, budget and search stay in the store. Ray is an extra, `lmsearch[ray]`.
"""

import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmsearch import stopping
from lmsearch.errors import ConfigError, LmsearchError
from lmsearch.folders import LOGS
from lmsearch.launch.base import Exit, Placed
from lmsearch.search.placement import Placement, Resources
from lmsearch.version import __version__

_log = logging.getLogger(__name__)

_CONNECT_SECONDS = 15.0  # for a cluster to answer: Ray itself waits for minutes
_ANSWER_SECONDS = 60.0  # without an answer of an actor that has answered before
_LINGER_SECONDS = 20.0  # for which an actor whose worker has ended can still be asked how
_RESTARTS = 3  # of an actor whose node is lost, where no parent is left to start another
_NAMESPACE = "lmsearch"
_OPTIONS = ("address",)

WorkerWords = Callable[[str], Sequence[str]]
"""Returns the arguments of `lmsearch worker`, but for its name, from its device."""


class RayError(LmsearchError):
    """The Ray cluster cannot be reached, or refused what it was asked for."""


@dataclass
class Actor(Placed):
    """A worker that an actor runs; its name is known once the actor has answered."""

    handle: Any
    question: Any = None  # the answer that is waited for
    answers: int = 0


class WorkerActor:
    """Runs one worker as a child process; an actor that Ray restarts runs another one."""

    def __init__(self, name: str, words: Sequence[str], folder: str, environment: dict[str, str], version: str) -> None:
        import subprocess
        import tempfile

        from lmsearch.processes import python

        if version != __version__:
            raise RuntimeError(f"the node {socket.gethostname()} has lmsearch {__version__}, not {version}")
        self._name = f"{name}-{secrets.token_hex(2)}"
        logs = Path(folder) / "runs" / words[0] / LOGS
        try:
            logs.mkdir(parents=True, exist_ok=True)
        except OSError:  # this node does not share the folder: what must be shared is among the artifacts
            folder = tempfile.mkdtemp(prefix="lmsearch-")
            logs = Path(folder) / "runs" / words[0] / LOGS
            logs.mkdir(parents=True)
        theirs, self._ours = os.pipe()
        command = python("-m", "lmsearch.cli.main", "worker", *words, "--name", self._name)
        with (logs / f"{self._name}.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--parent-pipe", str(theirs)],
                cwd=folder,
                env=dict(os.environ) | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs,),
                start_new_session=True,
            )
        os.close(theirs)
        threading.Thread(target=self._leave, daemon=True).start()

    def _leave(self) -> None:
        """End the actor some time after its worker, so that it holds nothing of the cluster any more."""
        import ray

        self._process.wait()
        time.sleep(_LINGER_SECONDS)
        with contextlib.suppress(Exception):
            ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
        os._exit(0)

    def look(self) -> tuple[str, int | None]:
        """Return the worker's name and its exit code, None while it runs."""
        return self._name, self._process.poll()

    def signal(self, number: int) -> None:
        """Pass a signal on to the worker."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)


class RayLauncher:
    """Places workers as detached actors, which outlive the process that starts them."""

    kind = "ray"

    def __init__(
        self, key: str, folder: Path, placement: Placement, words: WorkerWords, environment: dict[str, str]
    ) -> None:
        self._prefix = f"lmsearch-{key}-"
        self._folder = folder
        self._words = words
        self._environment = environment
        self._placement = placement
        self._ray = _connect(placement)

    def start(self, devices: Sequence[str]) -> list[Actor]:
        """Start an actor for each device; the cluster runs those that it has room for."""
        return [self._start(device) for device in devices]

    def _start(self, device: str) -> Actor:
        name = f"{self._prefix}{secrets.token_hex(4)}"
        remote = self._ray.remote(WorkerActor).options(
            name=name,
            namespace=_NAMESPACE,
            lifetime="detached",
            max_restarts=_RESTARTS,
            max_concurrency=4,
            **_resources(self._placement.resources),
        )
        worker = f"ray-{name.removeprefix(self._prefix)}"
        handle = remote.remote(worker, list(self._words(device)), str(Path.cwd()), self._environment, __version__)
        return self._actor(name, handle)

    def find(self) -> list[Actor]:
        """List the workers of this study that the cluster has, at work or waiting for room."""
        found = []
        for one in self._ray.util.list_named_actors(all_namespaces=True):
            if one["namespace"] == _NAMESPACE and one["name"].startswith(self._prefix):
                with contextlib.suppress(ValueError):  # it has ended meanwhile
                    found.append(self._actor(one["name"], self._ray.get_actor(one["name"], namespace=_NAMESPACE)))
        return found

    def _actor(self, name: str, handle: Any) -> Actor:
        worker = f"ray-{name.removeprefix(self._prefix)}"
        return Actor(name=worker, log=self._folder / LOGS / f"{worker}.log", handle=handle)

    def look(self, placed: Actor) -> Exit | None:
        """Return how a worker ended; None while it runs, waits for room, or is not to be reached."""
        errors = self._ray.exceptions
        if placed.question is None:
            placed.question = placed.handle.look.remote()
        try:
            ready, _ = self._ray.wait([placed.question], timeout=0)
            if not ready:
                return None
            question, placed.question = placed.question, None
            name, code = self._ray.get(question, timeout=_ANSWER_SECONDS)
        except errors.ActorUnavailableError:
            placed.question = None  # its node is lost, and Ray starts it again
            return None
        except errors.RayActorError as error:
            return self._lost(placed, error)
        except errors.GetTimeoutError:
            return None
        placed.name, placed.log = name, placed.log.with_name(f"{name}.log")
        placed.answers += 1
        return None if code is None else Exit(code=code)

    def _lost(self, placed: Actor, error: Exception) -> Exit:
        """Return the end of an actor that is gone: how its worker left stands in the store, if it left by itself."""
        sentence = next((line for line in str(error).splitlines() if "lmsearch" in line and "node" in line), "")
        if placed.answers == 0 and sentence:
            raise RayError(sentence.strip().removeprefix("RuntimeError: "))
        return Exit(code=1)

    def signal(self, placed: Actor, number: int) -> None:
        """Pass a signal on; an actor that waits for room is taken back."""
        if number == 9 or placed.answers == 0:
            self._ray.kill(placed.handle, no_restart=True)
        else:
            placed.handle.signal.remote(number)

    def close(self, placed: Actor, wait: float) -> None:
        """Let go of a worker: after `wait` seconds end an actor that is still there."""
        end = time.monotonic() + wait
        while self.look(placed) is None and time.monotonic() < end:
            time.sleep(0.2)
        with contextlib.suppress(Exception):
            self._ray.kill(placed.handle, no_restart=True)


def _resources(resources: Resources) -> dict[str, Any]:
    found: dict[str, Any] = {"num_cpus": resources.cpus or 1, "num_gpus": resources.gpus or 0}
    return found if resources.memory is None else found | {"memory": _bytes(resources.memory)}


def run_once(command: Sequence[str], placement: Placement, environment: Mapping[str, str], seconds: float) -> str:
    """Run a command where a worker may be placed, return what it printed; raises `RayError`, also after `seconds`."""
    ray = _connect(placement)
    own = {name: text for name, text in environment.items() if name.startswith(("LMSEARCH_", "AWS_", "FSSPEC_"))}
    folder = str(Path.cwd())

    def run() -> str:
        import os
        import subprocess
        import sys
        from pathlib import Path

        words = [sys.executable, *command[1:]]
        place = folder if Path(folder).is_dir() else None  # where files are shared by a bucket, folders need not be
        done = subprocess.run(words, cwd=place, env=dict(os.environ) | own, capture_output=True, text=True, check=False)
        return done.stdout or done.stderr

    try:
        answer = ray.remote(run).options(max_retries=0, **_resources(placement.resources)).remote()
        return str(ray.get(answer, timeout=seconds))
    except ray.exceptions.GetTimeoutError as error:
        raise RayError(f"the cluster had no room for a worker within {seconds:.0f} s") from error
    except ray.exceptions.RayError as error:
        raise RayError(f"the cluster could not run a worker: {_one_sentence(error)}") from error


def _connect(placement: Placement) -> Any:
    """Connect to the cluster and return the module `ray`; raises `RayError` where it does not answer in time."""
    unknown = sorted(placement.options.keys() - set(_OPTIONS))
    if unknown:
        raise ConfigError(f"Ray has no option {unknown[0]}; there is: {', '.join(_OPTIONS)}")
    address = placement.options.get("address") or os.environ.get("RAY_ADDRESS", "")
    if not address:
        raise ConfigError(
            "name the Ray cluster: --launcher-option address=ray://HOST:10001 from elsewhere, HOST:6379 on one of its "
            "nodes, or auto for the cluster of this node"
        )
    try:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else a lost node fills the terminal
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")
        import ray
    except ImportError as error:
        raise ConfigError("Ray is not installed here; install it with: pip install 'lmsearch[ray]'") from error
    if ray.is_initialized():
        return ray
    _keep_quiet(ray)
    _probe(address)
    found: list[BaseException | None] = []

    def connect() -> None:
        try:
            ray.init(
                address=address,
                namespace=_NAMESPACE,
                log_to_driver=False,
                configure_logging=True,
                logging_level=logging.CRITICAL,
            )
            found.append(None)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    with _hushed():
        thread.start()
        thread.join(_CONNECT_SECONDS)
    stopping.take_back()  # Ray handles SIGTERM as a crash: it prints a stack, and the process aborts
    if not found:
        raise RayError(f"the Ray cluster {address} did not answer within {_CONNECT_SECONDS:.0f} s")
    if found[0] is not None:
        raise RayError(f"the Ray cluster {address} cannot be used: {_one_sentence(found[0])}") from found[0]
    return ray


def _keep_quiet(ray: Any) -> None:
    """Log what Ray would print into the terminal of whoever is connected: half a page for each worker that is lost.

    Ray has no setting for it; a later version that does it elsewhere prints again.
    """

    def log(data: Mapping[str, Any], *args: Any, **options: Any) -> None:
        _log.debug("Ray says: %s", " ".join(map(str, data.get("lines", ()))), extra={"event": "engine_said"})

    with contextlib.suppress(AttributeError):
        if callable(ray._private.worker.print_to_stdstream):
            ray._private.worker.print_to_stdstream = log


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Lose what Ray's C++ writes to the terminal while it connects; our own thread waits meanwhile."""
    kept = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        for descriptor in kept:
            os.dup2(nowhere.fileno(), descriptor)
    try:
        yield
    finally:
        for descriptor, copy in kept.items():
            os.dup2(copy, descriptor)
            os.close(copy)


def _probe(address: str) -> None:
    """Refuse an address at which nobody listens, before Ray waits for it for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # auto, or a name of the cluster's
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise RayError(f"no Ray cluster answers at {host}:{port}: {error.strerror or error}") from error


def _one_sentence(error: BaseException) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__


def _bytes(memory: str) -> int:
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    return int(memory[:-1]) * units[memory[-1]] if memory[-1] in units else int(memory) << 20
