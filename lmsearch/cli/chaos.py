"""`lmsearch chaos`: a self-test that disturbs a search of its own."""

import dataclasses
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmsearch.cli.options import (
    SEED,
    Number,
    artifacts_option,
    json_option,
    launcher_options,
    parse_storage,
    placement_of,
)
from lmsearch.config import MOST_TRIALS
from lmsearch.errors import ConfigError
from lmsearch.folders import RUNS
from lmsearch.terminal import logs
from lmsearch.terminal.output import say, say_json

if TYPE_CHECKING:
    from lmsearch.chaos.disturb import Outcome


@click.command()
@click.option(
    "--minutes", type=Number(above=0, most=1e4), default=2.0, show_default=True, help="Duration of the disturbances."
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed for the choice and order of the faults.")
@click.option(
    "--workers", type=click.IntRange(2, MOST_TRIALS), default=3, show_default=True, help="Number of worker processes."
)
@click.option(
    "--storage",
    metavar="URL",
    envvar="LMSEARCH_STORAGE",
    help="The store to test. Also LMSEARCH_STORAGE. [default: a new SQLite file]",
)
@launcher_options
@artifacts_option
@json_option
def chaos(minutes: float, seed: int, workers: int, storage: str | None, as_json: bool, **options: Any) -> int:
    """Test on your machine and store that no work is lost: kill, freeze and disconnect a search, then check it.

    It makes a study and a folder of its own and removes both. It stops no server and ends only its own connections. A
    SQLite file given with --storage is locked for up to 30 s at a time. With --launcher its workers run on your
    cluster, and the store is not disturbed.

    \b
    Examples:
        lmsearch chaos --minutes 10 --storage postgresql://me@db.example/lmsearch
        lmsearch chaos --launcher my-cluster.toml --workers 8
    """
    from lmsearch.chaos.disturb import Chaos, ChaosOptions
    from lmsearch.search.start import check_store
    from lmsearch.store.opening import open_storage
    from lmsearch.store.outages import WaitUpTo

    folder = (RUNS / f"chaos-{seed}-{os.getpid()}").resolve()
    placement = placement_of(options)
    if placement.detach:
        raise ConfigError("--detach is not for chaos, which watches the search that it disturbs")
    url = parse_storage(storage or f"sqlite:///{folder}/store.db")
    check_store(url, placement)
    opened = open_storage(url, create=True, patience=WaitUpTo(90.0))  # longer than the lock that it holds itself
    folder.mkdir(parents=True, exist_ok=True)
    if as_json:
        logs.warnings_only()
    logs.write_with(say)
    disturbed = Chaos(
        ChaosOptions(
            storage=opened,
            folder=folder,
            minutes=minutes,
            seed=seed,
            workers=workers,
            placement=placement,
            artifacts=options["artifacts"],
        )
    )
    if not as_json:
        say(f"the study {disturbed.name} is disturbed for {minutes:g} minutes; Ctrl-C ends it and cleans up")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    keep = True
    try:
        outcome = disturbed.disturb()
        keep = not outcome.holds
    except SystemExit:
        keep = False
        raise
    finally:
        disturbed.close(keep_files=keep)
        opened.engine.dispose()
        if not keep:
            _remove(folder)
    if as_json:
        say_json(dataclasses.asdict(outcome) | {"holds": outcome.holds})
    else:
        _print(outcome)
    if keep:
        say(f"the logs are kept in {folder}", err=True)
    return int(keep)


def _interrupt(number: int, frame: object) -> None:
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)  # cleaning up is not interrupted
    sys.exit(128 + number)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent.is_dir() and not any(folder.parent.iterdir()):
        folder.parent.rmdir()


def _print(outcome: "Outcome") -> None:
    say()
    say(f"{sum(outcome.faults.values())} faults")
    for fault, count in outcome.faults.items():
        say(f"  {count:4}  {fault}")
    for invariant in outcome.invariants:
        mark = "holds " if not invariant.broken else "BROKEN"
        say(f"{invariant.name} {mark} {invariant.promise}: {invariant.checked} checked, {invariant.detail}")
    say(
        f"{outcome.trials} trials: {outcome.lost} lost, {outcome.doubled} doubled; "
        f"{outcome.trained_twice} epochs trained twice that a checkpoint had; "
        f"{len(outcome.unexplained)} unexplained exits"
    )
