"""`lmsearch test`, `evaluate`, `predict` and `generate`: a trained model in use."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmsearch.cli.options import (
    COUNT,
    NUMBER,
    SEED,
    artifacts_option,
    command_text,
    device_option,
    json_option,
    open_store,
    parse_storage,
    pickle_option,
    storage_option,
)
from lmsearch.errors import LmsearchError
from lmsearch.terminal.output import say, say_data, say_json, say_lines
from lmsearch.terminal.progress import reading_bar

if TYPE_CHECKING:
    from lmsearch.lm.use.trained import LineScore, TextResult, TrainedModel
    from lmsearch.store.artifacts import Artifacts
    from lmsearch.text.corpus import Corpus

_file = click.Path(path_type=Path, dir_okay=False)
corpus_option = click.option("--corpus", type=click.Path(), help="Path of the model's text, if it was moved.")


def open_model(
    text: str, device: str, storage: str, store_timeout: float | None, artifacts: "Artifacts | None"
) -> tuple[Path, "TrainedModel"]:
    """Open a model by its folder or its study, on a device; return its folder too."""
    from lmsearch.lm.device import open_device
    from lmsearch.lm.use.model_folder import load_model
    from lmsearch.results.models import find_model

    command = functools.partial(command_text, url=parse_storage(storage))
    folder, remarks = find_model(text, lambda: open_store(storage, store_timeout), command, artifacts)
    for remark in remarks:
        say(f"note: {remark}", err=True)
    return folder, load_model(folder).to(open_device(device))


@click.command()
@click.argument("model")
@device_option
@storage_option
@artifacts_option
@pickle_option
@corpus_option
@json_option
def test(model: str, device: str, storage: str, store_timeout: float | None, as_json: bool, **options: Any) -> None:
    """Evaluate a model on the test split, and record it beside the model and in its study.

    MODEL is a model's folder, or a study, whose best model is used. A test result is unbiased only once: whatever you
    select by it is fitted to the test split. So every test evaluation is recorded with its time.

    \b
    Example:
        lmsearch test default
    """
    from lmsearch.results.evaluations import add_evaluation, read_evaluations

    folder, trained = open_model(model, device, storage, store_timeout, options["artifacts"])
    corpus = corpus_of(folder, trained, options)
    tokens = corpus.test_tokens()
    read_evaluations(folder)  # one that cannot be read is reported before the split is evaluated
    found = trained.measure(tokens)
    loss = found.loss
    how: dict[str, Any] = _known(found)
    validation = trained.validation(corpus.valid.tokens)
    if validation is not None:
        how["validation"] = {"perplexity": validation.perplexity, "tokens": validation.tokens} | _known(validation)
    evaluation, number = add_evaluation(folder, loss, len(tokens), corpus.fingerprint, **how)
    tell_study(trained, folder, evaluation, storage, store_timeout)
    if as_json:
        say_json(evaluation | {"look": number}, indent=None)
        return
    say(
        f"test perplexity {evaluation['perplexity']:.4f} ({loss:.5f} nats) "
        f"over {evaluation['tokens'] - 1:,} predictions"
    )
    _say_known(found)
    if validation is not None:
        say(f"in validation the perplexity was {validation.perplexity:.4f} over {validation.tokens - 1:,} predictions")
        _say_known(validation)
        say("the splits are different text, so that these figures differ also for a model that is not overfitted")
    if number > 1:
        say(f"warning: this is test evaluation {number} of this model. Do not select by it: the estimate is now biased")
    say(f"the test evaluation is recorded in {folder / 'test-looks.json'}")


def _known(found: "TextResult") -> dict[str, Any]:
    """Return what the unknown words do to a perplexity, where there are any."""
    return {"known_perplexity": found.known_perplexity, "unknown": found.unknown} if found.unknown else {}


def _say_known(found: "TextResult") -> None:
    """Say what the unknown words do to a perplexity, where there are any."""
    if found.unknown:
        say(
            f"unknown words {found.unknown:,} ({found.unknown / found.tokens:.1%}); of the known words alone the "
            f"perplexity is {found.known_perplexity:.4f}"
        )


def corpus_of(folder: Path, trained: "TrainedModel", options: dict[str, Any]) -> "Corpus":
    """Open the text that a model was trained on, by a command's options."""
    from lmsearch.search.corpora import model_corpus

    with reading_bar() as progress:
        trust = {"allow_pickle": options["allow_pickle"], "progress": progress}
        return model_corpus(folder, trained, options["corpus"], options["artifacts"], **trust)


def tell_study(
    trained: "TrainedModel", folder: Path, evaluation: dict[str, Any], storage: str, store_timeout: float | None
) -> None:
    """Record a test evaluation in the study that the model comes from, where it comes from one."""
    from lmsearch.results.evaluations import add_evaluation_to_study

    if not isinstance(trained.metrics.get("study"), str):
        return
    try:
        opened = open_store(storage, store_timeout)
        add_evaluation_to_study(opened, trained.metrics, evaluation | {"model": str(folder.resolve())})
    except LmsearchError as error:
        say(f"warning: the test evaluation is recorded beside the model, but not in the study: {error}", err=True)


@click.command()
@click.argument("model")
@click.option("--text", required=True, type=click.Path(path_type=Path, dir_okay=False), help="A text file; may be .gz.")
@click.option("--lines", is_flag=True, help="Score each line alone, as for the sentences of an n-best list.")
@click.option("--words", is_flag=True, help="With --lines: also the log-probability of each word.")
@device_option
@storage_option
@artifacts_option
@json_option
def evaluate(
    model: str,
    text: Path,
    lines: bool,
    words: bool,
    device: str,
    storage: str,
    store_timeout: float | None,
    artifacts: "Artifacts | None",
    as_json: bool,
) -> None:
    """Compute the exact perplexity of any text, over the model's whole vocabulary.

    The text is split into words as the training text was. Of N tokens (an end of line is one) the N - 1 after the
    first are predicted. A word that the model does not know counts as <unk>: with many of these, the perplexity says
    little.

    \b
    Example:
        lmsearch evaluate default --text my-text.txt
        lmsearch evaluate default --text n-best.txt --lines
    """
    from lmsearch.text.readers import text_lines

    if words and not lines:
        raise click.UsageError("--words goes with --lines")
    _, trained = open_model(model, device, storage, store_timeout, artifacts)
    if lines:
        _score_lines(trained, text, words, as_json)
        return
    result = trained.evaluate(text_lines(text))
    if as_json:
        document = {
            "loss": result.loss,
            "perplexity": result.perplexity,
            "tokens": result.tokens,
            "unknown": result.unknown,
            "known_perplexity": result.known_perplexity,
        }
        say_json(document, indent=None)
        return
    say(f"perplexity {result.perplexity:.4f} ({result.loss:.5f} nats) over {result.tokens - 1:,} predictions")
    _say_known(result)


def _score_lines(trained: "TrainedModel", text: Path, with_words: bool, as_json: bool) -> None:
    """Print the log-probability, the words and the perplexity of each line alone, between tabulators."""
    from lmsearch.text.readers import text_lines

    scores = trained.score(text_lines(text))
    if as_json:
        say_json({"lines": [_line_document(score, with_words) for score in scores]}, indent=None)
        return
    say_lines("log-probability\twords\tunknown\tperplexity\tline")
    for score in scores:
        line = " ".join(score.words[:-1])
        if with_words:
            pairs = zip(score.words, score.log_probabilities, strict=True)
            line = " ".join(f"{word} {log_probability:.4f}" for word, log_probability in pairs)
        numbers = f"{score.log_probability:.5f}\t{len(score.words)}\t{score.unknown}\t{score.perplexity:.3f}"
        say_lines(f"{numbers}\t{line}")


def _line_document(score: "LineScore", with_words: bool) -> dict[str, Any]:
    found = {
        "log_probability": score.log_probability,
        "words": len(score.words),
        "unknown": score.unknown,
        "perplexity": score.perplexity,
    }
    pairs = zip(score.words, score.log_probabilities.tolist(), strict=True)
    return found | ({"log_probabilities": [list(pair) for pair in pairs]} if with_words else {})


@click.command()
@click.argument("model")
@click.argument("contexts", type=_file)
@click.option("--top", type=COUNT, metavar="N", help="Show the N most probable words for each context.")
@click.option(
    "--vocabulary", type=click.Path(path_type=Path, dir_okay=False), help="The vocab.npy that the indices refer to."
)
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), help="File for the log-probabilities of all words."
)
@device_option
@storage_option
@artifacts_option
@pickle_option
@json_option
def predict(
    model: str,
    contexts: Path,
    top: int | None,
    vocabulary: Path | None,
    output: Path | None,
    device: str,
    storage: str,
    store_timeout: float | None,
    artifacts: "Artifacts | None",
    allow_pickle: bool,
    as_json: bool,
) -> None:
    """Predict the word after each context of an .npz file.

    CONTEXTS holds `inp`, integers of shape (N, T), and optionally `out`, of shape (N,). With `out`, the mean negative
    log-likelihood of those words is printed. Without `out`, or with --output, the log-probabilities of all words are
    written, of shape (N, V). The indices are the model's own, or those of --vocabulary.

    \b
    Example:
        lmsearch predict default prediction.npz --top 10
    """
    from lmsearch.lm.use.predict import log_likelihoods, read_contexts, top_words, write_log_probabilities

    _, trained = open_model(model, device, storage, store_timeout, artifacts)
    parsed = read_contexts(contexts, trained.vocabulary, vocabulary, allow_pickle)
    document: dict[str, Any] = {"contexts": len(parsed.contexts_NT)}
    if parsed.unknown:
        say(f"{parsed.unknown:,} of the indices are words that the model does not know, <unk> to it", err=True)
    if parsed.next_N is not None:
        losses_N = -log_likelihoods(trained, parsed)
        document["mean_negative_log_likelihood"] = float(losses_N.mean())
    if output is not None or (parsed.next_N is None and top is None):
        output = output or contexts.with_suffix(".log-probabilities.npy")
        write_log_probabilities(trained, parsed, output)
        document["log_probabilities"] = str(output)
    if top is not None:
        document["top"] = top_words(trained, parsed, top)
    if as_json:
        say_json(document, indent=None)
        return
    if "mean_negative_log_likelihood" in document:
        say(
            f"mean negative log-likelihood {document['mean_negative_log_likelihood']:.5f} nats "
            f"over {document['contexts']:,}"
        )
    if "log_probabilities" in document:
        say(f"log-probabilities of {document['contexts']:,} contexts are in {output}")
    for number, candidates in enumerate(document.get("top", [])):
        words = ", ".join(f"{one['word']} {one['probability']:.3f}" for one in candidates["candidates"])
        say(f"{number:4}  … {' '.join(candidates['context'][-8:])} → {words}{_next_word(candidates)}")


def _next_word(candidates: dict[str, Any]) -> str:
    if candidates.get("next") is None:
        return ""
    return f"  (the next word is {candidates['next']['word']}, {candidates['next']['probability']:.3f})"


@click.command()
@click.argument("model")
@click.option("--prompt", default="", help="Text to continue; it is printed too.")
@click.option("--words", type=click.IntRange(min=1), default=100, show_default=True, help="Number of words.")
@click.option(
    "--temperature", type=NUMBER, default=1.0, show_default=True, help="0 always takes the most probable word."
)
@click.option("--top-k", type=int, default=0, help="Draw from the k most probable words only.")
@click.option(
    "--top-p", type=NUMBER, default=1.0, help="Draw from the most probable words that together reach this probability."
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="The same seed gives the same text.")
@click.option("--no-unk/--unk", default=True, show_default=True, help="Whether to avoid <unk>.")
@click.option("--samples", type=COUNT, default=1, show_default=True, help="Number of texts.")
@device_option
@storage_option
@artifacts_option
def generate(model: str, prompt: str, words: int, seed: int, samples: int, device: str, **options: Any) -> None:
    """Generate text with a model.

    Each word is printed as soon as it is drawn, and is the model's next input.

    \b
    Examples:
        lmsearch generate default --words 60
        lmsearch generate default --prompt "the list is" --temperature 0.7 --top-k 50
    """
    import itertools

    from lmsearch.lm.use.generate import Sampling
    from lmsearch.text.vocabulary import EOS

    storage, store_timeout, artifacts = (options.pop(name) for name in ("storage", "store_timeout", "artifacts"))
    Sampling(**options)  # refused before a model is loaded
    _, trained = open_model(model, device, storage, store_timeout, artifacts)
    prompt_words = trained.prompt_words(prompt)
    if unknown := [word for word in prompt_words if word not in trained.vocabulary.index]:
        say(f"the model does not know {', '.join(map(repr, dict.fromkeys(unknown)))}: <unk> to it", err=True)
    for number in range(samples):
        if samples > 1:
            say_lines(f"{'' if number == 0 else chr(10)}sample {number + 1}, seed {seed + number}:")
        fresh = True
        for word in itertools.chain(prompt_words, trained.generate(prompt, words, seed + number, **options)):
            say_data("\n" if word == EOS else word if fresh else f" {word}")
            fresh = word == EOS
        say()


@click.command()
@click.argument("model")
@click.argument("output", type=_file)
@storage_option
@artifacts_option
def onnx(model: str, output: Path, storage: str, store_timeout: float | None, artifacts: "Artifacts | None") -> None:
    """Write a model as an ONNX file, for programs without PyTorch.

    It reads word indices of shape (T, B) and the states before them, and gives log-probabilities of the next words,
    (T, B, V), and the states after. The words are in the model's vocabulary.json, in the order of the indices. Needs
    the package onnx: pip install 'lmsearch[onnx]'.

    \b
    Example:
        lmsearch onnx default model.onnx
    """
    from lmsearch.lm.use.portable import names_of_states, write_onnx

    folder, trained = open_model(model, "cpu", storage, store_timeout, artifacts)
    write_onnx(trained, output)
    inputs = ", ".join(["tokens", *names_of_states(trained.model)])
    say(f"{output}: inputs {inputs}; its words are in {folder / 'vocabulary.json'}")
    if trained.model.steps_alone:
        say("this model takes its steps one by one: give it one word of each text at a time")
