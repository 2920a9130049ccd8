"""Run every `console` block of a Markdown file, each line that begins with `$ `, and stop at the first that fails.

The first block runs in the clone, as a reader would; the others in a folder of their own.
"""

import re
import subprocess
import sys
from pathlib import Path


def main(markdown: Path, folder: Path) -> None:
    """Run the blocks in order."""
    folder.mkdir(parents=True)
    blocks = re.findall(r"^```console\n(.*?)^```", markdown.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    if not blocks:
        sys.exit(f"{markdown} has no console block")
    for number, block in enumerate(blocks):
        where = _copy_of_clone(folder) if number == 0 else folder
        for command in re.findall(r"^\$ (.*)$", block, re.MULTILINE):
            print(f"$ {command}", flush=True)
            subprocess.run(["bash", "-euc", command], cwd=where, check=True)


def _copy_of_clone(folder: Path) -> Path:
    clone = folder / "clone"
    subprocess.run(["git", "clone", "-q", ".", str(clone)], check=True)
    return clone


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]).resolve())
