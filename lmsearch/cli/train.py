"""`lmsearch train`."""

from pathlib import Path
from typing import Any

import click

from lmsearch.cli.options import RUNS, check_name, json_option
from lmsearch.errors import SearchFailedError


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--name", help="The folder under runs/ for the model; the config's study or file by default.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, or auto.")
@json_option
def train(config: Path, name: str | None, device: str, as_json: bool) -> None:
    """Train a closed config, such as a search's best-config.json, and keep its best epoch.

    \b
    Example:
        lmsearch train runs/default/best-config.json
    """
    import json
    import math

    from lmsearch.lm.fit import fit
    from lmsearch.lm.train import Epoch, open_device
    from lmsearch.results.best import config_tables
    from lmsearch.spec import load_config
    from lmsearch.text.corpus import cache_folder, check_lengths, open_corpus

    closed = load_config(config)
    told = _told_result(config)
    where = open_device(device)
    corpus = open_corpus(closed.data, cache_folder())
    _warn_of_another_text(told, corpus.description, corpus.fingerprint)
    check_lengths(corpus, closed.train.batch_size, closed.train.eval_batch_size)
    name = name or told.get("study") or config.stem
    check_name(name)
    folder = RUNS / name / f"seed-{closed.train.seed}"
    tables = config_tables(closed, folder)
    say = (lambda line: None) if as_json else click.echo
    parameters = closed.model.count_parameters(len(corpus.vocabulary))
    say(f"{corpus.description}: {len(corpus.train.tokens):,} tokens, {len(corpus.vocabulary):,} words")
    say(f"{parameters:,} parameters, {closed.train.epochs} epochs, on {where}")
    epochs: list[Epoch] = []
    for epoch in fit(closed, corpus, where, folder, tables):
        epochs.append(epoch)
        say(
            f"epoch {epoch.number:3}  train {epoch.train_loss:.4f}  valid {epoch.valid_loss:.4f}  "
            f"perplexity {epoch.valid_perplexity:8.2f}  {epoch.tokens / epoch.seconds:7,.0f} tokens/s"
        )
    if not any(math.isfinite(epoch.valid_loss) for epoch in epochs):
        raise SearchFailedError(f"the training of {config} diverged: no epoch has a finite loss")
    best = min(epochs, key=lambda epoch: epoch.valid_loss if math.isfinite(epoch.valid_loss) else math.inf)
    result = {"perplexity": best.valid_perplexity, "epoch": best.number, "model": str(folder)}
    if as_json:
        click.echo(json.dumps(result))
        return
    say(f"best perplexity {best.valid_perplexity:.4f} in epoch {best.number}; its model is {folder}")
    if "perplexity" in told:
        same = told["perplexity"] == best.valid_perplexity
        say(f"{config.name} says {told['perplexity']:.4f}: {'the same, bit for bit' if same else 'not the same'}")


def _told_result(config: Path) -> dict[str, Any]:
    """Give what a best-config.json says of itself; nothing for other files."""
    import json

    if config.suffix != ".json":
        return {}
    tables = json.loads(config.read_text(encoding="utf-8-sig"))
    result, provenance = tables.get("result"), tables.get("provenance")
    told: dict[str, Any] = {"corpus": provenance.get("corpus") if isinstance(provenance, dict) else None}
    if isinstance(result, dict):
        if isinstance(result.get("study"), str):
            told["study"] = result["study"]
        if isinstance(result.get("perplexity"), int | float):
            told["perplexity"] = result["perplexity"]
    return told


def _warn_of_another_text(told: dict[str, Any], description: str, fingerprint: str) -> None:
    corpus = told.get("corpus")
    if isinstance(corpus, dict) and corpus and corpus.get("fingerprint") != fingerprint:
        click.echo(
            f"warning: this config was found on {corpus.get('description')} (fingerprint "
            f"{corpus.get('fingerprint')}), here is {description} (fingerprint {fingerprint}): "
            "perplexities cannot be compared",
            err=True,
        )
