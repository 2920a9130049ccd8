"""`lmsearch script`: what is handed to a cluster, for those who hand it over themselves."""

from typing import TYPE_CHECKING, Any

import click

from lmsearch.cli.options import (
    COUNT,
    launcher_options,
    open_store,
    placement_of,
    resource_options,
    resources_of,
    storage_option,
    study_argument,
    work_options,
    work_request,
)
from lmsearch.folders import LOGS
from lmsearch.terminal.output import say_data

if TYPE_CHECKING:
    from lmsearch.store.records import StudyInfo


@click.group()
def script() -> None:
    """Print what is handed to a cluster, to add lines of your own and submit it yourself.

    \b
    Examples:
        lmsearch script slurm default --workers 16
        lmsearch script kubernetes default --image registry.example/lmsearch:0.3
    """


def _worker(
    study: str, storage: str, store_timeout: float | None, options: dict[str, Any]
) -> tuple["StudyInfo", list[str]]:
    """Return the study and the arguments of a worker of it, but for its name."""
    from lmsearch.launch.search import corpus_words
    from lmsearch.store.records import open_study

    info = open_study(open_store(storage, store_timeout), study)
    return info, ["--device", "auto", *corpus_words(info.spec.data.corpus), *work_request(options).words()]


@script.command()
@study_argument()
@click.option("--workers", type=COUNT, default=1, show_default=True, help="Number of workers: tasks of the job array.")
@launcher_options
@storage_option
@work_options
def slurm(study: str, workers: int, storage: str, store_timeout: float | None, **options: Any) -> None:
    """Print the batch script that `lmsearch run --launcher slurm` submits for a study.

    The store's URL is in no script: set LMSEARCH_STORAGE where you call sbatch, which hands the environment on.

    \b
    Example:
        lmsearch script slurm default --workers 16 --launcher-option partition=gpu > workers.sbatch
    """
    from lmsearch.folders import study_folder
    from lmsearch.launch import slurm as launcher

    options["launcher"] = "slurm" if options["launcher"] == "local" else options["launcher"]
    options["store_timeout"] = store_timeout
    placement = placement_of(options)
    info, words = _worker(study, storage, store_timeout, options)
    name, key = info.ref.name, info.ref.key
    folder = study_folder(name)
    text = launcher.script(name, key, folder, placement, lambda device: [name, *words], ["auto"] * workers)
    say_data(text)
    (folder / LOGS).mkdir(parents=True, exist_ok=True)  # Slurm makes no folder for the output of a job


@script.command()
@study_argument()
@click.option("--image", required=True, help="Image with lmsearch in it, such as registry.example/lmsearch:0.3.")
@click.option("--secret", default="lmsearch", show_default=True, help="Secret whose key `url` is the store's URL.")
@click.option("--claim", metavar="NAME", help="PersistentVolumeClaim that all pods share, mounted at /work.")
@click.option(
    "--credentials",
    metavar="SECRET",
    help="Secret whose keys are variables for the artifacts, such as AWS_ACCESS_KEY_ID.",
)
@click.option("--workers", type=COUNT, default=1, show_default=True, help="Number of workers: indexes of the job.")
@resource_options
@storage_option
@work_options
def kubernetes(study: str, storage: str, store_timeout: float | None, **options: Any) -> None:
    """Print a Job of Kubernetes (JSON, which `kubectl apply -f -` reads) whose pods are workers of a study.

    \b
    Example:
        lmsearch script kubernetes default --image registry.example/lmsearch:0.3 --workers 8 --gpus-per-worker 1
    """
    import json

    from lmsearch.launch.kubernetes import manifest

    options["store_timeout"] = store_timeout
    info, words = _worker(study, storage, store_timeout, options)
    document = manifest(
        info.ref.name,
        options["image"],
        options["secret"],
        options["claim"],
        resources_of(options),
        options["workers"],
        [info.ref.name, *words],
        options["credentials"],
    )
    say_data(json.dumps(document, indent=2) + "\n")
