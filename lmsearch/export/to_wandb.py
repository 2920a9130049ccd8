"""A study as offline runs of Weights & Biases, which `wandb sync` uploads when and where a person wants it."""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from lmsearch.errors import ConfigError
from lmsearch.export.runs import Exported, Run
from lmsearch.extras import load


def export(study: Exported, target: str) -> int:
    """Write each trial that is not there yet to a folder `TARGET/wandb/offline-run-…`; none is there in part.

    Raises `ConfigError` where Weights & Biases refuses.
    """
    wandb = load("wandb", "wandb")
    folder = Path(target) / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    there = {match[1] for path in folder.iterdir() if (match := re.fullmatch(r"offline-run-\d+_\d+-(.+)", path.name))}
    new = 0
    for run in study.runs:
        if (identifier := _identifier(run)) in there:
            continue
        # In a folder beside, and renamed once it is whole.
        with tempfile.TemporaryDirectory(dir=target, prefix=".lmsearch-") as draft:
            try:
                made = _write(wandb, study, run, identifier, draft)
            except (wandb.Error, OSError) as error:
                raise ConfigError(f"Weights & Biases cannot write {run.name} to {target}: {error}") from error
            made.rename(folder / made.name)
        new += 1
    return new


def _identifier(run: Run) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", run.key)


def _write(wandb: Any, study: Exported, run: Run, identifier: str, folder: str) -> Path:
    settings = wandb.Settings(
        silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True, x_disable_meta=True
    )
    tags = [run.outcome, *([run.tags["sampler"]] if "sampler" in run.tags else []), *(["best"] if run.is_best else [])]
    made = wandb.init(
        mode="offline",
        dir=folder,
        project=re.sub(r"[/\\#?%:]", "-", study.name),
        group=study.name,
        id=identifier,
        name=run.name,
        tags=tags,
        notes=run.tags.get("reason"),
        config=study.fixed | run.params,
        settings=settings,
    )
    for epoch in run.epochs:
        made.log(epoch.metrics | {"time": epoch.time}, step=epoch.epoch)
    for name, value in run.summary.items():
        made.summary[name] = value
    if run.is_best and study.model is not None:
        for path in sorted(study.model.iterdir()):
            if path.is_file():
                made.save(os.fspath(path.resolve()), base_path=os.fspath(study.model.resolve().parent), policy="now")
    made.finish(exit_code=1 if run.outcome == "failed" else 0)
    return Path(made.dir).parent
