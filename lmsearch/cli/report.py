"""`lmsearch report`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmsearch.cli.look import renew
from lmsearch.cli.options import (
    artifacts_option,
    command_text,
    open_page,
    open_store,
    parse_storage,
    storage_option,
    study_argument,
    the_study,
)
from lmsearch.folders import REPORT, study_folder
from lmsearch.losses import json_text
from lmsearch.terminal.output import say, say_data

if TYPE_CHECKING:
    from lmsearch.results.commands import Command
    from lmsearch.results.reading import Results
    from lmsearch.store.artifacts import Artifacts
    from lmsearch.store.storage import FencedStorage


@click.command()
@study_argument(required=False)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="File to write; - is the terminal.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["html", "csv", "json"]),
    default="html",
    show_default=True,
    help="html is a page; csv has a row for each epoch; json is one document with all data.",
)
@click.option("--figure", metavar="NAME", help="Write one figure, such as curves, budget or slice-train.learning_rate.")
@click.option("--open", "show", is_flag=True, help="Open the page in a browser.")
@storage_option
@artifacts_option
def report(
    study: str | None,
    output: Path | None,
    form: str,
    figure: str | None,
    show: bool,
    storage: str,
    store_timeout: float | None,
    artifacts: "Artifacts | None",
) -> None:
    """Write a study's report as one HTML file: what is best, how sure that is, and what to try next.

    The page loads nothing from other hosts. By default it is runs/STUDY/report.html, which the dashboard then links,
    with notes and plots of the study; csv and json are printed. The result files beside it are regenerated.

    \b
    Examples:
        lmsearch report default --open
        lmsearch report default --figure curves
        lmsearch report default --format csv > epochs.csv
    """
    from lmsearch.errors import ConfigError
    from lmsearch.files import replace_file
    from lmsearch.report.write import document, write_figure, write_report
    from lmsearch.results.epochs import epochs_csv
    from lmsearch.results.reading import read_any

    if figure is not None and form != "html":
        raise ConfigError("--figure is a page of its own; --format csv and json hold the data behind all figures")
    url = parse_storage(storage)
    opened = open_store(storage, store_timeout)
    results = read_any(study or the_study(opened), opened)
    study = results.name
    ours = not results.record.info.is_plain

    def command(words: Sequence[str]) -> str:
        return command_text(list(words), url)

    folder = study_folder(results.name)
    if figure is not None:
        text, path = write_figure(results, figure), folder / f"{figure}.html"
    elif form == "html":
        text, path = write_report(results, command), folder / REPORT
    else:
        text = epochs_csv(results) if form == "csv" else json_text(document(results), indent=2) + "\n"
        path = Path("-")
    whole = figure is None and form == "html"
    if whole and ours:  # first: where another store's results of this name lie, they go, and its report with them
        renew(results, command(["lmsearch", "report", study]), command, artifacts)
    path = output or path
    if str(path) == "-":
        say_data(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text)
    say(path)
    if show:
        open_page(path.resolve().as_uri())
    if whole and ours:
        _publish(opened, results, folder, command)


def _publish(opened: "FencedStorage", results: "Results", folder: Path, command: "Command") -> None:
    """Update what the dashboard shows of a study, once the page is there: it takes as long with many trials."""
    if opened.is_read_only:
        say("note: the store is read-only, so the dashboard's notes and plots are not updated", err=True)
        return
    from lmsearch.report.figures import dashboard_figures
    from lmsearch.report.publishing import Publisher

    Publisher(storage=opened, command=command).publish(
        results, folder, dashboard_figures(), most_notes=min(1_000, len(results.record.trials))
    )
