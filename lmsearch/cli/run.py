"""`lmsearch run`."""

import contextlib
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmsearch.cli.look import file_lines, tell_remark, write_files
from lmsearch.cli.options import (
    COUNT,
    Number,
    command_text,
    json_option,
    open_store,
    open_store_at,
    parse_storage,
    storage_option,
    warn_of_text,
    work_options,
    work_words,
    workers_option,
)
from lmsearch.cli.progress import reading_bar
from lmsearch.cli.searching import Keeper, Setup, listen, watch, why_over
from lmsearch.cli.status import count_line, status_document
from lmsearch.cli.terminal import bearing, say, say_json
from lmsearch.errors import ConfigError, SearchFailedError, StoreGoneError
from lmsearch.folders import absolute, check_name, check_new_name, make_folder, study_folder
from lmsearch.spelling import nearest, spell_value
from lmsearch.version import __version__

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

    from lmsearch.results.best import ResultFiles
    from lmsearch.results.reading import Results
    from lmsearch.store.records import StudyInfo, StudyRecord
    from lmsearch.store.storage import FencedStorage
    from lmsearch.study.spec import StudySpec


@click.command()
@click.argument("study_file", default="default")
@storage_option
@click.option("--name", help="Name of the study. [default: the file's name]")
@click.option("--sampler", metavar="NAME", help="manual, grid, random or tpe, instead of the file's.")
@click.option("--pruner", metavar="NAME", help="median, asha, hyperband or none, instead of the file's.")
@click.option("--trials", type=COUNT, help="Set the trial budget of the study.")
@click.option("--more", type=COUNT, metavar="N", help="Add N trials to the budget.")
@workers_option
@click.option("--from", "source", metavar="STUDY", help="Reuse the trials of another study that fit this space.")
@click.option("--hours", type=Number(above=0, most=1e6), help="Stop after this many hours; progress is saved.")
@work_options
@click.option("--quiet", is_flag=True, help="Print only the result.")
@json_option
def run(study_file: str, storage: str, **options: Any) -> int:
    """Start or resume a study and run it until its trial budget is used up.

    STUDY_FILE is a file, or the name of a study that ships with lmsearch: default, tutorial, tutorial-regularised,
    wikitext2-awd-lstm, penn-treebank-awd-lstm, lstm-wikitext2, asha-paper.

    \b
    Examples:
        lmsearch run --sampler tpe --workers 4
        lmsearch run my-study.toml --more 20
    """
    from lmsearch.launch.supervise import Signals

    _check_options(options)
    setup = _set_up(study_file, storage, options)
    command = command_text(_own_words(study_file, options), setup.url)
    listen(signals := Signals())
    keeper = Keeper(setup)
    quiet = options["quiet"] or options["as_json"]
    if not quiet:
        with bearing():
            _print_plan(setup, setup.devices)
    try:
        record = watch(setup.launcher(signals).run(setup.devices), quiet, keeper)
    except StoreGoneError as error:
        raise StoreGoneError(f"{error}; progress is saved. Resume with: {command}") from error
    return _conclude(setup, record, command, signals.received, options, keeper)


def _check_options(options: dict[str, Any]) -> None:
    from lmsearch.study.options import check_pruner, check_sampler

    if options["sampler"] is not None:
        check_sampler(options["sampler"])
    if options["pruner"] is not None:
        check_pruner(options["pruner"])
    if options["trials"] is not None and options["more"] is not None:
        raise ConfigError("--trials sets the total and --more adds to it; give one of the two")


def _set_up(study_file: str, storage: str, options: dict[str, Any]) -> Setup:
    from lmsearch.machine import default_devices
    from lmsearch.results.best import check_folder
    from lmsearch.search.begin import Request, SpaceChangedError, begin, check_request, check_space
    from lmsearch.search.take_over import check_source
    from lmsearch.study.reading import load_study
    from lmsearch.text.corpus import cache_folder, open_corpus
    from lmsearch.text.judgement import judge

    path = find_study_file(study_file)
    name = path.stem if options["name"] is None else options["name"]
    check_name(name)
    check_folder(study_folder(name))
    url = parse_storage(storage)
    spec = load_study(path)
    known = known_study(url, name, options["store_timeout"])
    if known is None:
        check_new_name(name)
    if known is not None and known.defaults != __version__:
        spec = load_study(path, known.defaults)
    request = Request(
        sampler=options["sampler"], pruner=options["pruner"], trials=options["trials"], more=options["more"]
    )
    check_request(spec, request)
    devices = default_devices(options["device"], options["workers"])
    with reading_bar() as progress:
        corpus = open_corpus(spec.data, cache_folder(), allow_pickle=options["allow_pickle"], progress=progress)
    check_space(spec, corpus)
    if known is None:
        check_open(spec, study_file)
    warn_of_text(judge(corpus))
    for warning in spec.warnings():
        say(f"warning: {warning}", err=True)
    opened = open_store(storage, options["store_timeout"], create=True)
    source = options["source"] or ("" if known is not None else spec.settings.source)
    if source:
        check_source(opened, source, name, spec, corpus)
    try:
        info = begin(opened, name, spec, str(absolute(path).parent), corpus, request, options["source"])
    except SpaceChangedError as error:
        new = ["lmsearch", "run", study_file, "--name", f"{name}-2", "--from", name]
        raise SpaceChangedError(f"{error}; start a new study from it with: {command_text(new, url)}") from error
    _take_over(opened, info)
    _prepare_folder(opened, info, options["checkpoints"])
    hours = options["hours"] or spec.settings.hours
    return Setup(
        url=url,
        storage=opened,
        info=info,
        corpus=corpus,
        devices=devices,
        until=time.monotonic() + 3600 * hours if hours else None,
        options=options,
    )


def check_open(spec: "StudySpec", study_file: str) -> None:
    """Refuse a file with nothing to search: each of its trials would be the same training with the same seed."""
    if not spec.open:
        raise ConfigError(
            f"{study_file} leaves no value open, so there is nothing to search; train it with: "
            f"lmsearch train {shlex.quote(study_file)}, or open a value, such as learning_rate = {{ low = 0.001, "
            "high = 0.03, log = true }"
        )


def known_study(url: "URL", name: str, store_timeout: float | None) -> "StudyInfo | None":
    """Open a study without changing anything; None where there is no such store yet, or no such study."""
    from lmsearch.errors import StoreError
    from lmsearch.store.records import find_study

    try:
        opened = open_store_at(url, store_timeout)
    except StoreError:
        return None  # whoever opens it to write says what is wrong with it, or makes it
    try:
        return find_study(opened, name)
    finally:
        opened.engine.dispose()


def _take_over(storage: "FencedStorage", info: "StudyInfo") -> None:
    """Take over another study's trials, now or if an earlier command ended before it had."""
    from lmsearch.errors import StudyError
    from lmsearch.search.take_over import complete

    try:
        taken = complete(storage, info)
    except StudyError as error:
        say(f"warning: {info.ref.name} continues without the trials that it should take over: {error}", err=True)
        return
    if taken is not None and info.source is not None:
        told = f"{taken.taken} trials taken over, {taken.unfit} do not fit this space"
        say(f"from {info.source.name}: {told}", err=True)


def _prepare_folder(storage: "FencedStorage", info: "StudyInfo", checkpoints: Path | None) -> None:
    """Mark the study's folder as ours, and say so where files in it are newer than the store."""
    from lmsearch.store.belonging import others_in, others_sentence

    folder = study_folder(info.ref.name)
    with contextlib.suppress(OSError):  # what cannot be written is told of where it must be
        make_folder(folder)
    files = folder if checkpoints is None else checkpoints / info.ref.name
    if others := others_in(storage, info, files):
        say(f"warning: {others_sentence(others)}", err=True)


def find_study_file(text: str) -> Path:
    """Find a study file by path, or one that lmsearch brings by its name; raises `ConfigError`."""
    path, brought = Path(text), brought_studies()
    with contextlib.suppress(OSError, ValueError):  # a name that no file can have
        if path.exists() and not (path.is_dir() and text in brought):
            return path
    if text in brought:
        return brought[text]
    raise ConfigError(f"there is no study file {text!r}{nearest(text, brought)}")


def brought_studies() -> dict[str, Path]:
    """Return the study files that travel with lmsearch, by name."""
    package = Path(__file__).parent.parent
    folder = package / "studies" if (package / "studies").is_dir() else package.parent / "studies"
    return {path.stem: path for path in sorted(folder.glob("*.toml"), key=lambda path: path.stem)}


def _own_words(study_file: str, options: dict[str, Any]) -> list[str]:
    """Return the command to resume with: what is in the budget already is not added again."""
    words = ["lmsearch", "run"] + ([] if study_file == "default" else [study_file])
    for option in ("name", "sampler", "pruner", "trials", "workers", "device", "hours"):
        value = options[option]
        if value is not None and (option, value) != ("device", "auto"):
            words += [f"--{option}", f"{value:g}" if isinstance(value, float) else str(value)]
    words += [] if options["source"] is None else ["--from", options["source"]]
    words += work_words(options)
    return words + (["--quiet"] if options["quiet"] else []) + (["--json"] if options["as_json"] else [])


def _print_plan(setup: Setup, devices: list[str]) -> None:
    from lmsearch.search.plan import space_points
    from lmsearch.store.url import redact

    info, corpus, spec = setup.info, setup.corpus, setup.info.spec
    splits = [len(text.tokens) for text in (corpus.train, corpus.valid, corpus.test) if text is not None]
    owed = [ticket for ticket in setup.tickets() if ticket.state != "done"]
    sampler = " and ".join(sorted({ticket.sampler if ticket.origin == "search" else ticket.origin for ticket in owed}))
    pruner = " and ".join(sorted({ticket.pruner for ticket in owed}))
    say(f"study    {info.ref.name} in {redact(setup.url)}")
    say(
        f"corpus   {corpus.description}: {' / '.join(f'{count:,}' for count in splits)} tokens, "
        f"{len(corpus.vocabulary):,} words"
    )
    sizes = {point.parameters for point in space_points(spec, info.vocabulary_size)}
    spread = f"{min(sizes):,}" + (f" to {max(sizes):,}" if len(sizes) > 1 else "")
    say(f"model    {spread} parameters, {spec.epochs} epochs a trial")
    for number, (path, value) in enumerate(spec.open.items()):
        say(f"{'search' if number == 0 else '':8} {path}: {value}")
    if owed:
        workers = f"{len(devices)} workers ({', '.join(sorted(set(devices)))})"
        say(f"by       {sampler}, pruned by {pruner}, on {workers}")


def _conclude(
    setup: Setup, record: "StudyRecord", command: str, received: list[int], options: dict[str, Any], keeper: Keeper
) -> int:
    """Write the results, print them and return the exit code."""
    results = _results(setup, record)
    files = write_files(results, setup.folder, command, setup.url)
    tell_remark(files)
    keeper.end(results, interrupted=bool(received))
    if options["as_json"]:
        say_json(_document(setup, results, files))
    else:
        with bearing():
            _print_found(setup, results, files)
    if record.done < record.total:
        why = "interrupted" if received else why_over(setup)
        with bearing():
            say(f"{why}; everything is saved; resume with: {command}", err=options["as_json"])
        return 128 + received[0] if received else 0
    if record.best is None:
        raise SearchFailedError(_why_none(record))
    return 0


def _results(setup: Setup, record: "StudyRecord") -> "Results":
    """Add what else the store knows of the study; nothing where it went away before it could be asked."""
    from lmsearch.results.reading import Results, complete

    try:
        return complete(setup.storage, record)
    except StoreGoneError:
        return Results(record=record, importances={})


def _document(setup: Setup, results: "Results", files: "ResultFiles") -> dict[str, Any]:
    from lmsearch.store.tickets import present

    try:
        now = present(setup.storage)
    except StoreGoneError:  # interrupted while it was away
        now = (0.0, "")  # by no clock: the last heartbeat of a worker is not known
    return status_document(results.record, now) | {
        "importances": results.importances,
        "files": {
            "best_config": None if files.best_config is None else str(files.best_config),
            "best_model": None if files.best_model is None else str(files.best_model),
            "trials": str(files.trials),
        },
    }


def _print_found(setup: Setup, results: "Results", files: "ResultFiles") -> None:
    from lmsearch.results.advice import confirm_words

    record, shares = results.record, results.importances
    say()
    say(count_line(record))
    best = record.best
    if best is not None:
        config = record.info.spec.close(best.params, record.info.vocabulary_size)
        parameters = config.model.count_parameters(record.info.vocabulary_size)
        say(
            f"best perplexity {best.perplexity:.2f}: trial {best.number} by {best.by}, epoch {best.best_epoch}, "
            f"{parameters:,} parameters"
        )
        if best.known_perplexity is not None:
            say(f"  of the known words alone {best.known_perplexity:.2f}")
        for path, value in best.params.items():
            say(f"  {path} = {spell_value(value)}")
    _print_samplers(record)
    if shares:
        say("what mattered (share of the differences between trials)")
        for path, share in list(shares.items())[:4]:
            say(f"  {share:4.0%}  {path}")
    if failed := record.count("failed"):
        reasons = sorted({trial.reason for trial in record.trials if trial.outcome == "failed"})
        say(f"warning: {failed} trials failed: {'; '.join(reasons)}")
    say("files")
    for line in file_lines(files):
        say(line)
    if files.best_config is not None:
        say("next")
        if results.confirmation is None:
            say(f"  {setup.command(confirm_words(results.name))}")
        say(f"  {command_text(['lmsearch', 'report', record.info.ref.name], setup.url)}")
        say(f"  lmsearch train {files.best_config}")
        say(f"  {command_text(['lmsearch', 'dashboard'], setup.url)}")


def _print_samplers(record: "StudyRecord") -> None:
    """Compare who proposed the trials, where several took part."""
    groups: dict[str, list[Any]] = {}
    for trial in record.trials:
        groups.setdefault(trial.by or "another program", []).append(trial)
    if len(groups) < 2:
        return
    for name, trials in groups.items():
        complete = [trial.perplexity for trial in trials if trial.outcome == "complete"]
        found = f"best {min(complete):.2f}" if complete else "none complete"
        say(f"  {name}: {len(trials)} trials, {len(complete)} complete, {found}")


def _why_none(record: "StudyRecord") -> str:
    reasons = sorted({trial.reason or trial.outcome for trial in record.trials})
    return f"no trial of {record.info.ref.name} completed, so no model was kept: {'; '.join(reasons)}"
