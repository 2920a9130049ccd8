"""`lmsearch dashboard`."""

import os
import threading
from pathlib import Path

import click

from lmsearch.cli.options import open_page, open_store, storage_option
from lmsearch.folders import RUNS
from lmsearch.terminal import logs
from lmsearch.terminal.output import say

_LISTENING_SECONDS = 1.0  # after which the server listens


@click.command()
@storage_option
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; any except this machine's loopback needs a token.",
)
@click.option("--port", type=click.IntRange(1, 65_535), default=8080, show_default=True, help="Port to listen on.")
@click.option(
    "--token-file",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="File with the token that visitors must show. Also LMSEARCH_DASHBOARD_TOKEN.",
)
@click.option(
    "--allow-host",
    "allowed",
    metavar="NAME",
    multiple=True,
    help="Host name that browsers may use for it, such as a proxy's; repeatable.",
)
@click.option("--read-only", is_flag=True, help="Refuse all changes.")
@click.option("--prefix", default="", metavar="/lm", help="URL path under which a proxy serves it.")
@click.option("--open", "show", is_flag=True, help="Open it in a browser.")
def dashboard(
    storage: str,
    store_timeout: float | None,
    host: str,
    port: int,
    token_file: Path | None,
    allowed: tuple[str, ...],
    read_only: bool,
    prefix: str,
    show: bool,
) -> None:
    """Serve optuna-dashboard for the store, to a browser on this machine or, with a token, elsewhere.

    \b
    Examples:
        lmsearch dashboard --open
        lmsearch dashboard --host 0.0.0.0 --allow-host search.example --token-file token
    """
    from lmsearch.dashboard import THREADS, Rules, serve

    token = os.environ.get("LMSEARCH_DASHBOARD_TOKEN") if token_file is None else _read_token(token_file)
    rules = Rules(host=host, port=port, token=token, allowed=allowed, read_only=read_only)
    opened = open_store(storage, store_timeout, connections=THREADS)
    logs.write_with(say)
    if show:
        threading.Timer(_LISTENING_SECONDS, open_page, [rules.address]).start()
    serve(opened, rules, RUNS, prefix)


def _read_token(path: Path) -> str:
    return path.read_bytes().decode(errors="replace").strip()
