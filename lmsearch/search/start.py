"""A request in, a prepared search out: `run`, `plan`, `confirm`, an objective and a notebook all start here."""

import contextlib
import logging
import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.engine import URL

from lmsearch.errors import ConfigError, StoreError, StudyError
from lmsearch.folders import absolute, check_folder, check_name, check_new_name, make_folder, study_folder
from lmsearch.machine import default_devices, is_in_use
from lmsearch.search import budget as budgets
from lmsearch.search.begin import SpaceChangedError, begin, check_space
from lmsearch.search.budget import check_request
from lmsearch.search.confirm import begin_confirmation
from lmsearch.search.corpora import join_corpus, share_corpus
from lmsearch.search.placement import Placement
from lmsearch.search.take_over import check_source, complete
from lmsearch.search.work import STORE_SECONDS, WorkOptions
from lmsearch.spelling import exact_duration
from lmsearch.store.artifacts import Artifacts, study_files
from lmsearch.store.belonging import others_in, others_sentence
from lmsearch.store.commands import add_command
from lmsearch.store.copies import open_own_study
from lmsearch.store.opening import open_storage
from lmsearch.store.outages import WaitUpTo
from lmsearch.store.records import StudyInfo, find_study
from lmsearch.store.storage import FencedStorage
from lmsearch.study.options import check_pruner, check_sampler
from lmsearch.study.reading import load_study
from lmsearch.study.shipped import find_study_file
from lmsearch.study.spec import StudySpec
from lmsearch.text.corpus import Corpus, Progress, cache_folder, open_corpus
from lmsearch.text.judgement import judge
from lmsearch.version import __version__

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """What a person asks for; None is: as the study file or the store has it."""

    study_file: str = "default"  # a path, the name of a study that lmsearch ships, or of one in the store
    name: str | None = None
    sampler: str | None = None
    pruner: str | None = None
    trials: int | None = None
    more: int | None = None
    source: str | None = None  # a study whose trials are taken over
    time_limit: float | None = None  # seconds
    workers: int | None = None
    device: str = "auto"
    work: WorkOptions = field(default_factory=WorkOptions)
    placement: Placement = field(default_factory=Placement)

    def __post_init__(self) -> None:
        if self.sampler is not None:
            check_sampler(self.sampler)
        if self.pruner is not None:
            check_pruner(self.pruner)
        if self.trials is not None and self.more is not None:
            raise ConfigError("--trials sets the total and --more adds to it; give one of the two")

    @property
    def budget(self) -> budgets.Request:
        """Return what the request says of the budget and of who proposes and prunes."""
        return budgets.Request(sampler=self.sampler, pruner=self.pruner, trials=self.trials, more=self.more)

    def words(self) -> list[str]:
        """Return the command that resumes the search: what is in the budget already is not added again."""
        words = ["lmsearch", "run"] + ([] if self.study_file == "default" else [self.study_file])
        for option in ("name", "sampler", "pruner", "trials", "workers", "device"):
            value = getattr(self, option)
            if value is not None and (option, value) != ("device", "auto"):
                words += [f"--{option}", str(value)]
        words += [] if self.time_limit is None else ["--time-limit", exact_duration(self.time_limit)]
        words += [] if self.source is None else ["--from", self.source]
        return words + self.work.words() + self.placement.words()


@dataclass(frozen=True, kw_only=True)
class ConfirmRequest:
    """What a person asks for of a confirmation."""

    study: str
    top: int
    seeds: int
    workers: int | None = None
    device: str = "auto"
    corpus: Path | None = None  # where the text lies on this host, if elsewhere than on the first
    work: WorkOptions = field(default_factory=WorkOptions)
    placement: Placement = field(default_factory=Placement)

    def words(self) -> list[str]:
        """Return the command that resumes the confirmation."""
        words = ["lmsearch", "confirm", self.study, "--top", str(self.top), "--seeds", str(self.seeds)]
        words += [] if self.workers is None else ["--workers", str(self.workers)]
        words += [] if self.device == "auto" else ["--device", self.device]
        words += [] if self.corpus is None else ["--corpus", str(self.corpus)]
        return words + self.work.words() + self.placement.words()


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A study file that can be searched on this machine, and its text."""

    path: Path
    spec: StudySpec
    corpus: Corpus
    devices: list[str]  # one for each worker


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A search of which everything is checked and stored; what is missing is its workers."""

    storage: FencedStorage
    info: StudyInfo
    corpus: Corpus
    devices: list[str]
    until: float | None  # monotonic
    work: WorkOptions
    placement: Placement = field(default_factory=Placement)
    text: str = ""  # where the study's text lies on this host; "": as the study says

    @property
    def folder(self) -> Path:
        """Return the folder for the study's files."""
        return study_folder(self.info.ref.name)


def open_study_file(path: Path) -> tuple[StudySpec, Corpus]:
    """Read a study file and its text, and check that every end of its space makes a valid run."""
    spec = load_study(path)
    corpus = open_corpus(spec.data, cache_folder())
    check_space(spec, corpus)
    return spec, corpus


def open_request(request: SearchRequest, progress: Progress | None = None) -> Opened:
    """Open a request's study file without looking at a store. Raises `LmsearchError`."""
    path = find_study_file(request.study_file)
    return _opened(request, path, load_study(path), progress)


def _opened(request: SearchRequest, path: Path, spec: StudySpec, progress: Progress | None) -> Opened:
    check_request(spec, request.budget)
    devices = _devices(request.device, request.workers, request.placement)
    corpus = open_corpus(spec.data, cache_folder(), allow_pickle=request.work.allow_pickle, progress=progress)
    check_space(spec, corpus)
    return Opened(path=path, spec=spec, corpus=corpus, devices=devices)


def _devices(device: str, workers: int | None, placement: Placement) -> list[str]:
    """List the device of each worker; those of a cluster are looked at where the workers run."""
    if not placement.is_cluster:
        found = default_devices(device, workers)
        for name in sorted({name for name in found if is_in_use(name)}):
            message = "%s is in use by another search of yours on this host; they share it"
            _log.warning(message, name, extra={"event": "gpu_shared", "device": name})
        return found
    if workers is None:
        raise ConfigError(
            "name the number of workers with --workers: how many a cluster has room for is not known here"
        )
    return [device] * workers


def check_store(url: URL, placement: Placement) -> None:
    """Refuse a store that the hosts of a cluster cannot share."""
    if placement.is_cluster and url.get_backend_name() == "sqlite":
        raise ConfigError(
            f"workers placed by {placement.kind} run on several hosts, and SQLite is for one; name a PostgreSQL "
            "database with --storage postgresql://…"
        )


def check_open(spec: StudySpec, study_file: str) -> None:
    """Refuse a file with nothing to search: each of its trials would be the same training with the same seed."""
    if not spec.open:
        raise ConfigError(
            f"{study_file} leaves no value open, so there is nothing to search; train it with: "
            f"lmsearch train {shlex.quote(study_file)}, or open a value, such as learning_rate = {{ low = 0.001, "
            "high = 0.03, log = true }"
        )


def prepare(request: SearchRequest, url: URL, progress: Progress | None = None) -> Prepared:
    """Create or resume a request's study in a store. Everything is checked before anything is written.

    What a person should know is logged. Raises `LmsearchError`; `SpaceChangedError` where the file has another
    space than the study of its name.
    """
    check_store(url, request.placement)
    name, path, spec, known = _find(request, url)
    opened = _opened(request, path, spec, progress)
    corpus = opened.corpus
    if known is None:
        check_open(spec, request.study_file)
    for remark in (*judge(corpus), *spec.warnings()):
        _log.warning("%s", remark, extra={"event": "remark"})
    storage = _open(url, request.work.store_timeout, create=True)
    if request.work.artifacts is not None:
        share_corpus(corpus, request.work.artifacts)
    source = request.source or ("" if known is not None else spec.settings.source)
    if source:
        check_source(storage, source, name, spec, corpus)
    try:
        info = begin(
            storage, name, spec, str(absolute(path, any_name=True).parent), corpus, request.budget, request.source
        )
    except SpaceChangedError as error:
        error.new_study = ["lmsearch", "run", request.study_file, "--name", f"{name}-2", "--from", name]
        raise
    add_command(storage, info.ref.id, request.words())
    _take_over(storage, info)
    _prepare_folder(storage, info, request.work.artifacts)
    time_limit = request.time_limit or 3600 * spec.settings.hours
    return Prepared(
        storage=storage,
        info=info,
        corpus=corpus,
        devices=opened.devices,
        until=time.monotonic() + time_limit if time_limit else None,
        work=request.work,
        placement=request.placement,
    )


def prepare_confirmation(request: ConfirmRequest, url: URL, progress: Progress | None = None) -> Prepared:
    """Create or resume the confirmation of a study's best configurations. Raises `LmsearchError`."""
    check_store(url, request.placement)
    devices = _devices(request.device, request.workers, request.placement)
    storage = _open(url, request.work.store_timeout, write=True)
    text = "" if request.corpus is None else str(absolute(request.corpus, "the corpus"))
    study = open_own_study(storage, request.study)
    corpus = join_corpus(
        study,
        cache_folder(),
        text or None,
        request.work.artifacts,
        request.work.allow_pickle,
        progress,
    )
    info = begin_confirmation(storage, request.study, request.top, request.seeds)
    add_command(storage, study.ref.id, request.words())
    return Prepared(
        storage=storage,
        info=info,
        corpus=corpus,
        devices=devices,
        until=None,
        work=request.work,
        placement=request.placement,
        text=text,
    )


def _find(request: SearchRequest, url: URL) -> tuple[str, Path, StudySpec, StudyInfo | None]:
    """Return a request's name, its file and what that says, and the study of its name, None for a new one.

    What is neither a file nor a study that lmsearch ships may be the name of a study in the store, which is resumed as
    it stands there. Raises `LmsearchError`.
    """
    try:
        path = find_study_file(request.study_file)
    except ConfigError:
        name = request.study_file
        with contextlib.suppress(ConfigError, StudyError):
            check_name(name)
            known = _known_study(url, name, request.work.store_timeout)
            if known is not None and not known.confirms and request.name in (None, name):
                return name, Path(known.folder) / f"{name}.toml", known.spec, known
        raise
    name = path.stem if request.name is None else request.name
    check_name(name)
    check_folder(study_folder(name))
    spec = load_study(path)  # a mistake in the file is reported before a store is waited for
    known = _known_study(url, name, request.work.store_timeout)
    if known is None:
        check_new_name(name)
    elif known.defaults != __version__:
        spec = load_study(path, known.defaults)
    return name, path, spec, known


def _open(url: URL, timeout: float | None, create: bool = False, write: bool = False) -> FencedStorage:
    patience = WaitUpTo(STORE_SECONDS if timeout is None else timeout)
    return open_storage(url, create=create, write=write, patience=patience)


def _known_study(url: URL, name: str, timeout: float | None) -> StudyInfo | None:
    """Open a study without changing anything; None where there is no such store yet, or no such study."""
    try:
        opened = _open(url, timeout)
    except StoreError:
        return None  # whoever opens it to write says what is wrong with it, or makes it
    try:
        return find_study(opened, name)
    finally:
        opened.engine.dispose()


def _take_over(storage: FencedStorage, info: StudyInfo) -> None:
    """Take over another study's trials, now or if an earlier command ended before it had."""
    try:
        taken = complete(storage, info)
    except StudyError as error:
        message = "%s continues without the trials that it should take over: %s"
        _log.warning(message, info.ref.name, error, extra={"event": "not_taken_over"})
        return
    if taken is not None and info.source is not None:
        _log.info(
            "from %s: %d trials taken over, %d do not fit this space",
            info.source.name,
            taken.taken,
            taken.unfit,
            extra={"event": "taken_over", "source": info.source.name, "taken": taken.taken, "unfit": taken.unfit},
        )


def _prepare_folder(storage: FencedStorage, info: StudyInfo, artifacts: Artifacts | None) -> None:
    """Mark the study's folder as ours, and warn where files in it are newer than the store."""
    folder = study_folder(info.ref.name)
    with contextlib.suppress(OSError):  # what cannot be written is reported where it must be
        make_folder(folder)
    files = study_files(artifacts, info.ref.name, info.ref.key, folder)
    if others := others_in(storage, info, files.folder):
        _log.warning("%s", others_sentence(others), extra={"event": "newer_files"})
