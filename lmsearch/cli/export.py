"""`lmsearch export`."""

import importlib
import os
from dataclasses import dataclass

import click

from lmsearch.cli.options import command_text, json_option, open_store, parse_storage, storage_option, study_argument
from lmsearch.terminal.output import say, say_data, say_json


@dataclass(frozen=True, kw_only=True)
class _Form:
    """What a study can be exported to."""

    function: str  # MODULE:NAME, an `lmsearch.export.runs.Exporter`
    target: str | None  # where it goes unless a person says; {} is the study's folder


_FORMS = {
    "mlflow": _Form(function="to_mlflow:export", target=None),
    "tensorboard": _Form(function="to_tensorboard:export", target="{}/tensorboard"),
    "wandb-offline": _Form(function="to_wandb:export", target="{}"),
    "csv": _Form(function="to_tables:export_csv", target="-"),
    "parquet": _Form(function="to_tables:export_parquet", target="{}/epochs.parquet"),
}


@click.command()
@study_argument()
@click.argument("target", required=False)
@click.option("--to", "form", type=click.Choice(list(_FORMS)), required=True, help="Which program it is for.")
@storage_option
@json_option
def export(study: str, target: str | None, form: str, storage: str, store_timeout: float | None, as_json: bool) -> None:
    """Write a study's ended trials for another program; again, it adds what has ended since.

    TARGET is MLflow's tracking URI (default: MLFLOW_TRACKING_URI), a folder for TensorBoard's event files or offline
    runs of Weights & Biases (default: in runs/STUDY), or a file with a row for each epoch. Each trial has its values,
    curve, outcome and sampler; the best has its model's files too, in MLflow and Weights & Biases. Install what a
    program needs with pip install 'lmsearch[mlflow]', [tensorboard], [wandb] or [parquet].

    \b
    Examples:
        lmsearch export default --to mlflow sqlite:///mlflow.db
        lmsearch export default --to tensorboard
        lmsearch export default --to csv > epochs.csv
    """
    from lmsearch.errors import ConfigError
    from lmsearch.export.runs import exported
    from lmsearch.export.to_tables import csv_text
    from lmsearch.folders import MODEL, study_folder
    from lmsearch.results.best import is_best_model
    from lmsearch.results.reading import read_any

    results = read_any(study, open_store(storage, store_timeout))
    folder = study_folder(results.name)
    where = target or (_FORMS[form].target or os.environ.get("MLFLOW_TRACKING_URI", "")).format(folder)
    if not where:
        raise ConfigError("name MLflow's tracking URI, such as sqlite:///mlflow.db, or set MLFLOW_TRACKING_URI")
    winner = results.winner
    has_model = winner is not None and is_best_model(folder / MODEL, results.record.info, winner)
    made = exported(results, folder / MODEL if has_model else None)
    if where == "-":
        if form != "csv":
            raise ConfigError(f"{form} does not go to the terminal; name a place")
        say_data(csv_text(made))
        return
    module, name = _FORMS[form].function.split(":")
    new = getattr(importlib.import_module(f"lmsearch.export.{module}"), name)(made, where)
    if as_json:
        say_json({"study": results.name, "to": form, "target": where, "trials": len(made.runs), "new": new})
        return
    say(f"{where}: {len(made.runs)} ended trials of {results.name}, {new} of them new")
    if winner is not None and not has_model and form in ("mlflow", "wandb-offline"):
        make = command_text(["lmsearch", "best", results.name], parse_storage(storage))
        say(f"note: the best model is not here, so it was not added; make it here with: {make}", err=True)
