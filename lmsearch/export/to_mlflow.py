"""A study as an experiment of MLflow, a run for each trial."""

from pathlib import Path
from typing import Any

from lmsearch.errors import ConfigError
from lmsearch.export.runs import Exported, Run
from lmsearch.extras import load
from lmsearch.folders import MODEL

_KEY = "lmsearch.trial"  # a tag: which trial a run is
_BEST = "lmsearch.best"
_MOST_METRICS, _MOST_PARAMS = 1_000, 100  # of one request
_LONGEST = 5_000  # characters of a tag
_STATUS = {"complete": "FINISHED", "failed": "FAILED"}  # else KILLED: it was ended early


def export(study: Exported, target: str) -> int:
    """Write a study to the tracking server or database of a URI.

    A run that is there is not written again; one that was left half written is. Raises `ConfigError` where MLflow or
    the server refuses.
    """
    mlflow = load("mlflow", "mlflow")
    client = mlflow.MlflowClient(tracking_uri=target)
    try:
        return _export(study, client)
    except (mlflow.exceptions.MlflowException, OSError) as error:
        raise ConfigError(f"MLflow cannot write to {target}: {error}") from error


def _export(study: Exported, client: Any) -> int:
    experiment = client.get_experiment_by_name(study.name)
    if experiment is not None and experiment.lifecycle_stage != "active":
        raise ConfigError(
            f"the experiment {study.name!r} was deleted in MLflow; restore it with: "
            f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        )
    number = client.create_experiment(study.name) if experiment is None else experiment.experiment_id
    there = _runs_of(client, number)
    new = 0
    for run in study.runs:
        found = there.get(run.key)
        if found is not None and found.info.status == "RUNNING":
            client.delete_run(found.info.run_id)
            found = None
        if found is None:
            identifier = _write(client, number, study, run)
            new += 1
        else:
            identifier = found.info.run_id
            if not run.is_best and _BEST in found.data.tags:
                client.delete_tag(identifier, _BEST)
        if run.is_best:
            client.set_tag(identifier, _BEST, "true")
            _add_model(client, identifier, study.model)
    return new


def _runs_of(client: Any, experiment: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    token: str | None = None
    while True:
        page = client.search_runs([experiment], max_results=1_000, page_token=token)
        found |= {run.data.tags[_KEY]: run for run in page if _KEY in run.data.tags}
        token = page.token
        if not token:
            return found


def _write(client: Any, experiment: str, study: Exported, run: Run) -> str:
    from mlflow.entities import Metric, Param

    tags = {name: text[:_LONGEST] for name, text in run.tags.items()} | {_KEY: run.key}
    made = client.create_run(experiment, start_time=_milliseconds(run.started), tags=tags, run_name=run.name)
    identifier: str = made.info.run_id
    params = [Param(name, str(value)) for name, value in (study.fixed | run.params).items()]
    for first in range(0, len(params), _MOST_PARAMS):
        client.log_batch(identifier, params=params[first : first + _MOST_PARAMS])
    metrics = [
        Metric(name, value, _milliseconds(epoch.time), epoch.epoch)
        for epoch in run.epochs
        for name, value in epoch.metrics.items()
    ]
    metrics += [Metric(name, value, _milliseconds(run.ended), 0) for name, value in run.summary.items()]
    for first in range(0, len(metrics), _MOST_METRICS):
        client.log_batch(identifier, metrics=metrics[first : first + _MOST_METRICS])
    client.set_terminated(identifier, _STATUS.get(run.outcome, "KILLED"), end_time=_milliseconds(run.ended))
    return identifier


def _add_model(client: Any, identifier: str, model: Path | None) -> None:
    if model is not None and not client.list_artifacts(identifier, MODEL):
        client.log_artifacts(identifier, str(model), MODEL)


def _milliseconds(seconds: float) -> int:
    return round(1_000 * seconds)
