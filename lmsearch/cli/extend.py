"""`lmsearch extend`."""

from pathlib import Path
from typing import Any

import click

from lmsearch.cli.options import (
    COUNT,
    json_option,
    launcher_options,
    open_store,
    pruner_option,
    quiet_option,
    sampler_option,
    storage_option,
    study_argument,
    time_limit_option,
    work_options,
    workers_option,
)
from lmsearch.cli.run import run
from lmsearch.errors import ConfigError, DeviceError, StudyError
from lmsearch.folders import check_new_name
from lmsearch.terminal.output import say


@click.command()
@study_argument()
@click.option(
    "--set",
    "changes",
    multiple=True,
    required=True,
    metavar="NAME=VALUE",
    help="A change of the study file; repeatable.",
)
@storage_option
@click.option("--name", help="Name of the new study. [default: STUDY-2]")
@sampler_option
@pruner_option
@click.option("-n", "--trials", type=COUNT, help="Number of new trials, instead of the file's.")
@workers_option
@launcher_options
@time_limit_option
@work_options
@quiet_option
@json_option
@click.pass_context
def extend(context: click.Context, /, study: str, changes: tuple[str, ...], **options: Any) -> Any:
    """Search a changed space in a new study that reuses the old study's trials.

    A study never changes its space. This command writes the changed study file as STUDY-2.toml into this folder and
    runs it. Trials of STUDY that are points of the new space are taken over. If the best one is not, the file has a
    [prior] at its values, around which half of the first trials are drawn.

    \b
    Examples:
        lmsearch extend default --set model.weight_dropout.high=0.9
        lmsearch extend default --set model.tie_weights=true --trials 12
    """
    from lmsearch.files import replace_file
    from lmsearch.search.take_over import best_as_prior
    from lmsearch.store.records import lmsearch_studies, open_study
    from lmsearch.study.editing import extended_text, next_name, with_prior
    from lmsearch.study.reading import parse_study

    opened = open_store(options["storage"], options["store_timeout"])
    info = open_study(opened, study)
    info.require_search()
    taken = {*lmsearch_studies(opened), *(path.stem for path in Path().glob("*.toml"))}
    name = options["name"] or next_name(study, taken)
    if name in taken:
        raise ConfigError(f"there is a study or a file {name}.toml already; give the new one another --name")
    check_new_name(name)
    study_path = Path(f"{name}.toml")
    replaced = {name: options[name] for name in ("trials", "sampler", "pruner")}
    text = extended_text(info.spec, info.ref.name, changes, Path(), replaced)
    if prior := best_as_prior(opened, info, parse_study(text, Path(), str(study_path))):
        text = with_prior(text, prior)
    opened.engine.dispose()  # `run` opens its own
    replace_file(study_path, text)
    say(f"{study_path} is the file of {study} with {', '.join(changes)}", err=True)
    try:
        return context.invoke(run, study_file=str(study_path), source=study, more=None, **options | {"name": None})
    except (ConfigError, DeviceError, StudyError):
        if name not in lmsearch_studies(open_store(options["storage"], options["store_timeout"])):
            study_path.unlink()  # nothing was started
        raise
