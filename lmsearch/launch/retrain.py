"""A winner whose weights are gone, trained again."""

import dataclasses
import json
import logging
import subprocess
from pathlib import Path

from lmsearch.files import remove_tree
from lmsearch.folders import MODEL, MODELS, make_folder
from lmsearch.processes import python
from lmsearch.results.best import ResultFiles, copy_model, name_of_retraining
from lmsearch.results.reading import Results

_log = logging.getLogger(__name__)

_SAME = 0.005  # of a perplexity: a training on another kind of device may differ by so much


def with_weights(
    files: ResultFiles, results: Results, folder: Path, device: str, allow_pickle: bool = False
) -> ResultFiles:
    """Train the winner again where its weights are gone, so that best-model/ is what best-config.json says.

    It is trained where weights of the study's trials lie, under a name of its own, and resumes where it was stopped.
    """
    winner, target = results.winner, folder / MODEL
    if files.best_model is not None or files.model_host or files.best_config is None or winner is None:
        return files
    extra = {"event": "retrained", "trial": winner.number}
    _log.info("the weights of trial %d are missing; it is trained again", winner.number, extra=extra)
    model_folder = folder / MODELS / name_of_retraining(results.record.info, winner)
    make_folder(model_folder.parent)
    words = python(
        "-m", "lmsearch.cli.main", "train", str(files.best_config), "--folder", str(model_folder), "--resume"
    )
    words += ["--device", device, "--json"] + (["--allow-pickle"] if allow_pickle else [])
    trained = subprocess.run(words, capture_output=True, text=True, check=False)
    if trained.returncode != 0:
        message = "the winner's weights are missing and training it again failed: %s"
        _log.warning(message, trained.stderr.strip(), extra=extra)
        return files
    result = json.loads(trained.stdout)
    if abs(result["perplexity"] / winner.perplexity - 1) > _SAME:
        _log.warning(
            "trained again, trial %d has perplexity %.2f instead of %.2f, as can happen on another device; the model "
            "is in %s",
            winner.number,
            result["perplexity"],
            winner.perplexity,
            model_folder,
            extra=extra,
        )
        return files
    copy_model(results.record.info, winner, model_folder, target)
    remove_tree(model_folder)
    model_folder.with_name(f"{model_folder.name}.training").unlink(missing_ok=True)
    return dataclasses.replace(files, best_model=target)
