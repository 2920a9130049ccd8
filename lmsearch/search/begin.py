"""A study started or resumed: its file against the stored one, and the tickets of its budget."""

from collections.abc import Sequence
from dataclasses import replace

from lmsearch.config import RunConfig
from lmsearch.errors import StudyError
from lmsearch.search.budget import Request, check_request, decide_tickets, open_budget
from lmsearch.store.copies import adopt_copy, is_copy
from lmsearch.store.opening import creating
from lmsearch.store.records import Source, StudyInfo, create_study, find_study, store_info
from lmsearch.store.storage import FencedStorage
from lmsearch.study.differences import space_differences
from lmsearch.study.spec import StudySpec
from lmsearch.text.corpus import Corpus, check_lengths
from lmsearch.text.judgement import judge


class SpaceChangedError(StudyError):
    """The file has another space than the study of its name: a new study can be started from the old one."""

    new_study: Sequence[str] = ()  # the command that starts it


def begin(
    storage: FencedStorage,
    name: str,
    spec: StudySpec,
    folder: str,
    corpus: Corpus,
    request: Request,
    source: str | None = None,
) -> StudyInfo:
    """Create or resume the study, and set its budget to what was asked for.

    `source` is a study whose trials it should take over. The study records it from the start:
    `take_over.complete` does it, now or after whatever ended this. Raises `StudyError` where the stored study has
    another space or corpus, or a number of trials cannot be.
    """
    check_request(spec, request)
    check_space(spec, corpus)
    remarks = tuple(judge(corpus))
    started_from = source or spec.settings.source
    before, info = _find_or_create(storage, name, spec, folder, corpus, request, started_from, remarks)
    stored = before.spec if before else None
    open_budget(storage, info.ref, lambda tickets: decide_tickets(spec, request, stored, tickets))
    requested = info.source if source is None else Source(name=source, key="", taken=False)
    current = replace(
        info,
        spec=spec,
        folder=folder,
        source=requested,
        remarks=remarks,
        shuffles=corpus.shuffle_articles,
        train_tokens=len(corpus.train.tokens),
    )
    if _kept_of(current) != _kept_of(info):
        info = current
        store_info(storage, info)
    return info


def _kept_of(info: StudyInfo) -> tuple[object, ...]:
    """Return what may differ between two calls of `begin` for one study."""
    return info.spec.text, info.folder, info.source, info.remarks, info.shuffles, info.train_tokens


def _find_or_create(
    storage: FencedStorage,
    name: str,
    spec: StudySpec,
    folder: str,
    corpus: Corpus,
    request: Request,
    source: str,
    remarks: tuple[str, ...],
) -> tuple[StudyInfo | None, StudyInfo]:
    """Return the study as it was before, None for a new one, and as it is now.

    A copy whose original is not in this store counts as new: its remaining budget is unknown.
    """
    with creating(storage):
        before = find_study(storage, name)
        if before is None:
            decide_tickets(spec, request, None, [])  # refuse before anything is written
            return None, create_study(
                storage,
                name,
                spec,
                folder,
                corpus.description,
                corpus.fingerprint,
                len(corpus.vocabulary),
                source=Source(name=source, key="", taken=False) if source else None,
                remarks=remarks,
                shuffles=corpus.shuffle_articles,
                train_tokens=len(corpus.train.tokens),
            )
        _check_same(before, spec, corpus)
        if not is_copy(storage, before):
            return before, before
        adopted, known = adopt_copy(storage, before)
        return (adopted if known else None), adopted


def check_space(spec: StudySpec, corpus: Corpus) -> None:
    """Refuse a space with an end that makes no valid run, or that asks for more text than there is."""
    spec.check_ends(len(corpus.vocabulary))
    for point in spec.ends():
        config: RunConfig = spec.close(point, len(corpus.vocabulary))
        check_lengths(corpus, config.train)
        config.model.check_vocabulary(len(corpus.vocabulary))


def _check_same(info: StudyInfo, spec: StudySpec, corpus: Corpus) -> None:
    name = info.ref.name
    if info.fingerprint != corpus.fingerprint:
        raise StudyError(
            f"study {name!r} was started on {info.corpus} (fingerprint {info.fingerprint}), the file names "
            f"{corpus.description} (fingerprint {corpus.fingerprint}); give the new search another --name"
        )
    found = space_differences(info.spec, spec)
    if found:
        raise SpaceChangedError(
            f"study {name!r} was started with {found[0]}"
            + (f" (and {len(found) - 1} more differences)" if len(found) > 1 else "")
            + "; a study never changes its space"
        )
