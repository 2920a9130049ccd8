"""Write the list of modules in docs/architecture.md from their docstrings; `--check` reports whether it is current."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
FIRST, LAST = "<!-- modules: made by .ci/module_lines.py -->\n", "<!-- end of modules -->"


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


def main() -> None:
    """Write the page, or report that it is not current."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(FIRST)
    _, _, after = rest.partition(LAST)
    current = f"{before}{FIRST}\n{modules()}\n{LAST}{after}"
    if "--check" in sys.argv:
        sys.exit(0 if current == text else "docs/architecture.md is not current; run: python .ci/module_lines.py")
    PAGE.write_text(current, encoding="utf-8")


if __name__ == "__main__":
    main()
