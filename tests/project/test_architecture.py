"""The structure: layers, who may import what, and documentation that names everything there is."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lmsearch.config import FIELD_TYPES
from lmsearch.study.options import PRUNER_OPTIONS, SAMPLER_OPTIONS

ROOT = Path(__file__).parent.parent.parent


def test_imports_point_down_and_big_packages_have_owners() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    said = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout
    assert "0 broken" in said.stdout


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("lmsearch.cli.main", ("torch", "optuna", "sqlalchemy", "numpy", "rich", "plotly")),
        ("lmsearch, lmsearch.study.reading", ("torch", "optuna", "sqlalchemy", "numpy")),
        ("lmsearch.text.corpus", ("torch", "optuna", "sqlalchemy")),
        ("lmsearch.launch.supervise, lmsearch.search.begin, lmsearch.results.best", ("torch",)),
        ("lmsearch.lm.train", ("optuna", "sqlalchemy")),
        ("lmsearch.search.worker", ("torch",)),
    ],
)
def test_what_starts_light_stays_light(modules: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {modules}; print([name for name in {absent!r} if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_every_setting_and_option_stands_in_the_documentation() -> None:
    text = (ROOT / "docs" / "study-files.md").read_text()
    named = set(re.findall(r"`(\w+)", text))
    settings = {path.partition(".")[2] for path in FIELD_TYPES}
    options = {name for table in (*SAMPLER_OPTIONS.values(), *PRUNER_OPTIONS.values()) for name in table}
    assert settings | options <= named


@pytest.mark.parametrize("page", ["README.md", "docs/study-files.md"])
def test_a_study_file_that_is_shown_whole_is_valid(page: str, tmp_path: Path) -> None:
    from lmsearch.study.reading import parse_study

    blocks = re.findall(r"^```toml\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    specs = [parse_study(block, tmp_path) for block in blocks if "format = 1" in block]
    assert len(specs) == 1 and len(specs[0].open) > 2


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_the_constraints_meet_the_ranges() -> None:
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pinned = {name.lower().replace("_", "-"): version for name, _, version in (line.partition("==") for line in lines)}
    for text in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pinned[requirement.name]), text
