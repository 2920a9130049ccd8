"""`lmsearch pointer` and `dynamic`: a model that adapts to the text it reads."""

from typing import TYPE_CHECKING, Any

import click

from lmsearch.cli.model import corpus_of, corpus_option, open_model, tell_study
from lmsearch.cli.options import (
    COUNT,
    SEED,
    artifacts_option,
    device_option,
    json_option,
    pickle_option,
    storage_option,
)
from lmsearch.config import MOST_TRIALS
from lmsearch.terminal.output import say, say_json

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from lmsearch.lm.use.cache import CacheConstants, ReadText
    from lmsearch.lm.use.trained import TrainedModel

_PAIRS = 30  # of window and theta that are tried for a cache on top of dynamic evaluation

_TEST = click.option(
    "--test", "with_test", is_flag=True, help="Then evaluate on the test split, once, with the constants found."
)
_SEED = click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the search.")


@click.command()
@click.argument("model")
@click.option(
    "--trials", type=click.IntRange(5, MOST_TRIALS), default=30, show_default=True, help="Number of pairs to try."
)
@_SEED
@_TEST
@device_option
@storage_option
@artifacts_option
@pickle_option
@corpus_option
@json_option
def pointer(model: str, trials: int, seed: int, with_test: bool, device: str, storage: str, **options: Any) -> None:
    """Add a cache to a model: it raises words that followed similar contexts earlier in the text.

    Window, theta and the cache's weight are searched on the validation split; the model itself does not change. The
    constants are written into the model's folder, as pointer.json.

    \b
    Example:
        lmsearch pointer default --test
    """

    from lmsearch.files import replace_file
    from lmsearch.folders import POINTER
    from lmsearch.lm.use.cache import losses_with, read_text
    from lmsearch.losses import json_text, perplexity
    from lmsearch.results.evaluations import add_evaluation, read_evaluations
    from lmsearch.search.tune import tune

    folder, trained = open_model(model, device, storage, options["store_timeout"], options["artifacts"])
    corpus = corpus_of(folder, trained, options)
    if with_test:  # refused before the search
        corpus.test_tokens()
        read_evaluations(folder)
    said = (lambda line: None) if options["as_json"] else say
    said(f"reading {len(corpus.valid.tokens):,} tokens of the validation split")
    found = tune(
        read_text(trained, corpus.valid.tokens),
        trials,
        seed,
        lambda number, loss: said(f"  {number:3} of {trials}: {perplexity(loss):.2f}"),
    )
    document = found.document()
    replace_file(folder / POINTER, json_text(document | {"corpus": corpus.fingerprint}, indent=2) + "\n")
    if with_test:
        tokens = corpus.test_tokens()
        loss, alone = losses_with(found.constants, read_text(trained, tokens))
        searched = found.constants.as_dict()
        evaluation, number = add_evaluation(folder, loss, len(tokens), corpus.fingerprint, pointer=searched)
        tell_study(trained, folder, evaluation, storage, options["store_timeout"])
        document["test"] = {"perplexity": perplexity(loss), "perplexity_without": perplexity(alone), "look": number}
    if options["as_json"]:
        say_json(document, indent=None)
        return
    constants = found.constants
    say(f"window {constants.window}, theta {constants.theta:.4g}, lambda {constants.weight:.4g}")
    for split in ("valid", "test"):
        if split in document:
            one = document[split]
            say(f"{split} perplexity {one['perplexity']:.2f} with the cache, {one['perplexity_without']:.2f} without")
    say(f"the constants are in {folder / POINTER}")


@click.command()
@click.argument("model")
@click.option(
    "--trials", type=click.IntRange(5, MOST_TRIALS), default=12, show_default=True, help="Number of pairs to try."
)
@_SEED
@click.option(
    "--segment",
    type=COUNT,
    default=20,
    show_default=True,
    help="Tokens that are predicted before they are learnt.",
)
@click.option(
    "--tokens", type=COUNT, default=20_000, show_default=True, help="Tokens of the validation split for the search."
)
@click.option("--cache", "with_cache", is_flag=True, help="Also with a cache, as of `lmsearch pointer`, on top.")
@_TEST
@device_option
@storage_option
@artifacts_option
@pickle_option
@corpus_option
@json_option
def dynamic(
    model: str, trials: int, seed: int, segment: int, tokens: int, with_cache: bool, with_test: bool, **options: Any
) -> None:
    """Let a model learn from the text that it predicts (dynamic evaluation).

    Each segment is predicted before it is learnt from. Learning rate and decay are searched on the first tokens of the
    validation split; the saved model does not change. The constants are written into the model's folder, as
    dynamic.json.

    \b
    Example:
        lmsearch dynamic default --cache --test
    """
    from lmsearch.files import replace_file
    from lmsearch.folders import DYNAMIC
    from lmsearch.lm.use.dynamic import gradient_scales, read_text_dynamically
    from lmsearch.losses import json_text, perplexity
    from lmsearch.results.evaluations import add_evaluation, read_evaluations
    from lmsearch.search.tune import tune, tune_dynamic

    folder, trained = open_model(
        model, options["device"], options["storage"], options["store_timeout"], options["artifacts"]
    )
    corpus = corpus_of(folder, trained, options)
    if with_test:  # refused before the search
        corpus.test_tokens()
        read_evaluations(folder)
    said = (lambda line: None) if options["as_json"] else say
    said("measuring the gradients of the training split")
    scales = gradient_scales(trained, corpus.train.tokens, segment)
    part = corpus.valid.tokens[: tokens + 1]
    said(f"searching the constants on {len(part):,} tokens of the validation split")
    constants = tune_dynamic(
        lambda tried: float(read_text_dynamically(trained, part, tried, scales).losses_N.mean()),
        segment,
        trials,
        seed,
        lambda number, loss: said(f"  {number:3} of {trials}: {perplexity(loss):.2f}"),
    )
    said(f"reading {len(corpus.valid.tokens):,} tokens of the validation split")
    read = read_text_dynamically(trained, corpus.valid.tokens, constants, scales)
    cache = tune(read, _PAIRS, seed, lambda number, loss: None).constants if with_cache else None
    document: dict[str, Any] = {
        "constants": constants.as_dict(),
        "valid": _figures(trained, corpus.valid.tokens, read, cache),
    }
    if cache is not None:
        document["cache"] = cache.as_dict()
    replace_file(folder / DYNAMIC, json_text(document | {"corpus": corpus.fingerprint}, indent=2) + "\n")
    if with_test:
        tokens_N = corpus.test_tokens()
        read = read_text_dynamically(trained, tokens_N, constants, scales)
        document["test"] = _figures(trained, tokens_N, read, cache)
        how = {"dynamic": constants.as_dict()} | ({} if cache is None else {"pointer": cache.as_dict()})
        loss = _loss(read, cache)
        evaluation, number = add_evaluation(folder, loss, len(tokens_N), corpus.fingerprint, **how)
        tell_study(trained, folder, evaluation, options["storage"], options["store_timeout"])
        document["test"]["look"] = number
    if options["as_json"]:
        say_json(document, indent=None)
        return
    say(f"learning rate {constants.learning_rate:.3g}, decay {constants.decay:.3g}, segments of {segment} tokens")
    for split in ("valid", "test"):
        if split in document:
            one = document[split]
            beside = f", with the cache too {one['perplexity_cache']:.2f}" if with_cache else ""
            say(f"{split} perplexity {one['perplexity']:.2f}{beside}, {one['perplexity_without']:.2f} without")
    say(f"the constants are in {folder / DYNAMIC}")


def _loss(read: "ReadText", cache: "CacheConstants | None") -> float:
    from lmsearch.lm.use.cache import losses_with

    return float(read.losses_N.mean()) if cache is None else losses_with(cache, read)[0]


def _figures(
    trained: "TrainedModel", tokens: "npt.NDArray[np.int32]", read: "ReadText", cache: "CacheConstants | None"
) -> dict[str, Any]:
    """Return a text's perplexity with dynamic evaluation, without it, and with a cache on top where there is one."""
    from lmsearch.losses import perplexity

    found = {"perplexity": perplexity(_loss(read, None)), "perplexity_without": trained.measure(tokens).perplexity}
    return found if cache is None else found | {"perplexity_cache": perplexity(_loss(read, cache))}
