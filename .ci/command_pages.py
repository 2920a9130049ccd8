"""Write docs/commands/: a page for each command, made from its help; `--check` only tells whether they are current."""

import sys
from pathlib import Path

import click

from lmsearch.cli.main import GROUPS, cli

FOLDER = Path(__file__).parents[1] / "docs" / "commands"
COMMON = """## What they have in common

MODEL is a model folder, or a study, whose best model is used. `--json` prints one JSON document and nothing else;
those that change a study, `generate`, `data fetch`, `data convert` and `dashboard` have none, and `report` has
`--format json`. With one study in the store, commands that look need no name. `-v` and `--log-level` show what
happens, `LMSEARCH_STORAGE` names the store, `NO_COLOR` is honoured.

| exit code | meaning |
| --- | --- |
| 0 | success |
| 1 | no trial ended well; `doctor` or `chaos` found a problem; or a bug |
| 2 | invalid input |
| 70 | a worker whose trial hung |
| 75 | the store or the disk is temporarily unavailable; try again later |
| 130, 143, 129 | interrupted by Ctrl-C, SIGTERM, a closed terminal; everything is saved |
| 141 | nobody reads the output any more |
"""


def pages() -> dict[str, str]:
    """Give the text of each page by its file's name."""
    found = {}
    index = ["# Commands", "", "Each page is the command's own help: `lmsearch COMMAND --help`.", ""]
    for title, commands in GROUPS.items():
        index += [f"**{title}**", ""]
        for command in commands:
            found[f"{command.name}.md"] = _page(command)
            index.append(f"- [`lmsearch {command.name}`]({command.name}.md): {command.get_short_help_str(limit=200)}")
        index.append("")
    found["README.md"] = "\n".join(index) + "\n" + COMMON
    return found


def _page(command: click.Command) -> str:
    parts = [(f"lmsearch {command.name}", command)]
    if isinstance(command, click.Group):
        parts += [(f"lmsearch {command.name} {name}", inner) for name, inner in command.commands.items()]
    sections = []
    for level, (name, one) in enumerate(parts):
        # Not the width of whatever terminal it is written in, nor this program's name.
        with click.Context(one, info_name=name, max_content_width=100, terminal_width=100) as context:
            help_text = one.get_help(context)
        sections.append(f"{'#' if level == 0 else '##'} {name}\n\n```text\n{help_text}\n```\n")
    return "\n".join(sections)


def main() -> None:
    """Write the pages, or say which are not current."""
    assert cli.commands
    if "--check" in sys.argv:
        there = {path.name: path.read_text() for path in FOLDER.glob("*.md")}
        wrong = sorted(name for name in {*there, *pages()} if there.get(name) != pages().get(name))
        sys.exit(f"not current: {', '.join(wrong)}; run: python .ci/command_pages.py" if wrong else 0)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
