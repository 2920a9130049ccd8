"""`lmsearch compare`."""

import fnmatch
from pathlib import Path

import click

from lmsearch.cli.options import json_option, open_store, storage_option, study_argument
from lmsearch.escapes import shown
from lmsearch.terminal.output import draw, say, say_json


@click.command()
@study_argument("studies", nargs=-1)
@click.option(
    "--report",
    "output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the comparison as an HTML page.",
)
@storage_option
@json_option
def compare(
    studies: tuple[str, ...], output: Path | None, storage: str, store_timeout: float | None, as_json: bool
) -> None:
    """Compare searches by their best perplexity after 1, 2, 4, … trials.

    Each of STUDIES is a study, or a pattern such as 'tpe-*'. The studies of a pattern count as repetitions of one
    search, and their spread is shown. All must use the same text and the same number of epochs.

    \b
    Example:
        lmsearch compare 'tpe-*' 'random-*' --report comparison.html
    """
    from lmsearch.files import replace_file
    from lmsearch.report.comparison import table, write_comparison
    from lmsearch.results.searches import groups_document, read_groups, verdict
    from lmsearch.store.records import readable_studies

    opened = open_store(storage, store_timeout)
    groups = read_groups(opened, studies)
    for name, why in readable_studies(opened)[1].items():
        if any(fnmatch.fnmatch(name, pattern) for pattern in studies):
            say(f"warning: {name} is left out, since it cannot be read: {why}", err=True)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        replace_file(output, write_comparison(groups))
    if as_json:
        say_json(groups_document(groups))
        return
    from rich.table import Table

    head, rows = table(groups)
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    first, *others = zip(head, *rows, strict=True)  # a column for each search, so that many budgets fit
    for number, name in enumerate(first):
        drawn.add_column(shown(name), justify="left" if number == 0 else "right", overflow="fold")
    for row in others:
        drawn.add_row(*map(shown, row))
    draw(drawn)
    for sentence in verdict(groups):
        say(shown(sentence))
    if output is not None:
        say(output)
