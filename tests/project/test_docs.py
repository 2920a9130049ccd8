"""What the documentation says of commands is what the commands say."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from lmsearch.cli.main import cli

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("script", ["command_pages", "settings", "module_lines", "report_sections"])
def test_what_is_written_by_a_script_is_current(script: str) -> None:
    said = subprocess.run(
        [sys.executable, ROOT / f".ci/{script}.py", "--check"], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr


def test_every_link_between_pages_leads_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} names {target}"


def named_commands() -> Iterator[tuple[str, str]]:
    """Give the commands that stand inside of sentences, with their page."""
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for command in re.findall(r"`lmsearch ([^`]*)`", page.read_text()):
            yield page.name, command


@pytest.mark.parametrize(("page", "command"), [*named_commands()])
def test_a_command_in_a_sentence_and_its_options_are_there(page: str, command: str) -> None:
    found: click.Command = cli
    words = command.split()
    while isinstance(found, click.Group) and words:
        found = found.commands[words.pop(0)]
    options = {option for parameter in found.params for option in parameter.opts}
    assert {word.strip("[]") for word in words if word.strip("[").startswith("--")} <= options


def test_every_event_that_is_logged_stands_in_the_documentation() -> None:
    written = r'"event": "(\w+)"|_note\(\s*"(\w+)"'
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "lmsearch").rglob("*.py")]
    events = {first or second for text in sources for first, second in re.findall(written, text)}
    page = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
    assert len(events) > 20 and not [event for event in sorted(events) if f"`{event}`" not in page]
