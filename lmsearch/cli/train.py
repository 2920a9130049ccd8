"""`lmsearch train`."""

import contextlib
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmsearch import stopping
from lmsearch.cli.model import open_model
from lmsearch.cli.options import (
    COUNT,
    artifacts_option,
    device_option,
    json_option,
    pickle_option,
    storage_option,
    warn_of_text,
)
from lmsearch.terminal.output import say, say_json
from lmsearch.terminal.progress import reading_bar, training_line

if TYPE_CHECKING:
    from lmsearch.lm.training import Training, TrainResult

Say = Callable[[str], None]


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--name", help="Folder under runs/ for the models. [default: the config's study, otherwise its file name]"
)
@click.option(
    "--seeds",
    type=COUNT,
    metavar="N",
    default=1,
    show_default=True,
    help="Number of models to train, each with its own seed.",
)
@click.option("--epochs", type=COUNT, help="Number of epochs, instead of the config's.")
@click.option(
    "--set", "changes", multiple=True, metavar="NAME=VALUE", help="Change a value of the config. May be repeated."
)
@click.option("--resume", is_flag=True, help="Resume an earlier training of the same name.")
@click.option(
    "--from", "source", metavar="MODEL", help="Start from the weights of a model or of a study's best: fine-tuning."
)
@click.option(
    "--embeddings",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Start from embeddings: a text file with a word and its numbers a line (GloVe, word2vec).",
)
@device_option
@storage_option
@artifacts_option
@pickle_option
@json_option
@click.option("--folder", hidden=True, type=click.Path(path_type=Path, file_okay=False))
def train(config: Path, source: str | None, **options: Any) -> int:
    """Train a closed config, such as a search's best-config.json, and keep the best epoch.

    Each model has its own folder, runs/NAME/seed-N, which another machine can use as it is. Ctrl-C saves the training.

    \b
    Examples:
        lmsearch train runs/default/best-config.json
        lmsearch train runs/default/best-config.json --seeds 3 --name final
        lmsearch train runs/default/best-config.json --resume --set train.learning_rate=0.0005
        lmsearch train runs/default/best-config.json --from default --set data.corpus=my-text --name tuned
    """
    from lmsearch.lm.fit import TrainingStoppedError
    from lmsearch.lm.training import TrainRequest, prepare_training, summary

    as_json = options.pop("as_json")
    store = tuple(options.pop(name) for name in ("storage", "store_timeout", "artifacts"))
    request = TrainRequest(config=config, **options)
    given = None if source is None else (source, open_model(source, "cpu", *store)[1])
    with reading_bar() as progress:
        prepared = prepare_training(request, progress, given)
    warn_of_text(prepared.remarks)
    tell: Say = (lambda line: None) if as_json else say
    corpus, first = prepared.corpus, prepared.trainings[0].config
    tell(f"{corpus.description}: {len(corpus.train.tokens):,} tokens, {len(corpus.vocabulary):,} words")
    parameters = first.model.count_parameters(len(corpus.vocabulary))
    tell(f"{parameters:,} parameters, {first.train.epochs} epochs, on {prepared.device}")
    if (initial := prepared.initial) is not None:
        tell(
            f"starts from {initial.description}, which knows {initial.words:,} of the {len(corpus.vocabulary):,} words"
        )
    with _stopping() as received:
        try:
            results = [_train(training, received, tell, as_json) for training in prepared.trainings]
        except TrainingStoppedError:
            tell(f"saved; resume with: {shlex.join(request.resume_words())}")
            return 128 + received[0]
    found = summary(results)
    if as_json:
        say_json(found, indent=None)
    elif len(results) > 1:
        values = ", ".join(f"{result.perplexity:.2f}" for result in results)
        say(f"over {len(results)} seeds: mean {found['perplexity']:.2f}, standard deviation "
            f"{found['deviation']:.2f} ({values})")  # fmt: skip
    elif prepared.recorded_perplexity is not None and not request.changes and request.epochs is None:
        same = prepared.recorded_perplexity == results[0].perplexity
        verdict = "the same, bit for bit" if same else "not the same"
        say(f"{config.name} says {prepared.recorded_perplexity:.4f}: {verdict}")
    return 0


def _train(training: "Training", received: list[int], tell: Say, quiet: bool) -> "TrainResult":
    """Train one model to its end, with a line for each epoch; raises `TrainingStoppedError`."""
    config, state = training.config, training.state
    steps = 0 if state is None else state.progress["steps"] - state.progress["block"]
    if state is not None:
        done = len(training.losses) >= config.train.epochs
        progress = "is finished already" if done else f"resumes in epoch {len(training.losses) + 1}"
        tell(f"seed {config.train.seed} {progress}")
    with training_line(len(training.corpus.train.tokens), config.train.epochs, quiet) as line:
        for epoch in training.run(lambda: bool(received), line.step):
            line.clear()
            seconds = epoch.train_seconds or epoch.seconds
            milliseconds = 1e3 * seconds / max(1, epoch.step - steps)
            tell(
                f"epoch {epoch.number:3}  train {epoch.train_loss:.4f}  valid {epoch.valid_loss:.4f}  "
                f"perplexity {epoch.valid_perplexity:8.2f}  lr {epoch.learning_rate:.4g}  "
                f"{milliseconds:.1f} ms/batch  {epoch.tokens / seconds:,.0f} tokens/s"
            )
            steps = epoch.step
    result = training.result()
    tell(f"best perplexity {result.perplexity:.4f} in epoch {result.epoch}; its model is {result.model}")
    if result.known_perplexity is not None:
        tell(f"perplexity of the known words alone {result.known_perplexity:.4f}")
    return result


@contextlib.contextmanager
def _stopping() -> Iterator[list[int]]:
    """Provide a list to which a signal that asks to stop is added; a second one ends the process."""
    import os

    received: list[int] = []

    def act(number: int) -> None:
        if number != stopping.SLURMS or not received:
            received.append(number)
        if len(received) > 1:
            os._exit(128 + number)

    restore = stopping.listen(act)
    try:
        yield received
    finally:
        restore()
