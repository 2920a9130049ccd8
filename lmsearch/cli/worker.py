"""`lmsearch worker`."""

from pathlib import Path
from typing import Any

import click

from lmsearch.cli.options import (
    command_text,
    device_option,
    parse_storage,
    storage_option,
    study_argument,
    time_limit_option,
    work_options,
    work_request,
)
from lmsearch.folders import absolute, study_folder
from lmsearch.spelling import exact_duration
from lmsearch.terminal import logs


@click.command()
@study_argument()
@storage_option
@device_option
@click.option("--corpus", type=click.Path(path_type=Path), help="Path of the study's text on this host.")
@time_limit_option
@work_options
@click.option("--name", default="", hidden=True)
@click.option("--parent-pipe", type=int, hidden=True)
@click.option("--trainer", default="lstm", hidden=True)
def worker(study: str, storage: str, **options: Any) -> int:
    """Join a study from this or any other host and work until all trials are done.

    \b
    Example, on a second machine:
        lmsearch worker default --storage postgresql://me@db.example/lmsearch
    """
    from lmsearch.errors import StoreGoneError
    from lmsearch.search.worker import WorkerOptions, run_worker
    from lmsearch.text.corpus import cache_folder

    logs.write_with(logs.timestamped)  # its output is its log
    url = parse_storage(storage)
    corpus, time_limit = options["corpus"], options["time_limit"]
    worker_options = WorkerOptions(
        study=study,
        storage=url,
        name=options["name"],
        device=options["device"],
        folder=study_folder(study),
        cache=cache_folder(),
        corpus=None if corpus is None else str(absolute(corpus, "the corpus")),
        time_limit=time_limit,
        parent_pipe=options["parent_pipe"],
        work=work_request(options),
        trainer=options["trainer"],
    )
    words = ["lmsearch", "worker", study] + (
        [] if worker_options.device == "auto" else ["--device", worker_options.device]
    )
    words += [] if corpus is None else ["--corpus", str(corpus)]
    words += [] if time_limit is None else ["--time-limit", exact_duration(time_limit)]
    again = command_text(words + worker_options.work.words(), url)
    try:
        code = run_worker(worker_options)
    except StoreGoneError as error:
        raise StoreGoneError(f"{error}; progress is saved. Resume with: {again}") from error
    if code:
        logs.timestamped(f"interrupted; resume with: {again}")
    return code
