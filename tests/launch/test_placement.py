"""Where workers are to run: options and files of a person's, and what is handed to a cluster."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lmsearch.errors import ConfigError
from lmsearch.launch.kubernetes import manifest
from lmsearch.launch.slurm import SlurmError, script
from lmsearch.search.placement import Placement, Resources, read_placement

CLUSTER = """
kind = "slurm"
gpus_per_worker = 1
cpus_per_worker = 4
memory_per_worker = "8G"
setup = ["module load python", "export A='b c'"]
[options]
partition = "gpu"
time = "4:00:00"
"""


def test_a_file_and_options_make_one_placement_and_the_command_gives_it_again(tmp_path: Path) -> None:
    path = tmp_path / "my-cluster.toml"
    path.write_text(CLUSTER)
    found = read_placement(str(path), Resources(cpus=2), options=["partition=long", "qos=low"], detach=True)
    assert (found.kind, found.resources) == ("slurm", Resources(gpus=1.0, cpus=2, memory="8G"))
    assert found.options == {"partition": "long", "time": "4:00:00", "qos": "low"}
    words = found.words()
    assert words == [
        *("--launcher", str(path), "--cpus-per-worker", "2"),
        *("--launcher-option", "partition=long", "--launcher-option", "qos=low", "--detach"),
    ]
    again = read_placement(words[1], Resources(cpus=int(words[3])), options=[words[5], words[7]], detach=True)
    assert again == found


def test_the_local_launcher_takes_nothing_of_a_clusters() -> None:
    assert read_placement("local").words() == []
    for asked in ({"resources": Resources(gpus=1.0)}, {"options": ["partition=gpu"]}, {"detach": True}):
        with pytest.raises(ConfigError, match="for a cluster"):
            read_placement("local", **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("kind = 'slrm'", "no launcher is called 'slrm'; did you mean slurm"),
        ("kind = 'slurm'\npartition = 'gpu'", "unknown key partition"),
        ("kind = 'slurm'\ngpus_per_worker = 'two'", "must be a number"),
        ("kind = 'slurm'\ncpus_per_worker = true", "must be of type int"),
        ("kind = 'slurm'\nmemory_per_worker = '8 gigabytes'", "no size of memory"),
        ("kind = 'slurm'\nsetup = [\"a\\nb\"]", "one line of shell"),
        ("kind = 'slurm'\nsetup = [1]", "list of lines of shell"),
        ("kind = 'slurm'\n[options]\n'a b' = 'x'", "cannot be"),
        ("kind = 'slurm'\n[options]\npartition = ['gpu']", "a text or a number"),
        ("kind = ", "no file that describes a launcher"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_what_is_wrong(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        read_placement(str(path))


def the_script(placement: Placement, workers: int = 3) -> str:
    words = ["--corpus", "my text/it's"]
    return script("my study", "key", Path("runs/x"), placement, lambda device: ["s", *words], ["auto"] * workers)


def test_the_script_for_slurm_is_shell_with_the_options_the_setup_and_the_worker_quoted(tmp_path: Path) -> None:
    path = tmp_path / "my-cluster.toml"
    path.write_text(CLUSTER)
    text = the_script(read_placement(str(path)))
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    lines = text.splitlines()
    for line in ("array=0-2", "gres=gpu:1", "cpus-per-task=4", "mem=8G", "partition=gpu", "time=4:00:00"):
        assert f"#SBATCH --{line}" in lines
    assert '#SBATCH --job-name="lmsearch-my study"' in lines and "#SBATCH --comment=lmsearch:key" in lines
    assert lines.index("module load python") < next(n for n, line in enumerate(lines) if "lmsearch.cli.main" in line)
    assert """--corpus 'my text/it'"'"'s' --name "$name" &""" in text


def test_slurm_gives_no_part_of_a_gpu() -> None:
    with pytest.raises(SlurmError, match="gres=shard:1"):
        the_script(Placement(kind="slurm", resources=Resources(gpus=0.5)))


def the_job(**changes: Any) -> dict[str, Any]:
    given = {"study": "my study", "image": "i", "secret": "lmsearch", "claim": "work", "workers": 8}
    resources = Resources(gpus=1.0, cpus=2, memory="8G")
    return manifest(**{**given, "resources": resources, "words": ["my study"], **changes})  # type: ignore[arg-type]


def test_the_job_for_kubernetes_has_no_secret_in_it_and_one_index_a_worker() -> None:
    job = the_job()
    assert job["metadata"]["name"] == "lmsearch-my-study" and job["spec"]["completions"] == 8
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["env"][0]["valueFrom"] == {"secretKeyRef": {"name": "lmsearch", "key": "url"}}
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 1, "memory": "8Gi"}
    assert "postgresql" not in json.dumps(job)
    assert "envFrom" not in container
    (container,) = the_job(credentials="s3-keys")["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "s3-keys"}}]
    assert the_job(claim=None)["spec"]["template"]["spec"]["volumes"] == [{"name": "work", "emptyDir": {}}]


@pytest.mark.parametrize("changes", [{"secret": "My Secret"}, {"claim": "-x"}, {"study": "тест"}])
def test_a_name_that_kubernetes_does_not_take_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Kubernetes takes no name such as"):
        the_job(**changes)
