"""All that is known of a study, read from the store into frozen plain data."""

import html
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import URL

from lmsearch.extras import load
from lmsearch.results.confirmation import Confirmation, confirm
from lmsearch.results.evaluations import study_evaluations
from lmsearch.results.importance import Importances, importances
from lmsearch.results.where import FIELDS, field_of
from lmsearch.spelling import spell_value
from lmsearch.store.commands import read_commands
from lmsearch.store.opening import open_storage
from lmsearch.store.records import (
    StudyRecord,
    TrialRecord,
    confirmation_name,
    find_study,
    open_study,
    open_to_look,
)
from lmsearch.store.storage import FencedStorage
from lmsearch.store.trials import read_epochs, read_study
from lmsearch.store.url import parse_url

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, kw_only=True, repr=False)
class Results:
    """A study, the result of its confirmation, what mattered, and every test evaluation."""

    record: StudyRecord  # with the epochs of each trial
    confirmation: Confirmation | None = None
    importances: Importances = field(default_factory=Importances)
    evaluations: tuple[dict[str, Any], ...] = ()
    commands: tuple[str, ...] = ()  # that have searched it, in the order of their first use
    figures: dict[str, Any] = field(default_factory=dict, init=False, compare=False, repr=False)  # made so far

    @property
    def winner(self) -> TrialRecord | None:
        """Return the confirmed winner, else the best trial; None where none is complete."""
        confirmed = self.confirmation and self.confirmation.winner
        return confirmed.trial if confirmed else self.record.best

    @property
    def name(self) -> str:
        """Return the study's name."""
        return self.record.info.ref.name

    @property
    def trials(self) -> "pandas.DataFrame":
        """Return the trials as a table, a row each: number, outcome, perplexity, seconds, and each searched value.

        Raises `LmsearchError` where pandas is not installed.
        """
        pandas = load("pandas", "pandas")
        paths = list(self.record.info.spec.open)
        rows = [
            {name: field_of(trial, name) for name in FIELDS} | {path: trial.params.get(path) for path in paths}
            for trial in self.record.trials
        ]
        return pandas.DataFrame(rows, columns=[*FIELDS, *paths]).set_index("trial")

    def __repr__(self) -> str:
        """Return in a line what there is."""
        winner = self.winner
        best = "" if winner is None else f", best={winner.perplexity:.2f} (trial {winner.number})"
        return (
            f"Results({self.name!r}, trials={len(self.record.trials)}, complete={self.record.count('complete')}{best})"
        )

    def _repr_html_(self) -> str:
        """Return what a notebook shows: how far the study is, and its best configuration."""
        text = f"<p><b>{html.escape(self.name)}</b>: {self.record.done} of {self.record.total} trials</p>"
        if (winner := self.winner) is None:
            return text
        rows = [("perplexity", f"{winner.perplexity:.2f}"), ("trial", str(winner.number))]
        rows += [(path, spell_value(value)) for path, value in winner.params.items()]
        cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
        return f"{text}<table>{cells}</table>"


def read_best(study: str, storage: FencedStorage) -> Results:
    """Read a study's best trial, without its epochs and importances. Raises `StudyError`."""
    record = read_study(storage, open_study(storage, study))
    commands = tuple(read_commands(storage, record.info.ref.id))
    return Results(record=record, confirmation=read_confirmation(storage, record), commands=commands)


def read(study: str, storage: str | URL | FencedStorage) -> Results:
    """Read a study by name; `storage` is a URL such as `sqlite:///runs/lmsearch.db`. Raises `StudyError`."""
    if isinstance(storage, str):
        storage = parse_url(storage)
    if isinstance(storage, URL):
        storage = open_storage(storage)
    return complete(storage, read_study(storage, open_study(storage, study), epochs=True))


def read_any(study: str, storage: FencedStorage) -> Results:
    """Read a study by name, also one that another program made with Optuna. Raises `StudyError`."""
    return complete(storage, read_study(storage, open_to_look(storage, study), epochs=True))


def complete(storage: FencedStorage, record: StudyRecord) -> Results:
    """Add to a study's record what else is known of it."""
    return Results(
        record=record,
        confirmation=read_confirmation(storage, record),
        importances=importances(record),
        evaluations=tuple(study_evaluations(storage, record.info.ref.id)),
        commands=tuple(read_commands(storage, record.info.ref.id)),
    )


def with_epochs(storage: FencedStorage, results: Results) -> Results:
    """Add what each epoch gave to results that were read without."""
    epochs = read_epochs(storage, results.record.info.ref)
    trials = tuple(replace(trial, epochs=tuple(epochs.get(trial.number, ()))) for trial in results.record.trials)
    return replace(results, record=replace(results.record, trials=trials))


def read_confirmation(storage: FencedStorage, record: StudyRecord) -> Confirmation | None:
    """Read what came of a study's leaders on fresh seeds; None where nobody asked."""
    info = find_study(storage, confirmation_name(record.info.ref.name))
    return None if info is None or not info.is_of(record.info) else confirm(record, read_study(storage, info))
