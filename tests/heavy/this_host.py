"""This host as an engine: what holds for workers of a cluster holds for child processes too."""

import os
import signal
from pathlib import Path


class ThisHost:
    """The launcher `local`; its nodes are the worker processes of searches in one folder."""

    kind = "local"
    words: list[str] = []  # noqa: RUF012  (never changed)
    environment: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def left(self) -> list[str]:
        """List the workers' processes."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                mine = (path / "cwd").readlink() == self.folder
                words = (path / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if mine and b"lmsearch.cli.main" in words and b"worker" in words:
                found.append(path.name)
        return sorted(found)

    def lose_a_node(self) -> None:
        """End a worker as the kernel does."""
        os.kill(int(self.left()[0]), signal.SIGKILL)

    def heal(self) -> None:
        """Do nothing: its parent starts another."""

    def clear(self) -> None:
        """End all workers."""
        for process in self.left():
            os.kill(int(process), signal.SIGKILL)
