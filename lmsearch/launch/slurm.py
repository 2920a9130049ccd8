"""Workers as jobs of Slurm: one task of a job array each, by sbatch, squeue, scontrol and scancel.

No accounting is needed: what squeue no longer lists, scontrol still knows for a while, and how a worker left stands in
the store.
"""

import logging
import re
import secrets
import shlex
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmsearch.errors import LmsearchError
from lmsearch.folders import LOGS, make_folder
from lmsearch.launch.base import Exit, Placed
from lmsearch.processes import python
from lmsearch.search.placement import Placement
from lmsearch.spelling import count

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 2.0  # between two looks at the queue
_CALL_SECONDS = 60.0  # for one command of Slurm's
_GRACE = 90  # seconds before the time limit at which Slurm asks the worker to save
_MARK = "lmsearch:"  # begins the comment of our jobs; the study's key follows
_ALIVE = frozenset({"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING",
                    "STAGE_OUT", "RESIZING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"})  # fmt: skip
_TASK = re.compile(r"(?P<array>\d+)_(?P<task>\d+)")

_SIGNALS = {2: "TERM", 1: "TERM", 15: "TERM", 10: "TERM"}  # once asked to stop, a worker saves, however it was asked

WorkerWords = Callable[[str], Sequence[str]]
"""Returns the arguments of `lmsearch worker`, but for its name, from its device."""


class SlurmError(LmsearchError):
    """Slurm refused what it was asked for, or is not there."""


@dataclass
class Job(Placed):
    """A worker that is one task of a job array."""

    task: str  # as squeue names it: 17_3


@dataclass(frozen=True, kw_only=True)
class Queued:
    """What squeue says of one task."""

    task: str
    state: str
    reason: str
    restarts: int


class SlurmLauncher:
    """Submits workers as tasks of job arrays, which outlive the process that submits them."""

    kind = "slurm"

    def __init__(self, study: str, key: str, folder: Path, placement: Placement, words: WorkerWords,
                 environment: Mapping[str, str]) -> None:  # fmt: skip
        self._study = study
        self._key = key
        self._folder = folder
        self._placement = placement
        self._words = words
        self._environment = dict(environment)
        self._queue: dict[str, Queued] = {}
        self._looked = -_LOOK_SECONDS
        self._is_away = False

    def start(self, devices: Sequence[str]) -> list[Job]:
        """Submit one array with a task for each device; raises `SlurmError` where Slurm refuses it."""
        make_folder(self._folder)
        (self._folder / LOGS).mkdir(parents=True, exist_ok=True)
        text = script(self._study, self._key, self._folder, self._placement, self._words, devices)
        array = _call(["sbatch", "--parsable"], self._environment, text).strip().partition(";")[0]
        if not array.isdigit():
            raise SlurmError(f"sbatch did not name the job that it submitted, but said {array!r}")
        self._looked = -_LOOK_SECONDS
        return [self._job(f"{array}_{number}", 0) for number in range(len(devices))]

    def find(self) -> list[Job]:
        """List the workers of this study that are in Slurm's queue already."""
        return [self._job(one.task, one.restarts) for one in queued(self._key, self._environment)]

    def _job(self, task: str, restarts: int) -> Job:
        name = f"slurm-{task.replace('_', '-')}-{restarts}"
        return Job(name=name, log=self._folder / LOGS / f"slurm-{task}.log", task=task)

    def look(self, placed: Job) -> Exit | None:
        """Return how a job ended; None while Slurm has it, or does not answer."""
        if not self._see():
            return None
        if (one := self._queue.get(placed.task)) is not None:
            placed.name = self._job(one.task, one.restarts).name  # a job that was requeued works under another
            return None
        try:
            return _exit(_call(["scontrol", "show", "job", "--oneliner", placed.task], self._environment))
        except SlurmError:
            return Exit(code=1)  # forgotten by now; how the worker left stands in the store

    def _see(self) -> bool:
        """Look at the queue, but not too often; false where Slurm does not answer, which is logged once."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return not self._is_away
        self._looked = time.monotonic()
        try:
            self._queue = {one.task: one for one in queued(self._key, self._environment)}
        except SlurmError as error:
            if not self._is_away:
                message = "Slurm does not answer; its jobs continue, and it is asked again: %s"
                _log.warning(message, error, extra={"event": "engine_away", "launcher": self.kind})
            self._is_away = True
            return False
        self._is_away = False
        return True

    def signal(self, placed: Job, number: int) -> None:
        """Pass a signal on to a worker that runs; a job that still waits is cancelled."""
        one = self._queue.get(placed.task)
        words = (
            ["scancel"]
            if one is None or one.state == "PENDING"
            else ["scancel", "--full", f"--signal={_SIGNALS.get(number, number)}"]
        )
        try:
            _call([*words, placed.task], self._environment)
        except SlurmError as error:
            _log.warning("%s", error, extra={"event": "engine_away", "launcher": self.kind})

    def close(self, placed: Job, wait: float) -> None:
        """Let go of a worker: after `wait` seconds cancel a job that is still there."""
        end = time.monotonic() + wait
        while self.look(placed) is None and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
        if self.look(placed) is None:
            self.signal(placed, 9)


def script(study: str, key: str, folder: Path, placement: Placement, words: WorkerWords,
           devices: Sequence[str]) -> str:  # fmt: skip
    """Return the batch script that is submitted: an array with a task for each device.

    The store's URL comes by the environment, which sbatch hands on; it stands in no script.
    """
    options = {
        "job-name": f"lmsearch-{study}",
        "comment": f"{_MARK}{key}",
        "array": f"0-{len(devices) - 1}",
        "chdir": str(Path.cwd()),
        "output": str(folder.resolve() / LOGS / "slurm-%A_%a.log"),
        "open-mode": "append",
        "signal": f"B:USR1@{_GRACE}",
    }
    options |= _options(placement)
    lines = ["#!/bin/bash", *_header(options), "#SBATCH --requeue"]
    name = "slurm-${SLURM_ARRAY_JOB_ID}-${SLURM_ARRAY_TASK_ID}-${SLURM_RESTART_COUNT:-0}"
    worker = python("-m", "lmsearch.cli.main", "worker", *words(devices[0]))
    spelled = f'{shlex.join(worker)} --name "$name"'
    return "\n".join([*lines, *placement.setup, f'name="{name}"', *_RUN.format(worker=spelled).splitlines(), ""])


def _options(placement: Placement) -> dict[str, str]:
    """Return the options of sbatch for what a worker gets, and those of the person's own."""
    options, resources = {}, placement.resources
    if resources.gpus:
        if resources.gpus != int(resources.gpus):
            raise SlurmError(
                f"Slurm gives whole GPUs, not {resources.gpus:g}; where your site shares them, leave --gpus-per-worker "
                "out and give --launcher-option gres=shard:1"
            )
        options["gres"] = f"gpu:{resources.gpus:.0f}"
    if resources.cpus is not None:
        options["cpus-per-task"] = str(resources.cpus)
    if resources.memory is not None:
        options["mem"] = resources.memory
    return options | dict(placement.options)


def _header(options: Mapping[str, str]) -> list[str]:
    return [f"#SBATCH --{name}={_plain(value)}" for name, value in options.items()]


_RUN = """export LMSEARCH_LAUNCHER=slurm OMP_NUM_THREADS=1
again=
{worker} &
worker=$!
trap 'again=1; kill -USR1 $worker' USR1  # the time limit is near: the worker saves, and the job is queued again
trap true TERM  # reaches the worker too
while true; do
    wait $worker
    code=$?
    kill -0 $worker 2> /dev/null || break  # else a trap has ended the wait
done
[ -z "$again" ] || [ $code = 0 ] || scontrol requeue "$SLURM_JOB_ID"
exit $code"""


def run_once(command: Sequence[str], placement: Placement, environment: Mapping[str, str], seconds: float) -> str:
    """Run a command in a job like a worker's and return what it printed; raises `SlurmError`, also after `seconds`."""
    output = Path.cwd() / f".lmsearch-probe-{secrets.token_hex(4)}.out"
    head = _options(placement) | {"job-name": "lmsearch-doctor", "chdir": str(Path.cwd()), "output": str(output)}
    lines = ["#!/bin/bash", *_header(head), *placement.setup, shlex.join(command), ""]
    job = _call(["sbatch", "--parsable"], environment, "\n".join(lines)).strip().partition(";")[0]
    end = time.monotonic() + seconds
    try:
        while rows := _call(["squeue", "--me", "--noheader", "--format=%i|%T|%r"], environment).splitlines():
            mine = [row.split("|") for row in rows if row.split("|")[0] == job]
            if not mine:
                break
            if time.monotonic() > end:
                _call(["scancel", job], environment)
                raise SlurmError(f"the job waited for {seconds:.0f} s ({mine[0][1]}: {mine[0][2]}); it is cancelled")
            time.sleep(_LOOK_SECONDS)
        time.sleep(_LOOK_SECONDS)  # for a shared folder to show the file
        return output.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError as error:
        raise SlurmError(f"the output of the job did not appear: {Path.cwd()} is not shared with its node") from error
    finally:
        output.unlink(missing_ok=True)


def _plain(value: str) -> str:
    return value if re.fullmatch(r"[\w.,:;=/%+@*-]+", value) else '"' + value.replace('"', "") + '"'


def queued(key: str, environment: Mapping[str, str] | None = None) -> list[Queued]:
    """List the tasks of a study that Slurm has, waiting or running; raises `SlurmError`."""
    # Fields of a fixed width may be cut; those of --format are whole, but know no count of restarts.
    rows = _call(["squeue", "--me", "--array", "--noheader", "--format=%i|%T|%r|%k"], environment).splitlines()
    found = [row.split("|", 3) for row in rows]
    mine = [(task, state, reason) for task, state, reason, comment in found if comment == f"{_MARK}{key}"]
    restarts = _restarts(environment) if mine else {}
    return [
        Queued(task=task, state=state, reason=reason, restarts=restarts.get(task, 0))
        for task, state, reason in mine
        if state in _ALIVE and _TASK.fullmatch(task)
    ]


def _restarts(environment: Mapping[str, str] | None) -> dict[str, int]:
    rows = _call(["squeue", "--me", "--array", "--noheader", "--Format=JobArrayID:40,RestartCnt:12"], environment)
    pairs = (row.split() for row in rows.splitlines())
    return {task: int(count) for task, count in pairs if count.isdigit()}


def _exit(shown: str) -> Exit | None:
    """Read what scontrol says of a job that the queue no longer lists."""
    fields = dict(part.partition("=")[::2] for part in shown.split())
    state = fields.get("JobState", "").partition("+")[0]
    if state in _ALIVE:
        return None
    code, _, number = fields.get("ExitCode", "0:0").partition(":")
    if state == "COMPLETED":
        return Exit(code=0)
    if state == "OUT_OF_MEMORY":
        return Exit(code=-9, out_of_memory=True)
    if state == "CANCELLED":
        return Exit(code=-15, is_cancelled=True)
    return Exit(code=int(code)) if state == "FAILED" and code != "0" else Exit(code=-(int(number or 0) or 9))


def _call(words: Sequence[str], environment: Mapping[str, str] | None = None, text: str | None = None) -> str:
    """Run a command of Slurm's and return what it printed; raises `SlurmError` with its words."""
    try:
        called = subprocess.run(
            words,
            input=text,
            env=None if environment is None else dict(environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=_CALL_SECONDS,
        )
    except FileNotFoundError as error:
        raise SlurmError(f"{words[0]} is not installed here; run this where jobs of Slurm are submitted") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{words[0]} did not answer within {_CALL_SECONDS:.0f} s") from error
    if called.returncode != 0:
        said = " ".join(called.stderr.split()) or f"exit code {called.returncode}"
        raise SlurmError(f"{words[0]} failed: {said}")
    return called.stdout


def waiting_lines(key: str, asked: bool) -> list[str]:
    """Say how many workers of a study wait in Slurm's queue, and for what; nothing where there is no Slurm.

    That Slurm does not answer is said only where `asked` says that it was asked for workers of the study before.
    """
    if shutil.which("squeue") is None:
        return []
    try:
        found = queued(key)
    except SlurmError as error:
        return [f"Slurm: {error}"] if asked else []
    reasons = Counter(one.reason for one in found if one.state == "PENDING")
    return [f"waiting in Slurm: {count(number, 'worker')} ({reason})" for reason, number in sorted(reasons.items())]
