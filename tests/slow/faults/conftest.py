"""Disks of a test's own, which it may fill and make read-only."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


class Disk:
    """A file system in memory, of so many megabytes."""

    def __init__(self, path: Path, megabytes: int) -> None:
        self.path = path
        path.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "lmsearch-test", str(path)]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("not tested: full and read-only disks, since nothing may be mounted here")

    def fill(self) -> None:
        """Leave no byte free."""
        with (self.path / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
            for size in (1 << 16, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def free(self) -> None:
        (self.path / "filler").unlink(missing_ok=True)

    def make_read_only(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(self.path)], check=True)

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=True)


@pytest.fixture
def mount_disk(tmp_path: Path) -> Iterator[Callable[[int], Disk]]:
    """Mount small disks."""
    mounted: list[Disk] = []

    def make(megabytes: int) -> Disk:
        mounted.append(Disk(tmp_path / f"disk{len(mounted)}", megabytes))
        return mounted[-1]

    yield make
    for disk in mounted:
        disk.close()
