"""A bar in the terminal while a corpus is read."""

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def reading_bar() -> Iterator[Callable[[str, int, int | None], None] | None]:
    """Give what draws the progress of reading a corpus on stderr; None where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    done = TextColumn("{task.completed:,} tokens")
    columns = TextColumn("{task.description}"), BarColumn(), done, TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)
