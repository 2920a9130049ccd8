"""Which files on disk are of which trial of a store: by what they say themselves, not by a number alone.

A store that was restored from a backup, or copied, gives out the numbers of tickets, trials and leases once more. So a
file is a trial's only where it is for the trial's values and text; what belongs to none is left alone and named.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from lmsearch.errors import ConfigError
from lmsearch.folders import (
    CHECKPOINT,
    CHECKPOINTS,
    MODEL_METRICS,
    MODELS,
    WEIGHTS,
    Named,
    named_in,
    read_document,
    read_name,
)
from lmsearch.store.checkpoints import SHORT, is_for, is_newer, read_checkpoint
from lmsearch.store.records import StudyInfo
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import EpochRow, Ticket
from lmsearch.store.tickets import list_tickets
from lmsearch.store.trials import read_epochs

NEEDED, LEFT, OTHER, NEWER = "needed", "left", "other", "newer"
"""Of a trial that has not ended; of one that has; of another training than this store knows; of a later lmsearch."""


def config_digest(info: StudyInfo, params: Mapping[str, Any]) -> str:
    """Return the digest of a trial's closed config and the study's text; "" before all its values are drawn."""
    try:
        return info.spec.close(params, info.vocabulary_size).digest(info.fingerprint)
    except ConfigError:
        return ""


class Belonging:
    """The trials of one study at one moment, asked about files."""

    def __init__(
        self, storage: FencedStorage, info: StudyInfo, tickets: Sequence[Ticket], trials: Sequence[FrozenTrial]
    ) -> None:
        self._storage = storage
        self._info = info
        self._trials = {trial.number: trial for trial in trials}
        self._tickets = {ticket.number: ticket for ticket in tickets}
        self._of_trial = {t.trial_number: t for t in tickets if t.trial_number is not None}
        self._digests: dict[int, str] = {}
        self._epochs: Mapping[int, Sequence[EpochRow]] | None = None

    def of_checkpoint(self, path: Path) -> str:
        """Return what a checkpoint of this study is: `needed`, `left`, `other` or `newer`."""
        if is_newer(path):
            return NEWER
        name = read_name(CHECKPOINT, path.name)
        ticket = self._tickets.get(name.number) if name else None
        if name is None or ticket is None or name.lease > ticket.lease or ticket.trial_number is None:
            return OTHER
        if name.digest:
            ours = name.digest == self._digest(ticket.trial_number)[:SHORT]
        else:
            checkpoint = read_checkpoint(path)
            rows = self._reported(ticket.trial_number)
            # What cannot be read is nobody else's either: its name is all that is known of it.
            ours = checkpoint is None or is_for(
                checkpoint,
                self._digest(ticket.trial_number),
                rows,
                path.name == named_in(CHECKPOINT, ticket.checkpoint),
            )
        return OTHER if not ours else LEFT if ticket.is_done else NEEDED

    def of_weights(self, folder: Path) -> str:
        """Return what a folder of weights of this study is: `needed`, `left` or `other`.

        Those of a complete trial are `left` too: which of them are kept is not decided here.
        """
        name = read_name(WEIGHTS, folder.name)
        ticket = self._of_trial.get(name.number) if name else None
        if name is None or ticket is None or name.lease > ticket.lease:
            return OTHER
        ours = name.digest == self._digest(name.number)[:SHORT] if name.digest else self._has_loss_of(folder, name)
        return OTHER if not ours else LEFT if ticket.is_done else NEEDED

    def others(self, paths: Sequence[Path]) -> list[Path]:
        """List those of a study's checkpoints and weights that are of another training than the store knows."""
        return [
            path
            for path in paths
            if (self.of_weights(path) if WEIGHTS.fullmatch(path.name) else self.of_checkpoint(path)) == OTHER
        ]

    def _digest(self, number: int) -> str:
        if number not in self._digests:
            trial = self._trials.get(number)
            self._digests[number] = config_digest(self._info, trial.params) if trial is not None else ""
        return self._digests[number]

    def _reported(self, number: int) -> Sequence[EpochRow]:
        if self._epochs is None:
            self._epochs = read_epochs(self._storage, self._info.ref)
        return self._epochs.get(number, ())

    def _has_loss_of(self, folder: Path, name: Named) -> bool:
        """Whether weights of lmsearch 0.1.0, which do not say what they are of, have the loss that the store has."""
        metrics = read_document(folder / MODEL_METRICS) or {}
        losses = [row.valid_loss for row in self._reported(name.number) if row.epoch == name.epoch]
        return metrics.get("corpus") == self._info.fingerprint and metrics.get("valid_loss") in losses


def others_in(storage: FencedStorage, info: StudyInfo, folder: Path) -> list[Path]:
    """List the checkpoints and weights of a study in its folder that are of another training than the store knows."""
    stem = info.ref.key[:SHORT]
    paths = [path for path in (folder / CHECKPOINTS).glob(f"{stem}-*") if CHECKPOINT.fullmatch(path.name)]
    paths += [path for path in (folder / MODELS).glob(f"{stem}-*") if WEIGHTS.fullmatch(path.name)]
    if not paths:
        return []
    trials = storage.get_all_trials(info.ref.id, deepcopy=False)
    return Belonging(storage, info, list_tickets(storage, info.ref), trials).others(paths)


def others_sentence(paths: Sequence[Path]) -> str:
    """Return what files that no trial of the store belongs to mean."""
    first = sorted(paths)[0]
    more = f" and {len(paths) - 1} more files" if len(paths) > 1 else ""
    return (
        f"{first}{more} {'are' if more else 'is'} newer than the store, or of other trainings under its numbers: the "
        "store was restored from a backup, or is a copy; these files are not used and are kept"
    )
