"""`lmsearch plan`."""

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmsearch.cli.options import (
    COUNT,
    command_text,
    json_option,
    open_store,
    parse_storage,
    pickle_option,
    sampler_option,
    storage_option,
    study_file_argument,
    warn_of_text,
    workers_option,
)
from lmsearch.escapes import shown
from lmsearch.folders import RUNS
from lmsearch.spelling import spell_seconds
from lmsearch.terminal import logs
from lmsearch.terminal.output import draw, say, say_json
from lmsearch.terminal.progress import reading_bar

if TYPE_CHECKING:
    from lmsearch.search.plan import Plan
    from lmsearch.study.spec import StudySpec


@click.command()
@study_file_argument
@storage_option
@sampler_option
@click.option("-n", "--trials", type=COUNT, help="Number of trials, instead of the file's.")
@workers_option
@pickle_option
@json_option
def plan(study_file: str, storage: str, store_timeout: float | None, **options: Any) -> None:
    """Estimate the time, memory and disk that a search needs on this machine; start nothing.

    Each end of the space is built and trained on a few batches, in a process of its own. A space is refused if one of
    these points cannot run. The store is not changed.

    \b
    Example:
        lmsearch plan my-study.toml --workers 4
    """
    from lmsearch.search.budget import decide_tickets
    from lmsearch.search.plan import connections_sentence, make_plan, points_remark
    from lmsearch.search.start import SearchRequest, check_open, open_request
    from lmsearch.search.work import WorkOptions
    from lmsearch.text.corpus import cache_folder
    from lmsearch.text.judgement import judge

    fields = {name: options[name] for name in ("sampler", "trials", "workers", "device")}
    request = SearchRequest(study_file=study_file, **fields, work=WorkOptions(allow_pickle=options["allow_pickle"]))
    with reading_bar() as progress:
        opened = open_request(request, progress)
    spec, corpus, devices = opened.spec, opened.corpus, opened.devices
    check_open(spec, study_file)
    warn_of_text(judge(corpus))
    trials = len(decide_tickets(spec, request.budget, None, []).add)

    if options["as_json"]:
        logs.warnings_only()
    found = make_plan(spec, len(corpus.vocabulary), trials, devices, cache_folder(), options["allow_pickle"])
    url = parse_storage(storage)
    connections = connections_sentence(url, lambda: open_store(storage, store_timeout), found.workers)
    free_disk = shutil.disk_usage(_existing(RUNS.resolve())).free
    if options["as_json"]:
        document = dataclasses.asdict(found) | {
            "hours": found.hours,
            "all_memory": found.memory,
            "disk": found.disk,
            "free_disk": free_disk,
            "space_points": spec.count_points(),
        }
        say_json(document | {"connections": connections})
        return
    _print(found, spec, devices, free_disk, connections)
    if remark := points_remark(spec, trials):
        say(remark)
    say(f"start it with: {command_text(request.words(), url)}")


def _print(found: "Plan", spec: "StudySpec", devices: list[str], free_disk: int, connections: str) -> None:
    from rich.table import Table

    from lmsearch.spelling import spell_bytes

    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("at", "parameters", "memory", "tokens/s", "an epoch"):
        drawn.add_column(name, justify="left" if name == "at" else "right", overflow="fold")
    for point in found.points:
        drawn.add_row(
            shown(point.what),
            f"{point.parameters:,}",
            spell_bytes(point.memory or 0),
            f"{point.tokens_per_second:,.0f}",
            spell_seconds(point.epoch_seconds or 0.0),
        )
    draw(drawn)
    workers = f"{found.workers} worker{'s' if found.workers > 1 else ''} ({', '.join(sorted(set(devices)))})"
    middle = found.middle.epoch_seconds or 0.0
    say(
        f"time         about {spell_seconds(3600 * found.hours)} on {workers}, if nothing is pruned: "
        f"{found.trials} trials of {found.epochs} epochs of {spell_seconds(middle)}"
    )
    if spec.settings.pruner != "none":
        say(f"             less with {spec.settings.pruner} pruning, which stops weak trials early")
    free = "" if found.free is None else f"; {spell_bytes(found.free)} are free"
    where = "all workers" if found.sharing == found.workers else f"the {found.sharing} workers that share a GPU"
    say(f"memory       at most {spell_bytes(found.memory)} for {where}{free}")
    short = "  LESS THAN THAT IS FREE" if found.disk > free_disk else ""
    say(f"disk         at most {spell_bytes(found.disk)} for checkpoints and weights; "
               f"{spell_bytes(free_disk)} are free{short}")  # fmt: skip
    say(f"connections  {connections}")


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
