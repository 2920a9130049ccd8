"""Every command of the documentation, run: the console blocks of its pages, and the examples of each command's help.

A tiny study stands for `default` and `my-study.toml`, so that minutes become seconds; a real PostgreSQL stands for
the server of the examples.
"""

import inspect
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest

from lmsearch.cli.main import cli
from tests.conftest import Cli
from tests.factories import TINY_STUDY, write_corpus

ROOT = Path(__file__).parents[3]
PAGES = (
    pytest.param("getting-started.md", marks=pytest.mark.heavy),
    pytest.param("samplers-and-pruners.md", marks=pytest.mark.heavy),
    pytest.param("reading-a-report.md", marks=pytest.mark.heavy),
    "texts.md",
)
STUDY = (
    TINY_STUDY.replace("trials = 3", "trials = 14")
    .replace("epochs = 3", "epochs = 2")
    .replace("num_layers = 1", "num_layers = 1\nweight_dropout = { low = 0.0, high = 0.7 }")
)

pytestmark = pytest.mark.timeout(600)


def prepare(folder: Path) -> None:
    """Put what the examples name into a folder."""
    write_corpus(folder / "corpus")
    (folder / "default").write_text(STUDY)
    (folder / "my-study.toml").write_text(STUDY)
    (folder / "token").write_text("correct-horse-battery-staple\n")
    text = (folder / "corpus" / "valid.txt").read_text()
    (folder / "my-text.txt").write_text(text)
    (folder / "my-novel.txt").write_text(text * 3)
    (folder / "bin").mkdir()
    command = folder / "bin" / "lmsearch"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m lmsearch.cli.main "$@"\n')
    command.chmod(0o755)


def shell(folder: Path, command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    words = ["bash", "-euc", command]
    return subprocess.run(
        words,
        cwd=folder,
        env=dict(os.environ) | {"PATH": path} | environment,
        input="y\n",  # deleting asks
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("page", PAGES)
def test_the_console_blocks_of_a_page_run_one_after_the_other(page: str, tmp_path: Path) -> None:
    prepare(tmp_path)
    _prepare_predictions_and_arrays(tmp_path)
    blocks = re.findall(r"^```console\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        for command in re.findall(r"^\$ (.*)$", block, re.MULTILINE):
            said = shell(tmp_path, command)
            assert said.returncode == 0, f"{command}\n{said.stdout}\n{said.stderr}"


def examples() -> Iterator[str]:
    """Give the examples of all commands, in the order of the help."""

    def walk(command: click.Command) -> Iterator[str]:
        if isinstance(command, click.Group):
            for inner in command.commands.values():
                yield from walk(inner)
        for line in inspect.cleandoc(command.help or "").splitlines():
            if line.startswith("    lmsearch "):
                yield line.strip()

    yield from walk(cli)


REFUSED = {
    "lmsearch retry default --failed": "has no failed trial",
    "lmsearch fail default 7": "is complete already",
    "lmsearch data fetch wikitext-2": "cannot be fetched",
    "lmsearch data show wikitext-2": "cannot be fetched",
}
"""Examples that a finished study, or a machine without a network, answers with a sentence."""


@pytest.mark.heavy
def test_every_example_of_a_commands_help_runs(tmp_path: Path, postgres_url: str, cli: Cli) -> None:
    prepare(tmp_path)
    _prepare_predictions_and_arrays(tmp_path)
    for command in ("run default --workers 2 --quiet", "run my-study.toml --workers 2 --quiet"):
        assert shell(tmp_path, f"lmsearch {command}").returncode == 0
    assert shell(tmp_path, "lmsearch run default --workers 2 --quiet", LMSEARCH_STORAGE=postgres_url).returncode == 0
    for name in ("tpe-1", "random-1"):
        assert shell(tmp_path, f"lmsearch run default --name {name} --trials 2 --workers 1 --quiet").returncode == 0
    ordered = sorted(examples(), key=lambda command: ("delete" in command, "stop" in command))
    assert len(ordered) > 35
    for command in ordered:
        if "--watch" in command:  # it ends where no trial is left
            assert shell(tmp_path, "lmsearch run default --workers 2 --quiet").returncode == 0
        changed = command.replace("postgresql://me@db.example/lmsearch", postgres_url)
        changed = changed.replace("chaos --minutes 10", "chaos --minutes 0.1 --workers 2")
        if "dashboard" in command:
            _serve(tmp_path, changed.replace("8080", "8391").replace("--token-file", "--port 8392 --token-file"))
            continue
        said = shell(tmp_path, changed)
        expected = next((words for example, words in REFUSED.items() if command == example), None)
        if expected is None or said.returncode == 0:
            assert said.returncode == 0, f"{changed}\n{said.stdout[-3000:]}\n{said.stderr[-3000:]}"
        else:
            assert expected in said.stderr, f"{changed}\n{said.stderr}"


def _prepare_predictions_and_arrays(folder: Path) -> None:
    rng = np.random.default_rng(0)
    contexts = np.array([rng.integers(0, 14, 5) for _ in range(4)])
    np.savez(folder / "prediction.npz", inp=contexts, out=rng.integers(0, 14, 4))
    arrays = folder / "wiki-arrays"
    arrays.mkdir()
    np.save(arrays / "vocab.npy", np.array(["<unk>", "<eos>", *(f"w{i}" for i in range(10))]))
    for name in ("wiki.train.npy", "wiki.valid.npy"):
        articles = np.empty(3, dtype=object)
        articles[:] = [rng.integers(0, 12, 40) for _ in range(3)]
        np.save(arrays / name, articles)


def _serve(folder: Path, command: str) -> None:
    """Start a server as an example says, wait until it listens, and end it."""
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    log = folder / "dashboard.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            ["bash", "-euc", f"exec {command}"],
            cwd=folder,
            env=dict(os.environ) | {"PATH": path, "PYTHONUNBUFFERED": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        end = time.monotonic() + 60
        while "http" not in log.read_text():
            assert server.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
    finally:
        server.terminate()
        server.wait(30)
