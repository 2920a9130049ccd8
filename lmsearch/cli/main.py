"""The command `lmsearch`."""

import contextlib
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from lmsearch import __version__
from lmsearch.cli.adapt import dynamic, pointer
from lmsearch.cli.backup import backup
from lmsearch.cli.chaos import chaos
from lmsearch.cli.compare import compare
from lmsearch.cli.confirm import confirm
from lmsearch.cli.dashboard import dashboard
from lmsearch.cli.data import data
from lmsearch.cli.doctor import doctor
from lmsearch.cli.export import export
from lmsearch.cli.extend import extend
from lmsearch.cli.look import best, studies
from lmsearch.cli.manage import delete, enqueue, fail, retry, stop
from lmsearch.cli.model import evaluate, generate, onnx, predict, test
from lmsearch.cli.plan import plan
from lmsearch.cli.report import report
from lmsearch.cli.run import run
from lmsearch.cli.script import script
from lmsearch.cli.status import status
from lmsearch.cli.top import top
from lmsearch.cli.train import train
from lmsearch.cli.trials import show, trials
from lmsearch.cli.worker import worker
from lmsearch.errors import LmsearchError, StoreGoneError
from lmsearch.spelling import nearest
from lmsearch.terminal import logs
from lmsearch.terminal.output import OutputGoneError, go_quiet, prepare, say, say_lines

GROUPS: dict[str, tuple[click.Command, ...]] = {
    "search": (run, worker, enqueue, plan, confirm, extend, stop, retry, fail, delete, script),
    "look": (status, top, studies, trials, show, best, compare, report, export, dashboard),
    "model": (train, test, evaluate, predict, generate, pointer, dynamic, onnx),
    "text": (data,),
    "keep": (doctor, backup, chaos),
}
"""The commands in the order in which they are shown."""


class _Grouped(click.Group):
    """A group whose help shows the commands by what they are for."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(c.name or "", c.get_short_help_str(limit=100)) for c in commands])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise click.UsageError(f"there is no command {args[0]!r}{nearest(args[0], self.commands)}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_Grouped, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="lmsearch", message="%(prog)s %(version)s")
def cli() -> None:
    """Search for the best LSTM language model that your text and your machines allow.

    Start with `lmsearch run`: it needs no file, no data and no server.
    """


for _commands in GROUPS.values():
    for _command in _commands:
        cli.add_command(_command)
        for _leaf in _command.commands.values() if isinstance(_command, click.Group) else [_command]:
            logs.log_options(_leaf)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code; an error that a person can act on is one sentence."""
    code = _run(arguments)
    _flush()
    sys.exit(code)


def _run(arguments: Sequence[str] | None) -> int:  # noqa: PLR0911  (each way to end has its code)
    if not prepare():
        _complain("standard output is closed, so nothing can be printed; redirect it: > /dev/null")
        return LmsearchError.exit_code
    if not _has_working_folder():
        _complain("the working folder has been removed; change into one that exists")
        return LmsearchError.exit_code
    logs.start()
    try:
        code = cli.main(args=None if arguments is None else list(arguments), standalone_mode=False)
    except LmsearchError as error:
        _complain(str(error))
        return error.exit_code
    except click.ClickException as error:
        _complain_of_usage(error)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except OutputGoneError:
        return 141
    except OSError as error:
        if error.errno == errno.ENOSPC and error.filename is None:
            _complain(f"the output cannot be written: {error.strerror}")
            return StoreGoneError.exit_code
        if error.filename is None:
            raise
        _complain(f"{os.fsdecode(error.filename)} cannot be used: {error.strerror}")
        return LmsearchError.exit_code
    return code if isinstance(code, int) else 0


def _has_working_folder() -> bool:
    try:
        return bool(Path.cwd())
    except FileNotFoundError:
        return False


def _complain(sentence: str) -> None:
    with contextlib.suppress(OSError, OutputGoneError):  # a full disk costs the sentence, not the exit code
        say(f"lmsearch: {sentence}", err=True)


def _complain_of_usage(error: click.ClickException) -> None:
    """Say what is wrong with a command line as click does; it may quote what somebody else wrote."""
    with contextlib.suppress(OSError, OutputGoneError):
        if isinstance(error, click.UsageError) and error.ctx is not None:
            say_lines(error.ctx.get_usage(), err=True)
            say(f"Try '{error.ctx.command_path} --help' for help.", err=True)
            say(err=True)
        say(f"Error: {error.format_message()}", err=True)


def _flush() -> None:
    """Write out what was said; where that cannot be done, lose it rather than the exit code."""
    for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except OSError:  # a full disk, or a reader that has left
            go_quiet(descriptor)


if __name__ == "__main__":
    main()
