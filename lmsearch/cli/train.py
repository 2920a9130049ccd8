"""`lmsearch train`."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmsearch import stopping
from lmsearch.cli.options import COUNT, device_option, json_option, pickle_option, warn_of_text
from lmsearch.cli.progress import reading_bar, training_line
from lmsearch.cli.terminal import say, say_json
from lmsearch.errors import ConfigError, SearchFailedError
from lmsearch.folders import check_new_name, make_folder, read_document, study_folder
from lmsearch.spelling import nearest

if TYPE_CHECKING:
    from lmsearch.config import RunConfig
    from lmsearch.lm.events import TrainState
    from lmsearch.lm.fit import Place
    from lmsearch.text.corpus import Corpus


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
@device_option
@pickle_option
@json_option
@click.option("--folder", hidden=True, type=click.Path(path_type=Path, file_okay=False))
def train(config: Path, **options: Any) -> int:
    """Train a closed config, such as a search's best-config.json, and keep the best epoch.

    Each model has its own folder, runs/NAME/seed-N, which another machine can use as it is. Ctrl-C saves the training.

    \b
    Examples:
        lmsearch train runs/default/best-config.json
        lmsearch train runs/default/best-config.json --seeds 3 --name final
        lmsearch train runs/default/best-config.json --resume --set train.learning_rate=0.0005
    """

    from lmsearch.lm.device import open_device
    from lmsearch.lm.fit import begun_with
    from lmsearch.study.reading import load_config
    from lmsearch.text.corpus import cache_folder, check_lengths, open_corpus
    from lmsearch.text.judgement import judge

    first = load_config(config)
    told = _told_result(config)
    name = options["name"] or told.get("study") or config.stem
    check_new_name(name)
    closed = _changed(first, options["changes"], options["epochs"])
    if options["resume"]:  # what its file does not give is as it was when the training began
        began = begun_with(_place(study_folder(name), options["folder"], closed.train.seed))
        closed = _changed(load_config(config, began), options["changes"], options["epochs"])
    where = open_device(options["device"])
    with reading_bar() as progress:
        corpus = open_corpus(closed.data, cache_folder(), allow_pickle=options["allow_pickle"], progress=progress)
    _warn_of_another_text(told, corpus.description, corpus.fingerprint)
    check_lengths(corpus, closed.train)
    warn_of_text(judge(corpus))
    session = _Session(corpus, where, study_folder(name), options["as_json"], options["folder"])
    configs = [_with_seed(closed, closed.train.seed + number) for number in range(options["seeds"])]
    starts = [session.start(one, options["resume"]) for one in configs]  # all are checked before the first begins
    session.say(f"{corpus.description}: {len(corpus.train.tokens):,} tokens, {len(corpus.vocabulary):,} words")
    parameters = closed.model.count_parameters(len(corpus.vocabulary))
    session.say(f"{parameters:,} parameters, {closed.train.epochs} epochs, on {where}")
    with _stopping() as heard:
        results = []
        for one, state in zip(configs, starts, strict=True):
            if (result := session.train(one, state, heard)) is None:
                session.say(f"saved; resume with: {_again(config, options)}")
                return 128 + heard[0]
            results.append(result)
    summary = _summary(results)
    if options["as_json"]:
        say_json(summary, indent=None)
        return 0
    if len(results) > 1:
        values = ", ".join(f"{result['perplexity']:.2f}" for result in results)
        session.say(f"over {len(results)} seeds: mean {summary['perplexity']:.2f}, standard deviation "
                    f"{summary['deviation']:.2f} ({values})")  # fmt: skip
    elif "perplexity" in told and not options["changes"] and options["epochs"] is None:
        same = told["perplexity"] == results[0]["perplexity"]
        session.say(
            f"{config.name} says {told['perplexity']:.4f}: {'the same, bit for bit' if same else 'not the same'}"
        )
    return 0


class _Session:
    """Trainings of one name, one after the other."""

    def __init__(self, corpus: "Corpus", device: Any, folder: Path, quiet: bool, model: Path | None) -> None:
        self.corpus = corpus
        self.device = device
        self.folder = folder
        self._model = model  # the one model's own folder, where it is not to be one of `folder`
        self._quiet = quiet

    def say(self, line: str) -> None:
        """Print a line, unless quiet."""
        if not self._quiet:
            say(line)

    def place(self, config: "RunConfig") -> "Place":
        """Return where a seed's training keeps what it makes."""
        return _place(self.folder, self._model, config.train.seed)

    def start(self, config: "RunConfig", resume: bool) -> "TrainState | None":
        """Return the state that a training resumes from, None where it starts; refuse to overwrite another one."""
        from lmsearch.lm.fit import comparable, read_state
        from lmsearch.study.reading import load_config

        place = self.place(config)
        if resume:
            return read_state(place, config, self.corpus) if place.state.exists() else None
        if place.state.exists():
            done = len(read_state(place, config, self.corpus, may_change=()).progress["valid_losses"])
            if done < config.train.epochs:
                raise ConfigError(
                    f"the training in {place.folder} stopped in epoch {done + 1} of {config.train.epochs}; resume it "
                    "with --resume, or start a new one under another --name"
                )
        elif place.folder.exists() and comparable(load_config(place.folder / "config.json")) != comparable(config):
            raise ConfigError(f"{place.folder} has a model of another config; use another --name")
        return None

    def train(self, config: "RunConfig", state: "TrainState | None", heard: list[int]) -> dict[str, Any] | None:
        """Train one model to its end and return its result; None where it was stopped."""
        import math

        from lmsearch.lm.fit import TrainingStoppedError, alone, fit
        from lmsearch.losses import perplexity
        from lmsearch.results.best import config_tables
        from lmsearch.text.judgement import unknown_share

        place = self.place(config)
        losses = [] if state is None else [float(loss) for loss in state.progress["valid_losses"]]
        steps = 0 if state is None else state.progress["steps"] - state.progress["block"]
        if state is not None:
            done = len(losses) >= config.train.epochs
            goes_on = "is finished already" if done else f"resumes in epoch {len(losses) + 1}"
            self.say(f"seed {config.train.seed} {goes_on}")
        tables = config_tables(config, place.folder)
        make_folder(place.folder.parent)
        tokens, epochs = len(self.corpus.train.tokens), config.train.epochs
        try:
            with alone(place), training_line(tokens, epochs, self._quiet) as line:
                for epoch in fit(
                    config, self.corpus, self.device, place, tables, state, lambda: bool(heard), line.step
                ):
                    line.clear()
                    losses.append(epoch.valid_loss)
                    seconds = epoch.train_seconds or epoch.seconds
                    milliseconds = 1e3 * seconds / max(1, epoch.step - steps)
                    self.say(
                        f"epoch {epoch.number:3}  train {epoch.train_loss:.4f}  valid {epoch.valid_loss:.4f}  "
                        f"perplexity {epoch.valid_perplexity:8.2f}  lr {epoch.learning_rate:.4g}  "
                        f"{milliseconds:.1f} ms/batch  {epoch.tokens / seconds:,.0f} tokens/s"
                    )
                    steps = epoch.step
        except TrainingStoppedError:
            return None
        number = min(range(len(losses)), key=lambda place: (math.isnan(losses[place]), losses[place])) + 1
        best, size = perplexity(losses[number - 1]), len(self.corpus.vocabulary)
        if not best < size:
            raise SearchFailedError(
                f"the training in {place.folder} diverged: no epoch is better than a guess among {size:,} words "
                f"(perplexity {size:,}); lower train.learning_rate"
            )
        self.say(f"best perplexity {best:.4f} in epoch {number}; its model is {place.folder}")
        known = (read_document(place.folder / "metrics.json") or {}).get("valid_known_loss")
        result = {"seed": config.train.seed, "perplexity": best, "epoch": number, "model": str(place.folder)}
        if isinstance(known, float) and unknown_share(self.corpus, self.corpus.valid):
            result["known_perplexity"] = perplexity(known)
            self.say(f"perplexity of the known words alone {result['known_perplexity']:.4f}")
        return result


def _place(folder: Path, model: Path | None, seed: int) -> "Place":
    from lmsearch.lm.fit import Place

    return Place(folder=model or folder / f"seed-{seed}")


def _changed(config: "RunConfig", changes: tuple[str, ...], epochs: int | None) -> "RunConfig":
    from lmsearch.config import FIELD_TYPES, RunConfig
    from lmsearch.study.reading import parse_value

    tables = config.as_tables().items()
    values: dict[str, Any] = {f"{section}.{name}": value for section, table in tables for name, value in table.items()}
    for text in changes:
        path, equals, value = text.partition("=")
        path = path.strip()
        if not equals:
            raise ConfigError(f"--set {text!r} is not NAME=VALUE; write --set train.learning_rate=0.002")
        if path not in FIELD_TYPES:
            raise ConfigError(f"unknown name {path}{nearest(path, FIELD_TYPES)}")
        values[path] = parse_value(value.strip())
    if epochs is not None:
        values["train.epochs"] = epochs
    return RunConfig.from_paths(values)


def _with_seed(config: "RunConfig", seed: int) -> "RunConfig":
    from dataclasses import replace

    return replace(config, train=replace(config.train, seed=seed))


def _summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and standard deviation (of a sample) over seeds; of one seed also where its model is."""
    import statistics

    values = [result["perplexity"] for result in results]
    summary = {
        "perplexity": statistics.mean(values),
        "deviation": None if len(values) < 2 else statistics.stdev(values),
    }
    return (results[0] if len(results) == 1 else {}) | summary | {"seeds": results}


def _again(config: Path, options: dict[str, Any]) -> str:
    """Return the command to resume with."""
    import shlex

    words = ["lmsearch", "train", str(config)]
    words += [] if options["name"] is None else ["--name", options["name"]]
    words += [] if options["seeds"] == 1 else ["--seeds", str(options["seeds"])]
    words += [] if options["epochs"] is None else ["--epochs", str(options["epochs"])]
    words += [word for change in options["changes"] for word in ("--set", change)]
    words += [] if options["device"] == "auto" else ["--device", options["device"]]
    words += ["--allow-pickle"] if options["allow_pickle"] else []
    return shlex.join([*words, "--resume"])


@contextlib.contextmanager
def _stopping() -> Iterator[list[int]]:
    """Provide a list to which a signal that asks to stop is added; a second one ends the process."""
    import os

    heard: list[int] = []

    def act(number: int) -> None:
        if number != stopping.SLURMS or not heard:
            heard.append(number)
        if len(heard) > 1:
            os._exit(128 + number)

    restore = stopping.listen(act)
    try:
        yield heard
    finally:
        restore()


def _told_result(config: Path) -> dict[str, Any]:
    """Return what a best-config.json says about itself; nothing for other files."""
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
        say(
            f"warning: this config was found on {corpus.get('description')} (fingerprint "
            f"{corpus.get('fingerprint')}), here is {description} (fingerprint {fingerprint}): "
            "perplexities cannot be compared",
            err=True,
        )
