"""An installed wheel, in an empty folder: the studies travel in it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_run_without_a_file_works_from_an_installed_wheel_in_an_empty_folder(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True)
    (wheel,) = (tmp_path / "dist").iterdir()
    assert "lmsearch/studies/default.toml" in zipfile.ZipFile(wheel).namelist()
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)], check=True
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    said = subprocess.run(
        [sys.executable, "-m", "lmsearch.cli.main", "run", "--trials", "2", "--workers", "2", "--time-limit", "15s"],
        cwd=empty,
        env=dict(os.environ) | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert "study    default in sqlite:///" in said.stdout and "python-docs of Python" in said.stdout
    where = [sys.executable, "-c", "import lmsearch; print(lmsearch.__file__)"]
    found = subprocess.run(
        where, cwd=empty, env=dict(os.environ) | {"PYTHONPATH": str(site)}, capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith(str(site))
