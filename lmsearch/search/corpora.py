"""The text of a study on a worker's host: what lies there, else what `lmsearch run` put beside the checkpoints."""

import contextlib
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from lmsearch.errors import ConfigError, CorpusError
from lmsearch.files import remove_tree
from lmsearch.folders import make_folder
from lmsearch.formats import NewerFormatError
from lmsearch.store.artifacts import Artifacts, ArtifactsError, fetch_folder, put_folder
from lmsearch.store.records import StudyInfo
from lmsearch.text.corpus import Corpus, Progress, cache_folder, load_cached, open_corpus
from lmsearch.text.fetch import DATASETS
from lmsearch.text.readers import SPLITS

if TYPE_CHECKING:
    from lmsearch.lm.use.trained import TrainedModel

_NEEDED = ("meta.json", *(f"{split}{end}" for split in ("train", "valid") for end in (".npy", ".articles.npy")))
_FILES = ("meta.json", *(f"{split}{end}" for split in SPLITS for end in (".npy", ".articles.npy")))


def join_corpus(
    info: StudyInfo,
    cache: Path,
    corpus: str | None,
    artifacts: Artifacts | None,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> Corpus:
    """Open the study's corpus on this host, or fetch it, encoded, from the artifacts.

    `corpus` is where the text lies on this host, if elsewhere than the study says. Raises `CorpusError` where there is
    no text with the study's fingerprint, and `ArtifactsError`.
    """
    shared = artifacts if info.shuffles is not None else None
    name = info.spec.data.corpus
    if shared is not None and corpus is None and name in DATASETS and not (cache / "downloads" / name).is_dir():
        # A public text can be downloaded here too, but a node of a cluster may have no way to the internet.
        with contextlib.suppress(ArtifactsError):
            if (fetched := _fetch_for(info, shared, cache)) is not None:
                return fetched
    try:
        found = open_corpus(info.spec.data, cache, corpus, allow_pickle, progress)
        if found.fingerprint == info.fingerprint:
            return found
        refused = CorpusError(
            f"the study {info.ref.name} was started on {info.corpus} (fingerprint {info.fingerprint}), "
            f"here is {found.description} (fingerprint {found.fingerprint}); "
            "give the path of the same text with --corpus PATH, or a place that has it with --artifacts URL"
        )
    except CorpusError as error:
        refused = error
    if shared is None:
        raise refused
    if (fetched := _fetch_for(info, shared, cache)) is None:
        raise CorpusError(f"{refused}; {shared} does not have it either: lmsearch run puts it there") from refused
    return fetched


def shared_corpora(artifacts: Artifacts | None) -> set[str]:
    """Return the fingerprints of the texts among the artifacts; none without artifacts. Raises `ArtifactsError`."""
    names = [] if artifacts is None else artifacts.objects().under("corpora").names()
    return {name.removesuffix(".zip") for name in names if name.endswith(".zip")}


def share_corpus(corpus: Corpus, artifacts: Artifacts) -> None:
    """Put an encoded corpus among the artifacts, once, under its fingerprint. Raises `ArtifactsError`."""
    if corpus.folder is None or corpus.fingerprint in shared_corpora(artifacts):
        return
    there = [name for name in _FILES if (corpus.folder / name).is_file()]
    put_folder(artifacts.objects().under("corpora"), _name(corpus.fingerprint), corpus.folder, there)


def _name(fingerprint: str) -> str:
    return f"{fingerprint}.zip"


def _fetch_for(info: StudyInfo, artifacts: Artifacts, cache: Path) -> Corpus | None:
    found = fetch_corpus(info.fingerprint, artifacts, cache, info.corpus)
    return None if found is None else replace(found, shuffle_articles=bool(info.shuffles))


def fetch_corpus(fingerprint: str, artifacts: Artifacts, cache: Path, description: str) -> Corpus | None:
    """Fetch an encoded corpus by its fingerprint into the cache; what the cache has already serves.

    None where it is not there, or is damaged. Raises `ArtifactsError`, and `CorpusError` where it cannot be kept.
    """
    objects = artifacts.objects().under("corpora")
    folder = cache / "corpora" / hashlib.sha256(f"fingerprint {fingerprint}".encode()).hexdigest()[:32]
    with contextlib.suppress(OSError):  # what cannot be written is reported where it must be
        make_folder(folder.parent)
    if (found := _cached(folder, fingerprint, description)) is not None:
        return found
    try:
        with filelock.FileLock(f"{folder}.lock"):
            if (found := _cached(folder, fingerprint, description)) is not None:
                return found
            if not fetch_folder(objects, _name(fingerprint), folder, _FILES, _NEEDED):
                return None
            if (found := _cached(folder, fingerprint, description)) is None:
                remove_tree(folder)
            return found
    except ArtifactsError:
        raise
    except OSError as error:
        raise CorpusError(
            f"the text cannot be kept in {cache}: {error}; free space there, or name another folder in LMSEARCH_CACHE"
        ) from error


def _cached(folder: Path, fingerprint: str, description: str) -> Corpus | None:
    """Open a fetched corpus; None where it is not there, is damaged, or has another fingerprint."""
    try:
        found = load_cached(folder, description)
    except NewerFormatError:
        return None
    return found if found is not None and found.fingerprint == fingerprint else None


def model_corpus(
    folder: Path, trained: "TrainedModel", path: str | None, artifacts: Artifacts | None, **options: Any
) -> Corpus:
    """Open the corpus that a model was trained on, from `path` if it was moved, otherwise also from the artifacts.

    `options` are those of `open_corpus`. Raises `CorpusError` where it is not there, and `ConfigError` where it is
    another text, on which no figure could be compared.
    """
    fingerprint = trained.metrics.get("corpus")
    try:
        corpus = open_corpus(trained.config.data, cache_folder(), path, **options)
    except CorpusError as error:
        if path is not None:
            raise
        fetched = None
        if artifacts is not None and isinstance(fingerprint, str):
            fetched = fetch_corpus(fingerprint, artifacts, cache_folder(), "the text that the model was trained on")
        if fetched is None:
            raise CorpusError(f"{error}; if the text was moved, give its path with --corpus") from error
        corpus = fetched
    if corpus.fingerprint != fingerprint:
        raise ConfigError(
            f"{folder} was trained on a text with the fingerprint {fingerprint}, here is "
            f"{corpus.description} with {corpus.fingerprint}; to evaluate another text, use: lmsearch evaluate --text"
        )
    return corpus
