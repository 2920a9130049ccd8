"""The ended trials of one study taken over by another whose space they fit."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from lmsearch.config import RunConfig, Value
from lmsearch.errors import ConfigError, StudyError
from lmsearch.store.distributions import distribution
from lmsearch.store.opening import creating
from lmsearch.store.records import Source, StudyInfo, open_study, store_info
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import FROM
from lmsearch.store.trials import read_epochs, read_study
from lmsearch.study.differences import space_differences
from lmsearch.study.spec import StudySpec
from lmsearch.text.corpus import Corpus

_TAKEN = (TrialState.COMPLETE, TrialState.PRUNED)
_MUST_AGREE = ("data.", "train.epochs", "train.eval_batch_size", "train.eval_context")
_CONSTRAINTS = "constraints:"  # where Optuna keeps them among a trial's system attributes


@dataclass(frozen=True, kw_only=True)
class Taken:
    """How many trials a study has from another, and how many do not fit its space."""

    taken: int
    unfit: int


def check_source(storage: FencedStorage, source: str, name: str, spec: StudySpec, corpus: Corpus) -> None:
    """Refuse, before anything is written, a source whose perplexities cannot be compared. Raises `StudyError`."""
    if source == name:
        raise StudyError(f"--from {source} names the study itself; give the new one another --name")
    info = open_study(storage, source)
    if info.fingerprint != corpus.fingerprint:
        raise StudyError(
            f"study {source!r} was started on {info.corpus} (fingerprint {info.fingerprint}), the file names "
            f"{corpus.description} (fingerprint {corpus.fingerprint}): their perplexities cannot be compared, "
            "so leave --from out"
        )
    for line in space_differences(info.spec, spec):
        if line.startswith(_MUST_AGREE):
            raise StudyError(
                f"study {source!r} was started with {line}: their perplexities cannot be compared, so leave --from out"
            )


def complete(storage: FencedStorage, info: StudyInfo) -> Taken | None:
    """Take over another study's trials, if that is not finished yet; None where nothing is left.

    Whatever ended it before, each trial is there once. Raises `StudyError` where the source is not in the store, or is
    another study under its name than the one that it was started from.
    """
    source = info.source
    if source is None or source.taken:
        return None
    origin = open_study(storage, source.name)
    if source.key and source.key != origin.ref.key:
        raise StudyError(f"the store's study {source.name!r} is another one than {info.ref.name} was started from")
    if not source.key:
        info = replace(info, source=replace(source, key=origin.ref.key))
        store_info(storage, info)
    taken = take_over(storage, source.name, info)
    store_info(storage, replace(info, source=Source(name=source.name, key=origin.ref.key, taken=True)))
    return taken


def take_over(storage: FencedStorage, source: str, info: StudyInfo) -> Taken:
    """Add the complete and pruned trials of `source` that are points of this study's space, each once.

    They get this study's distributions, since TPE's joint model is empty over unequal ones, and are marked with
    where they come from. They answer no ticket.
    """
    with creating(storage):  # two commands that take over at once would else take each trial twice
        return _take_over(storage, source, info)


def _take_over(storage: FencedStorage, source: str, info: StudyInfo) -> Taken:
    origin = open_study(storage, source)
    epochs = read_epochs(storage, origin.ref)
    taken = unfit = 0
    for trial in storage.get_all_trials(origin.ref.id, deepcopy=False):
        if trial.state not in _TAKEN:
            continue
        params = fitting_params(trial.params, origin, info)
        if params is None:
            unfit += 1
            continue
        # The store gives the one that is there where this trial was taken over before.
        copied = _copy_of(trial, params, info, f"{source}/{trial.number}")
        trial_id = storage.create_new_trial(info.ref.id, copied)
        storage.add_epochs(info.ref, trial_id, epochs.get(trial.number, ()))
        taken += 1
    return Taken(taken=taken, unfit=unfit)


def fitting_params(params: Mapping[str, Any], origin: StudyInfo, info: StudyInfo) -> dict[str, Value] | None:
    """Return a trial's values as a point of another space: its closed config must be one; None where it is not."""
    size = info.vocabulary_size
    try:
        config = origin.spec.close(params, size)
        closed = config.by_path()
        point = info.spec.check_point({path: closed[path] for path in info.spec.open})
        same = _comparable(info.spec.close(point, size)) == _comparable(config)
    except ConfigError:
        return None
    return point if same else None


def best_as_prior(storage: FencedStorage, origin: StudyInfo, spec: StudySpec) -> dict[str, Value]:
    """Return the best trial's values of what another space leaves open, as far as they lie in it.

    Empty where the trial is a point of that space: then it is taken over, and samplers know it.
    """
    best = read_study(storage, origin).best
    if best is None or fitting_params(best.params, origin, replace(origin, spec=spec)) is not None:
        return {}
    values = origin.spec.close(best.params, origin.vocabulary_size).by_path()
    return {path: values[path] for path, value in spec.open.items() if path in values and value.contains(values[path])}


def _comparable(config: RunConfig) -> RunConfig:
    # The same text may lie elsewhere by now: its fingerprint has been compared.
    return replace(config, data=replace(config.data, corpus="python-docs"))


def _copy_of(trial: FrozenTrial, params: Mapping[str, Value], info: StudyInfo, mark: str) -> optuna.trial.FrozenTrial:
    kept = {name: value for name, value in trial.user_attrs.items() if name != "ticket"}
    copied = create_trial(
        state=trial.state,
        values=trial.values,
        params=dict(params),
        distributions={path: distribution(info.spec.open[path]) for path in params},
        user_attrs=kept | {FROM: mark},
        system_attrs={name: value for name, value in trial.system_attrs.items() if name.startswith(_CONSTRAINTS)},
        intermediate_values=trial.intermediate_values,
    )
    copied.datetime_start, copied.datetime_complete = trial.datetime_start, trial.datetime_complete
    return copied
