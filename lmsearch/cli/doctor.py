"""`lmsearch doctor`."""

import shutil
import socket
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import click

from lmsearch.cli.options import (
    artifacts_option,
    command_text,
    json_option,
    launcher_options,
    parse_storage,
    placement_of,
    storage_option,
)
from lmsearch.errors import ConfigError
from lmsearch.escapes import shown
from lmsearch.folders import DEFAULT_STORE, RUNS
from lmsearch.search.work import STORE_SECONDS
from lmsearch.terminal.output import say, say_coloured, say_json

if TYPE_CHECKING:
    from lmsearch.care.findings import Finding

_COLOURS = {"ok": "green", "note": "cyan", "repaired": "yellow", "problem": "red", "unchecked": "magenta"}
_INDENT = 23  # of a sentence, after its state and its check


@click.command()
@storage_option
@click.option("--repair", is_flag=True, help="Repair what is safe to repair; everything to be removed is listed first.")
@click.option("--dry-run", is_flag=True, hidden=True)
@launcher_options
@artifacts_option
@json_option
def doctor(
    storage: str, store_timeout: float | None, repair: bool, dry_run: bool, as_json: bool, **options: Any
) -> int:
    """Check store, leases, disk, corpora, devices and versions; change nothing unless asked to.

    Run it where you run `lmsearch run`. It exits with 0 if no problem is left. --repair repairs what is safe to repair:
    it never removes anything that could be resumed or that lmsearch did not make, and never touches what a live worker
    holds. With --launcher, the same is checked where a cluster would place a worker, before anything is queued.

    \b
    Examples:
        lmsearch doctor
        lmsearch doctor --repair
    """
    from lmsearch.care.doctor import Options, examine
    from lmsearch.store.outages import WaitUpTo
    from lmsearch.text.corpus import cache_folder

    if dry_run:
        raise ConfigError(
            "doctor changes nothing by itself, so --dry-run was removed; to repair, use: lmsearch doctor --repair"
        )
    url = parse_storage(storage)
    limit = STORE_SECONDS if store_timeout is None else store_timeout
    examined = Options(
        storage=url,
        patience=WaitUpTo(limit),
        placement=placement_of(options),
        node_timeout=limit,
        runs=RUNS,
        cache=cache_folder(),
        repair=repair,
        artifacts=options["artifacts"],
        expected=url != parse_storage(DEFAULT_STORE),
        command=lambda words: command_text(words, url),
    )
    found = []
    for finding in examine(examined):
        found.append(finding)
        if not as_json:
            say_coloured(f"{finding.state:<9}", _COLOURS[finding.state], _rest(finding))
    states = [finding.state for finding in found]
    problems, repaired = states.count("problem"), states.count("repaired")
    if as_json:
        checks = [{"check": one.check, "state": one.state, "text": one.text} for one in found]
        say_json({"host": socket.gethostname(), "problems": problems, "repaired": repaired, "checks": checks})
    else:
        say(_summary(problems, repaired))
    return 1 if problems else 0


def _rest(finding: "Finding") -> str:
    """Write a finding on one line; for a person at a terminal, on as many as it takes there."""
    text = shown(finding.text)
    if sys.stdout.isatty():
        width = max(_INDENT + 20, shutil.get_terminal_size().columns)
        filled = textwrap.wrap(text, width - _INDENT, break_long_words=False, break_on_hyphens=False)
        text = f"\n{' ' * _INDENT}".join(filled)
    return f"  {finding.check:<11} {text}"


def _summary(problems: int, repaired: int) -> str:
    mended = f", {repaired} repaired" if repaired else ""
    left = (
        "nothing is wrong" if not problems else f"{problems} {'problem is' if problems == 1 else 'problems are'} left"
    )
    return left + mended
