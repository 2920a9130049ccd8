"""One model trained to its end, its best epoch kept on disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lmsearch.config import RunConfig
from lmsearch.lm.model_folder import save_model
from lmsearch.lm.optimizers import improves
from lmsearch.lm.train import Epoch, train
from lmsearch.text.corpus import Corpus


def fit(
    config: RunConfig, corpus: Corpus, device: torch.device, folder: Path, tables: dict[str, Any]
) -> Iterator[Epoch]:
    """Train a model, giving each epoch; `folder` then holds the model of the best so far.

    `tables` is the config as the folder shall have it, its corpus named from there.
    """
    losses: list[float] = []
    for event in train(config, corpus, device, None):
        if not isinstance(event, Epoch):
            continue
        if improves(losses, event.valid_loss):
            metrics = {
                "valid_loss": event.valid_loss,
                "perplexity": event.valid_perplexity,
                "epoch": event.number,
                "corpus": corpus.fingerprint,
            }
            save_model(folder, event.weights(), tables, corpus.vocabulary, metrics)
        losses.append(event.valid_loss)
        yield event
