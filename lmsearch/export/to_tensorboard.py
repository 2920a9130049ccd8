"""A study as event files of TensorBoard, a folder for each trial, with its hyperparameters for the HParams page."""

import os
from pathlib import Path

from lmsearch.export.runs import Exported, Run
from lmsearch.extras import load
from lmsearch.files import draft_folder

_METRIC = "best perplexity"  # what the HParams page compares


def export(study: Exported, target: str) -> int:
    """Write each trial that is not there yet to a folder `TARGET/STUDY/trial-NUMBER`; none is there in part."""
    load("tensorboard", "tensorboard")
    new = 0
    for run in study.runs:
        folder = Path(target) / study.name / run.name
        if folder.exists():
            continue
        folder.parent.mkdir(parents=True, exist_ok=True)
        with draft_folder(folder) as draft:
            _write(run, draft)
        new += 1
    return new


def _write(run: Run, folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    params = {
        name: value if isinstance(value, bool | int | float) else str(value) for name, value in run.params.items()
    }
    with SummaryWriter(os.fspath(folder)) as writer:
        for part in hparams(params, {_METRIC: None}):  # type: ignore[no-untyped-call]
            writer.file_writer.add_summary(part, walltime=run.started)
        for epoch in run.epochs:
            for name, value in epoch.metrics.items():
                writer.add_scalar(name, value, epoch.epoch, walltime=epoch.time)
        if "perplexity" in run.metrics:
            writer.add_scalar(_METRIC, run.metrics["perplexity"], 0, walltime=run.ended)
        tags = "  \n".join(f"{name}: {text}" for name, text in run.tags.items())  # two blanks end a line of Markdown
        writer.add_text("trial", tags, walltime=run.ended)
