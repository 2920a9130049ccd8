"""`lmsearch backup`."""

from pathlib import Path

import click

from lmsearch.cli.options import parse_storage, storage_option
from lmsearch.terminal.output import say


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@storage_option
def backup(file: Path, storage: str, store_timeout: float | None) -> None:
    """Copy a SQLite store into one file, even while a search is running.

    The copy is complete or not made at all. An existing FILE is not replaced. For a PostgreSQL store, the command to
    back it up is printed. How to restore: docs/backup.md

    \b
    Example:
        lmsearch backup backups/monday.db
    """
    from lmsearch.store.backup import back_up
    from lmsearch.store.url import check_location

    url = parse_storage(storage)
    check_location(url, create=False)
    back_up(url, file)
    say(file)
