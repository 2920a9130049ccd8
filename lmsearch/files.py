"""Files that are written whole or not at all."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


def draft_of(path: Path) -> Path:
    """Return a new name beside `path` for what is written before it takes that name."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.draft")


@contextlib.contextmanager
def draft_folder(folder: Path) -> Iterator[Path]:
    """Provide a new folder that takes the name of `folder` at the end, whole; after an error all is as it was.

    What had the name is removed.
    """
    draft, before = draft_of(folder), draft_of(folder)
    draft.mkdir(parents=True)
    try:
        yield draft
        if folder.exists():
            folder.rename(before)
        draft.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def remove_tree(folder: Path) -> None:
    """Remove a folder, so that a crash leaves it whole or as a draft, never half of it under its name."""
    draft = draft_of(folder)
    with contextlib.suppress(OSError):
        folder.rename(draft)
        shutil.rmtree(draft, ignore_errors=True)


def replace_file(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` so that a crash leaves the old file or the new one, never half of one.

    Raises `OSError` with the file's name.
    """
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say which file it was
        raise
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
