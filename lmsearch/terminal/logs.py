"""What the package logs, as lines for a person or as JSON documents for a program that collects them.

Each module logs to a logger of its own name below `lmsearch`, with a name for the event and its values as extras. Who
uses lmsearch from Python sets handlers and levels as for any package.
"""

import contextlib
import logging
import os
from collections.abc import Callable
from datetime import datetime
from typing import Any

import click

from lmsearch.terminal.output import OutputGoneError, say, say_json

LEVELS = ("debug", "info", "warning", "error")
_LEVEL, _FORMAT = "LMSEARCH_LOG_LEVEL", "LMSEARCH_LOG_FORMAT"  # reach the workers of a search by its environment
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def plain(text: str) -> None:
    """Print a line beside what the command prints."""
    say(text, err=True)


def timestamped(text: str) -> None:
    """Print a line with the time before it, for what runs long; what nobody can read costs the line, not the search."""
    with contextlib.suppress(OSError, OutputGoneError):
        say(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}")


class _Handler(logging.Handler):
    """Writes records; what nobody can read costs the line, not the search."""

    def __init__(self) -> None:
        super().__init__()
        self.write: Callable[[str], None] = plain
        self.as_json = False

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, OutputGoneError):
            if self.as_json:
                say_json(_document(record), indent=None)
                return
            mark = "warning: " if record.levelno >= logging.WARNING else ""
            self.write(mark + record.getMessage())


_handler = _Handler()


def start() -> None:
    """Print what the package logs from now on."""
    logger = logging.getLogger("lmsearch")
    if _handler not in logger.handlers:
        logger.addHandler(_handler)
    logger.setLevel(logging.INFO)


def write_with(write: Callable[[str], None]) -> None:
    """Print the lines for a person in another way from now on: `plain`, `timestamped` or `say`."""
    _handler.write = write


def warnings_only() -> None:
    """Print only warnings, as --quiet and --json ask, unless a level was asked for."""
    if _LEVEL not in os.environ:
        logging.getLogger("lmsearch").setLevel(logging.WARNING)


def log_options(command: click.Command) -> None:
    """Add --verbose, --log-level and --log-format to a command."""
    command.params += [
        click.Option(
            ["-v", "--verbose"],
            is_flag=True,
            expose_value=False,
            callback=_set_verbose,
            help="Log more: the same as --log-level debug.",
        ),
        click.Option(
            ["--log-level"],
            type=click.Choice(LEVELS),
            envvar=_LEVEL,
            expose_value=False,
            callback=_set_level,
            help=f"Least level of what is logged, by workers too. Also {_LEVEL}. [default: info]",
        ),
        click.Option(
            ["--log-format"],
            type=click.Choice(["text", "json"]),
            envvar=_FORMAT,
            expose_value=False,
            callback=_set_format,
            help=f"Format of what is logged, by workers too; json is a document a line. Also {_FORMAT}. "
            "[default: text]",
        ),
    ]


def _set_verbose(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        _set_level(context, parameter, "debug")


def _set_level(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        os.environ[_LEVEL] = value
        logging.getLogger("lmsearch").setLevel(value.upper())


def _set_format(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        os.environ[_FORMAT] = value
        _handler.as_json = value == "json"


def _document(record: logging.LogRecord) -> dict[str, Any]:
    extras = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    return {
        "time": datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "process": record.process,
        "message": record.getMessage(),
        **extras,
    }
