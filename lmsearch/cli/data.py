"""`lmsearch data`: the texts that models are trained on."""

from pathlib import Path
from typing import Any

import click

from lmsearch.cli.options import COUNT, json_option, warn_of_text
from lmsearch.config import MOST_TRIALS
from lmsearch.errors import ConfigError, CorpusError
from lmsearch.folders import absolute
from lmsearch.spelling import nearest
from lmsearch.terminal.output import say, say_json
from lmsearch.terminal.progress import reading_bar


@click.group()
def data() -> None:
    """Fetch, inspect and convert texts.

    \b
    Examples:
        lmsearch data list
        lmsearch data show wikitext-2
    """


@data.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the texts that lmsearch knows by name.

    \b
    Example:
        lmsearch data list
    """
    from lmsearch.text.corpus import cache_folder
    from lmsearch.text.fetch import DATASETS, is_fetched

    rows: list[dict[str, Any]] = [
        {"name": "python-docs", "title": "what Python's help() shows", "tokens": None, "here": True, "licence": "PSF"}
    ]
    for name, dataset in DATASETS.items():
        rows.append(
            {
                "name": name,
                "title": dataset.title,
                "tokens": sum(file.tokens for file in dataset.files.values()),
                "here": is_fetched(name, cache_folder()),
                "licence": dataset.licence,
            }
        )
    if as_json:
        say_json(rows)
        return
    for row in rows:
        size = f"{row['tokens']:,} tokens" if row["tokens"] else "in every Python"
        state = "here" if row["here"] else f"fetched on first use, or by: lmsearch data fetch {row['name']}"
        say(f"{row['name']:14} {row['title']}, {size}, licence {row['licence']}; {state}")


@data.command()
@click.argument("name")
def fetch(name: str) -> None:
    """Fetch a text by name and verify it, for use without a network afterwards.

    \b
    Example:
        lmsearch data fetch wikitext-2
    """
    from lmsearch.text.corpus import cache_folder
    from lmsearch.text.fetch import DATASETS, fetched

    if name not in DATASETS:
        raise CorpusError(f"no text to fetch is called {name!r}{nearest(name, DATASETS)}")
    say(f"{name} is in {fetched(name, cache_folder())}")


@data.command()
@click.argument("corpus")
@click.option("--min-count", type=COUNT, help="As data.min_count. [default: 2, or 1 if the text has <unk>]")
@click.option("--max-vocabulary", type=click.IntRange(0, MOST_TRIALS), default=0, help="As data.max_vocabulary.")
@click.option("--normalize", default="none", show_default=True, help="none, basic or tutorial, as data.normalize.")
@click.option("--articles", default="none", show_default=True, help="none or headings, as data.articles.")
@click.option("--split", metavar="A,B,C", help="As data.split, for one file: shares of train, valid and test.")
@click.option(
    "--allow-pickle", is_flag=True, help="Read arrays of objects. They can run code, so only if you trust them."
)
@json_option
def show(corpus: str, split: str | None, allow_pickle: bool, as_json: bool, **options: Any) -> None:
    """Show a text as a model would see it. CORPUS is a name, a folder or a file.

    \b
    Examples:
        lmsearch data show python-docs --min-count 3
        lmsearch data show my-novel.txt --normalize basic
    """
    from lmsearch.config import BUILT_IN_CORPORA, DataConfig
    from lmsearch.text.corpus import cache_folder, open_corpus
    from lmsearch.text.judgement import judge
    from lmsearch.text.statistics import first_lines, most_frequent, split_facts

    if split is not None:
        options["split"] = _shares(split)
    location = corpus if corpus in BUILT_IN_CORPORA else _location(corpus)
    with reading_bar() as progress:
        opened = open_corpus(
            DataConfig(corpus=location, **options), cache_folder(), allow_pickle=allow_pickle, progress=progress
        )
    facts = split_facts(opened)
    words = most_frequent(opened, 12)
    if as_json:
        document = {
            "corpus": opened.description,
            "fingerprint": opened.fingerprint,
            "vocabulary": len(opened.vocabulary),
            "splits": [vars(one) for one in facts],
            "most_frequent": dict(words),
            "remarks": judge(opened),
        }
        say_json(document)
        return
    say(f"{opened.description}: {len(opened.vocabulary):,} words, fingerprint {opened.fingerprint}")
    say(f"{'split':6} {'tokens':>12} {'unknown':>8} {'articles':>9} {'words that occur':>17}")
    for one in facts:
        say(f"{one.split:6} {one.tokens:12,} {one.unknown:8.1%} {one.articles:9,} {one.distinct:17,}")
    say("most frequent: " + ", ".join(f"{word} {count:,}" for word, count in words))
    warn_of_text(judge(opened))
    say("first lines:")
    for line in first_lines(opened, opened.train, 3):
        say(f"  {line}")


def _location(corpus: str) -> str:
    """Return where a text lies; a pipe stays what it is called, since the end of its link is no path."""
    return corpus if Path(corpus).is_fifo() else str(absolute(corpus, "the corpus"))


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--split {text!r} is not three numbers; write 0.8,0.1,0.1") from error


@data.command()
@click.argument("source", type=click.Path(path_type=Path, file_okay=False))
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--allow-pickle", is_flag=True, help="Read arrays of objects. They can run code, so only if you trust them."
)
def convert(source: Path, target: Path, allow_pickle: bool) -> None:
    """Convert a folder of arrays of objects into arrays that are safe to read.

    SOURCE has vocab.npy and, for each split, an object array with one array of indices per article. TARGET is new.

    \b
    Example:
        lmsearch data convert wiki-arrays wiki --allow-pickle
    """
    from lmsearch.text.arrays import ArrayFolder
    from lmsearch.text.arrays import convert as turn

    if not (source / "vocab.npy").exists():
        raise CorpusError(f"{source} has no vocab.npy; only a folder of arrays can be converted")
    written = turn(ArrayFolder(source, allow_pickle), target)
    counts = ", ".join(f"{split} {tokens:,}" for split, tokens in written.items())
    say(f"{target} has the corpus now ({counts} tokens); it needs no --allow-pickle")
