"""What the documentation says of commands is what the commands say."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_of_each_command_is_its_help() -> None:
    said = subprocess.run(
        [sys.executable, ROOT / ".ci/command_pages.py", "--check"], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr


def test_every_link_between_pages_leads_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} names {target}"
