"""`lmsearch worker`."""

from pathlib import Path

import click

from lmsearch.cli.options import RUNS, command_text, duration, parse_storage, storage_option, timestamped

_STORE_TIMEOUT = 600.0  # seconds


@click.command()
@click.argument("study")
@storage_option
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, or auto.")
@click.option("--corpus", type=click.Path(path_type=Path), help="Where the study's text lies on this host.")
@click.option("--until", metavar="3h50m", callback=duration, help="Stop after so long; what runs is saved.")
@click.option(
    "--store-timeout",
    metavar="10m",
    default="10m",
    show_default=True,
    callback=duration,
    help="How long to wait for a store that does not answer before giving up with exit code 75.",
)
@click.option("--lease-seconds", default=30.0, hidden=True)
@click.option("--name", default="", hidden=True)
@click.option("--parent-pipe", type=int, hidden=True)
def worker(
    study: str,
    storage: str,
    device: str,
    corpus: Path | None,
    until: float | None,
    store_timeout: float,
    lease_seconds: float,
    name: str,
    parent_pipe: int | None,
) -> int:
    """Join a study from this or any host, and work until nothing is owed.

    \b
    Example, on a second machine:
        lmsearch worker default --storage postgresql://me@db.example/lmsearch
    """
    import time

    from lmsearch.errors import StoreGoneError
    from lmsearch.search.worker import WorkerOptions, run_worker
    from lmsearch.text.corpus import cache_folder

    url = parse_storage(storage)
    options = WorkerOptions(
        study=study,
        storage=url,
        name=name,
        device=device,
        folder=RUNS / study,
        cache=cache_folder(),
        corpus=None if corpus is None else str(corpus.resolve()),
        until=None if until is None else time.time() + until,
        parent_pipe=parent_pipe,
        lease_seconds=lease_seconds,
        store_timeout=store_timeout,
    )
    words = ["lmsearch", "worker", study] + ([] if device == "auto" else ["--device", device])
    words += [] if corpus is None else ["--corpus", str(corpus)]
    words += [] if until is None else ["--until", f"{until:.0f}s"]
    words += [] if store_timeout == _STORE_TIMEOUT else ["--store-timeout", f"{store_timeout:.0f}s"]
    again = command_text(words, url)
    try:
        code = run_worker(options, timestamped)
    except StoreGoneError as error:
        raise StoreGoneError(f"{error}; what ran is saved. Go on with: {again}") from error
    if code:
        timestamped(f"interrupted; go on with: {again}")
    return code
