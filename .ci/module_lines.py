"""Write the list of modules in docs/architecture.md from their docstrings; `--check` reports whether it is current."""

import ast
import sys
from pathlib import Path

from pages import keep_current, with_part

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"


def modules() -> str:
    """Return a table for each package, a row for each of its modules: its name and the first line of its docstring."""
    folders = sorted({path.parent for path in (ROOT / "lmsearch").rglob("*.py")}, key=lambda folder: folder.parts)
    parts = []
    for folder in folders:
        name = ".".join(folder.relative_to(ROOT).parts)
        paths = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
        if not paths or "migrations" in folder.parts:
            continue
        parts.append(f"**`{name}`**: {_first_line(folder / '__init__.py')}\n")
        parts.append("| module | what it is |\n| --- | --- |")
        parts.append("\n".join(f"| `{path.stem}` | {_first_line(path)} |" for path in paths) + "\n")
    return "\n".join(parts)


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not docstring:
        sys.exit(f"{path} has no docstring")
    return docstring.splitlines()[0].replace("|", "\\|")


if __name__ == "__main__":
    keep_current({PAGE: with_part(PAGE.read_text(encoding="utf-8"), "modules", modules())})
