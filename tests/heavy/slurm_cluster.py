"""A small Slurm on this machine: a controller and two nodes with two pretended GPUs each, without accounting.

It needs Debian's packages slurm-wlm and munge, and root.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tests.dashboard.served import free_port

_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
SlurmctldPort={port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=10
SlurmctldTimeout=10
KillWait=20
MinJobAge=300
MpiDefault=none
SlurmdParameters=config_overrides
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class SlurmCluster:
    """Slurm's daemons; `environment` is what its commands need."""

    kind = "slurm"
    words: list[str] = ["--launcher", "slurm"]  # noqa: RUF012  (never changed)

    def __init__(self, folder: Path, cpus: int = 4) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        host = os.uname().nodename.partition(".")[0]
        nodes, gpus = [], []
        for number in (1, 2):
            nodes.append(
                f"NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs={cpus} "
                "RealMemory=4000 Gres=gpu:2 State=UNKNOWN"
            )
            for gpu in (0, 1):
                os.mknod(folder / f"gpu{number}{gpu}", 0o20666, os.makedev(1, 3))
            gpus.append(f"NodeName=n{number} Name=gpu File={folder}/gpu{number}[0-1]")
        (folder / "slurm.conf").write_text(
            _CONF.format(host=host, folder=folder, port=free_port(), nodes="\n".join(nodes))
        )
        (folder / "gres.conf").write_text("\n".join(gpus) + "\n")
        for name in ("state", "spool.n1", "spool.n2", "munge"):
            (folder / name).mkdir(mode=0o700)
        (folder / "munge/key").write_bytes(os.urandom(1024))
        (folder / "munge/key").chmod(0o400)

    def open(self) -> None:
        """Start everything and wait until both nodes are idle."""
        munge = self.folder / "munge"
        self.run(
            "munged", "--force", f"--key-file={munge}/key", f"--socket={munge}/socket", f"--pid-file={munge}/pid",
            f"--log-file={munge}/log", f"--seed-file={munge}/seed",
        )  # fmt: skip
        self.start_controller()
        for node in ("n1", "n2"):
            self.start_node(node)
        end = time.monotonic() + 60
        while self.run("sinfo", "--noheader", "--format=%T").split() != ["idle"]:
            assert time.monotonic() < end, self.run("sinfo", "--long")
            time.sleep(0.5)

    def start_controller(self) -> None:
        self.run("slurmctld")

    def kill_controller(self) -> None:
        os.kill(int((self.folder / "slurmctld.pid").read_text()), signal.SIGKILL)

    def start_node(self, node: str) -> None:
        self.run("slurmd", "-N", node)

    def kill_node(self, node: str) -> None:
        """End a node as a power cut does: its daemon, and whatever its jobs have started."""
        daemon = int((self.folder / f"slurmd.{node}.pid").read_text())
        os.kill(daemon, signal.SIGKILL)
        for process in self.processes(node):
            os.kill(process, signal.SIGKILL)

    def left(self) -> list[str]:
        """List tasks with their states: `17_3 RUNNING`."""
        return self.run("squeue", "--array", "--noheader", "--format=%i %T").splitlines()

    def lose_a_node(self) -> None:
        """End a node that has a worker, as a power cut does."""
        self._lost = next(node for node in self.run("squeue", "--array", "--noheader", "--format=%N").split())
        self.kill_node(self._lost)

    def heal(self) -> None:
        """Start the lost node again."""
        self.start_node(self._lost)

    def clear(self) -> None:
        """End all workers."""
        self.run("scancel", "--me", "--signal=KILL", "--full")
        self.run("scancel", "--me")

    def processes(self, node: str) -> list[int]:
        """List the processes of a node's jobs: those whose environment names it, and the daemons that started them."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                environment = (path / "environ").read_bytes().split(b"\0")
                words = (path / "cmdline").read_bytes()
            except OSError:
                continue
            mine = f"SLURM_CONF={self.folder}/slurm.conf".encode() in environment
            named = f"SLURMD_NODENAME={node}".encode() in environment
            if (mine and named) or (words.startswith(b"slurmstepd") and f"spool.{node}".encode() in words):
                found.append(int(path.name))
        return found

    def run(self, *words: str) -> str:
        """Run a command of Slurm's; return what it printed."""
        program = shutil.which(words[0], path=f"{os.environ['PATH']}:/usr/sbin")
        assert program is not None, f"{words[0]} is not installed: apt-get install slurm-wlm munge"
        environment = os.environ | self.environment
        said = subprocess.run([program, *words[1:]], env=environment, capture_output=True, text=True, check=False)
        assert said.returncode == 0, f"{words}\n{said.stdout}\n{said.stderr}"
        return said.stdout

    def close(self) -> None:
        """End every job and every daemon."""
        subprocess.run(["scancel", "--me", "--signal=KILL", "--full"], env=os.environ | self.environment, check=False)
        time.sleep(1)
        for node in ("n1", "n2"):
            for process in self.processes(node):
                _end(process)
        for path in (*self.folder.glob("slurmd.*.pid"), self.folder / "slurmctld.pid", self.folder / "munge/pid"):
            if path.exists():
                _end(int(path.read_text()))


def _end(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return
