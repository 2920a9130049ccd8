"""The commands of docs/clusters.md, each as it stands there but for the names of one's own cluster."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bureau import wait_for
from tests.factories import TINY_STUDY, write_study
from tests.heavy.ray_cluster import RayCluster
from tests.heavy.s3_server import S3Server
from tests.heavy.slurm_cluster import SlurmCluster

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]

PAGE = (Path(__file__).parents[2] / "docs/clusters.md").read_text(encoding="utf-8")
NOT_RUN = ("pip install ", "kubectl create ")
"""How the commands begin that the page says are not run here."""


def section(title: str) -> str:
    """Return what stands below a heading of the page."""
    return re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:][[*titles()].index(title)]


def titles() -> list[str]:
    return re.findall(r"^## (.+)$", PAGE, re.MULTILINE)


def commands(text: str) -> list[str]:
    """List the commands of a section's blocks, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.partition("   #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(NOT_RUN)]


class Reader:
    """Somebody who follows the page, with one's own names in place of the page's."""

    def __init__(self, folder: Path, names: dict[str, str], environment: dict[str, str]) -> None:
        self.folder = folder
        self.names = names
        self.environment = dict(os.environ) | environment
        write_study(folder, TINY_STUDY.replace("epochs = 3", "epochs = 30"), "my-study.toml")
        (folder / "bin").mkdir()
        (folder / "bin/lmsearch").write_text(
            f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m lmsearch.cli.main "$@"\n'
        )
        (folder / "bin/lmsearch").chmod(0o755)
        self.environment["PATH"] = f"{folder / 'bin'}:{self.environment['PATH']}"
        self.environment["LMSEARCH_CACHE"] = str(folder / "cache")

    def do(self, command: str, cwd: Path | None = None) -> str:
        """Run a command of the page and return what it said."""
        for theirs, own in self.names.items():
            command = command.replace(theirs, own)
        if command.startswith("export "):
            name, _, value = command.removeprefix("export ").partition("=")
            self.environment[name] = value
            return ""
        said = subprocess.run(
            ["bash", "-c", command],
            cwd=cwd or self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )
        assert said.returncode == 0, f"{command}\n{said.stdout}\n{said.stderr}"
        return said.stdout


@pytest.fixture
def names(postgres_url: str) -> dict[str, str]:
    return {"postgresql://me:secret@db.example/lmsearch": postgres_url, "--workers 16": "--workers 2"}


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3Server]:
    found = S3Server(tmp_path)
    yield found
    found.close()


def test_every_section_with_commands_is_followed_here() -> None:
    assert [title for title in titles() if commands(section(title))] == [
        "Two URLs and nothing else",
        "Slurm",
        "Ray",
        "Kubernetes",
    ]
    assert "Not run here" in PAGE


def test_two_urls_and_nothing_else(tmp_path: Path, names: dict[str, str], s3: S3Server) -> None:
    reader = Reader(tmp_path, names | {"s3://my-bucket/lmsearch": s3.url, "--workers 4": "--workers 2"}, s3.environment)
    storage, artifacts, run, worker = commands(section("Two URLs and nothing else"))
    reader.do(storage)
    reader.do(artifacts)
    assert "3 of 3 trials" in reader.do(run)
    reader.do("lmsearch enqueue my-study model.output_dropout=0.3")
    (tmp_path / "empty").mkdir()
    reader.environment["LMSEARCH_CACHE"] = str(tmp_path / "empty/cache")
    reader.do(worker, cwd=tmp_path / "empty")
    assert "4 of 4 trials, 4 complete" in reader.do("lmsearch status my-study")
    reader.do("lmsearch best my-study", cwd=tmp_path / "empty")
    assert (tmp_path / "empty/runs/my-study/best-model/model.safetensors").exists()


def test_slurm(tmp_path: Path, names: dict[str, str], slurm: SlurmCluster) -> None:
    text = section("Slurm")
    own = {"partition=gpu": "partition=main", "STUDY": "my-study"}
    reader = Reader(tmp_path, names | own, slurm.environment)
    (described,) = re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    described = described.replace('partition = "gpu"', 'partition = "main"').replace('"8G"', '"1G"')
    (tmp_path / "my-cluster.toml").write_text(described)
    storage, run, from_file = commands(text)
    reader.do(storage)
    assert "3 of 3 trials, 3 complete" in reader.do(run)
    assert "6 of 6 trials, 6 complete" in reader.do(f"{from_file} --more 3")
    in_table = dict(re.findall(r"^\| (.+?) \| .*?`(lmsearch [^`]+)`", text, re.MULTILINE))
    assert {"to see what waits, and why", "to stop", "a header of your own"} <= set(in_table)
    assert "6 of 6 trials" in reader.do(in_table["to see what waits, and why"])
    reader.do(in_table["a header of your own"])
    reader.do("lmsearch enqueue my-study model.output_dropout=0.3")
    reader.do("sbatch workers.sbatch")
    wait_for(lambda: "7 of 7 trials" in reader.do("lmsearch status my-study"), 120)
    assert "is stopped" in reader.do(in_table["to stop"])
    wait_for(lambda: not slurm.left(), 60)


def test_ray(tmp_path: Path, names: dict[str, str], ray_cluster: RayCluster) -> None:
    own = {"ray://head.example:10001": ray_cluster.client, "--workers 8": "--workers 2"}
    reader = Reader(tmp_path, names | own, ray_cluster.environment)
    storage, run = commands(section("Ray"))
    reader.do(storage)
    assert "3 of 3 trials, 3 complete" in reader.do(run)
    wait_for(lambda: not ray_cluster.left(), 90)


def test_kubernetes(tmp_path: Path, names: dict[str, str]) -> None:
    """What `kubectl` is given; the Job itself is validated in test_kubernetes.py."""
    reader = Reader(tmp_path, names, {})
    reader.do("export LMSEARCH_STORAGE=postgresql://me:secret@db.example/lmsearch")
    reader.do("lmsearch run my-study.toml --workers 1 --trials 1")
    (script,) = commands(section("Kubernetes"))
    command, pipe, kubectl = script.rpartition(" | ")
    assert pipe and kubectl == "kubectl apply -f -"
    assert '"kind": "Job"' in reader.do(command)
