"""Parts of pages that a script writes, between two comments; the scripts beside this one use it."""

import sys
from pathlib import Path


def with_part(text: str, name: str, part: str) -> str:
    """Return a page whose part of that name, which the calling script makes, is `part`."""
    script = Path(sys.argv[0]).name
    first, last = f"<!-- {name}: made by .ci/{script} -->\n", f"<!-- end of {name} -->"
    before, there, rest = text.partition(first)
    if not there or last not in rest:
        sys.exit(f"the page has no part {name!r} for .ci/{script}")
    return f"{before}{first}\n{part}\n{last}{rest.partition(last)[2]}"


def keep_current(made: dict[Path, str]) -> None:
    """Write the files that are not current; with `--check` report them instead, and exit with 1."""
    wrong = [path for path, text in made.items() if path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        names = ", ".join(path.name for path in wrong)
        sys.exit(f"not current: {names}; run: python .ci/{Path(sys.argv[0]).name}" if wrong else 0)
    for path in wrong:
        path.write_text(made[path], encoding="utf-8")
