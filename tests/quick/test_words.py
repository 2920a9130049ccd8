"""What a person reads is in plain technical English: words of the old dialect do not come back."""

import re
from collections.abc import Iterator
from pathlib import Path

import click

from lmsearch.cli.main import cli

ROOT = Path(__file__).parents[2]
_DIALECT = (
    "owe",
    "owes",
    "owed",
    "anew",
    "begun",
    "befell",
    "amid",
    "belie",
    "go on with",
    "goes on with",
    "gone on with",
    "sign of life",
    "given back",
    "came to nothing",
)
_WORDS = re.compile(r"\b(?:" + "|".join(words.replace(" ", r"\s+") for words in _DIALECT) + r")\b", re.IGNORECASE)


def _pages() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each page of the documentation; the decisions are a record and stay."""
    for path in (
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "docs/commands").glob("*.md")),
    ):
        if path.name != "decisions.md":
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def _helps(command: click.Command, name: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the help of a command and of those below it."""
    with click.Context(command, info_name=name, terminal_width=100) as context:
        yield f"{name} --help", command.get_help(context)
    if isinstance(command, click.Group):
        for inner_name, inner in command.commands.items():
            yield from _helps(inner, f"{name} {inner_name}")


def dialect_in(where: str, text: str) -> list[str]:
    """List the words of the old dialect in a text, each with its place, also where a line ends inside them."""
    return [
        f"{where}:{text.count(chr(10), 0, match.start()) + 1}: {' '.join(match.group().split())}"
        for match in _WORDS.finditer(text)
    ]


def test_no_help_has_a_word_of_the_old_dialect() -> None:
    assert [found for where, text in _helps(cli, "lmsearch") for found in dialect_in(where, text)] == []


def test_no_page_has_a_word_of_the_old_dialect() -> None:
    assert [found for where, text in _pages() for found in dialect_in(where, text)] == []


def test_a_word_is_found_whole_in_any_case_and_over_the_end_of_a_line() -> None:
    text = "It Owes two.\nThe power of a tower.\nA study is gone\non with, anew."
    assert dialect_in("page", text) == ["page:1: Owes", "page:3: gone on with", "page:4: anew"]
