"""The study files that come with lmsearch."""

import contextlib
from pathlib import Path

from lmsearch.errors import ConfigError
from lmsearch.spelling import nearest


def find_study_file(text: str) -> Path:
    """Return a study file by its path, or one that lmsearch ships by its name; raises `ConfigError`."""
    path, shipped = Path(text), shipped_studies()
    with contextlib.suppress(OSError, ValueError):  # a name that no file can have
        if path.exists() and not (path.is_dir() and text in shipped):
            return path
    if text in shipped:
        return shipped[text]
    raise ConfigError(f"there is no study file {text!r}{nearest(text, shipped)}")


def shipped_studies() -> dict[str, Path]:
    """Return the study files that lmsearch ships, by name."""
    package = Path(__file__).parent.parent
    folder = package / "studies" if (package / "studies").is_dir() else package.parent / "studies"
    return {path.stem: path for path in sorted(folder.glob("*.toml"), key=lambda path: path.stem)}
