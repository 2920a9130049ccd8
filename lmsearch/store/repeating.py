"""Optuna's relational storage with every call repeated over outages, each in one transaction of its own."""

import contextlib
import logging
import subprocess
import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session

from lmsearch.errors import StoreError, StoreGoneError
from lmsearch.formats import FORMATS
from lmsearch.store import url as urls
from lmsearch.store.outages import Outage, Patience, WaitUpTo, database_error, is_transient
from lmsearch.store.schema import create_tables
from lmsearch.store.tables import ticket_columns

_log = logging.getLogger(__name__)

R = TypeVar("R")

_DELETIONS = 20  # attempts to delete a study that workers write to


class RepeatingStorage(RDBStorage):
    """Optuna's storage for a database that may be away.

    A call that fails because the database was away, busy or full is repeated until `patience` ends; then
    `StoreGoneError` is raised. With `looking` nothing of a SQLite file is changed.
    """

    def __init__(
        self,
        url: URL,
        *,
        create: bool = False,
        connections: int = 1,
        patience: Patience | None = None,
        looking: bool = False,
    ) -> None:
        self.store_url = url
        self.patience: Patience = patience or WaitUpTo(10.0)
        self.connected_since: float | None = None  # monotonic; None while the store does not answer
        self.waiting = False  # a call that failed is being repeated
        self.format = FORMATS["store"]  # of the store; lower where an older one is only looked at
        self.ticket_columns = ticket_columns()  # as they are read; a store of an earlier format may lack some
        urls.check_location(url, create)
        super().__init__(
            urls.full_text(url),
            urls.engine_options(url, connections, looking),
            skip_compatibility_check=not create,
            skip_table_creation=not create,
        )
        if create:
            create_tables(self.engine)

    @staticmethod
    def _fill_storage_url_template(template: str) -> str:
        # Optuna runs str.format on the URL, which a brace in a password breaks.
        return template

    # One call, one transaction, repeated until it is done.

    def repeat(self, call: Callable[[], R]) -> R:
        """Make a call in which each attempt starts from the beginning, while the store is away; twice is as once.

        Raises `StoreGoneError` when the patience is over, and `StoreError` for a store that cannot be used.
        """
        return self._repeat(lambda again: call())

    def once(self, call: Callable[[], R], done: Callable[[], R | None]) -> R:
        """Make a call that must not succeed twice: before it is repeated, `done` looks whether it had succeeded.

        The reply to an attempt may be lost though the database did it. `done` returns what `call` would have
        returned, or None where it was not done.
        """

        def attempt(again: bool) -> R:
            if again and (found := done()) is not None:
                return found
            return call()

        return self._repeat(attempt)

    def do(self, work: Callable[[Session], R]) -> R:
        """Do in one transaction what may be repeated: twice is as once."""

        def call() -> R:
            with self.transaction() as session:
                return work(session)

        return self.repeat(call)

    def do_once(self, work: Callable[[Session], R], done: Callable[[Session], R | None]) -> R:
        """Do in one transaction what must not be done twice; see `once`."""

        def attempt(again: bool) -> R:
            with self.transaction() as session:
                if again and (found := done(session)) is not None:
                    return found
                return work(session)

        return self._repeat(attempt)

    def _repeat(self, call: Callable[[bool], R]) -> R:
        """Call until the store answers; `call` receives whether an attempt came before."""
        outage = Outage()
        while True:
            try:
                result = call(outage.attempts > 0)
            except Exception as error:
                self.scoped_session.remove()
                if not is_transient(error):
                    self._raise_readable(error)
                    raise
                self.connected_since = None
                self.waiting = True
                outage.note(error, urls.explain(self.store_url, error))
                if not self.patience(outage):
                    raise StoreGoneError(outage.reason) from error
                extra = {"event": "repeated", "attempts": outage.attempts}
                _log.debug("a call to the store is repeated: %s", outage.reason, extra=extra)
                outage.wait()
            else:
                self.waiting = False
                self.note_connected()
                return result

    @property
    def is_read_only(self) -> bool:
        """Whether nothing can be written to the store from here."""
        return self.engine.name == "sqlite" and urls.is_read_only(Path(str(self.store_url.database)))

    def note_connected(self) -> None:
        """Take note that the store has answered."""
        if self.connected_since is None:
            self.connected_since = time.monotonic()

    def _raise_readable(self, error: Exception) -> None:
        cause = database_error(error)
        unusable = ("SQLITE_NOTADB", "SQLITE_READONLY", "SQLITE_CORRUPT", "SQLITE_PERM")
        name = getattr(cause, "sqlite_errorname", "") or ""
        state = getattr(cause, "sqlstate", None) or ""
        if name.startswith(unusable) or state.startswith(("28", "3D", "42501", "22P05", "22021")):
            raise StoreError(urls.explain(self.store_url, error)) from error

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Session]:
        """Provide this thread's session; commit at the end, roll back on an error."""
        session = self.scoped_session()
        try:
            yield session
            session.commit()
        except BaseException:
            session.rollback()
            raise
        finally:
            session.close()

    # The clock of leases: the server's; on SQLite, which is one host, the host's since its boot.

    def clock(self) -> sa.ColumnElement[float]:
        """Return the present time as an expression, in seconds."""
        if self.engine.name == "sqlite":
            return sa.literal(time.monotonic(), sa.Float(53))
        return sa.cast(sa.func.extract("epoch", sa.func.clock_timestamp()), sa.Float(53))

    def boot(self) -> str:
        """Return the name of the boot that the clock counts from."""
        return _boot_id() if self.engine.name == "sqlite" else "server"

    # Everything else of Optuna's: the same, repeated over outages.

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Create a study."""
        return self.repeat(lambda: super(RepeatingStorage, self).create_new_study(directions, study_name))

    def delete_study(self, study_id: int) -> None:
        """Delete a study, also while workers write to it.

        Optuna reads a study's rows and deletes them; a row that was written in between keeps the study, and Optuna
        passes over that error. Raises `KeyError` where there is none, and `StoreError` where rows kept coming.
        """
        remove = super().delete_study

        def call() -> bool:
            remove(study_id)
            return True

        def done() -> bool | None:
            try:
                super(RepeatingStorage, self).get_study_name_from_id(study_id)
            except KeyError:
                return True
            return None

        for _ in range(_DELETIONS):
            self.once(call, done)
            try:
                self.get_study_name_from_id(study_id)
            except KeyError:
                return
        raise StoreError("the study was not deleted: workers kept writing to it; stop them first (lmsearch stop)")

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Store one attribute of a study."""
        self.repeat(lambda: super(RepeatingStorage, self).set_study_user_attr(study_id, key, value))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Store one attribute of a study."""
        self.repeat(lambda: super(RepeatingStorage, self).set_study_system_attr(study_id, key, value))

    def get_study_id_from_name(self, study_name: str) -> int:
        """Find a study."""
        return self.repeat(lambda: super(RepeatingStorage, self).get_study_id_from_name(study_name))

    def get_study_name_from_id(self, study_id: int) -> str:
        """Return the name of a study."""
        return self.repeat(lambda: super(RepeatingStorage, self).get_study_name_from_id(study_id))

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Return a study's directions."""
        return self.repeat(lambda: super(RepeatingStorage, self).get_study_directions(study_id))

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return a study's attributes."""
        return self.repeat(lambda: super(RepeatingStorage, self).get_study_user_attrs(study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return a study's attributes."""
        return self.repeat(lambda: super(RepeatingStorage, self).get_study_system_attrs(study_id))

    def get_trial_user_attrs(self, trial_id: int) -> dict[str, Any]:
        """Return a trial's attributes."""
        return self.repeat(lambda: super(RepeatingStorage, self).get_trial_user_attrs(trial_id))

    def get_trial_system_attrs(self, trial_id: int) -> dict[str, Any]:
        """Return a trial's attributes."""
        return self.repeat(lambda: super(RepeatingStorage, self).get_trial_system_attrs(trial_id))

    def get_all_studies(self) -> list[FrozenStudy]:
        """List the studies."""
        return self.repeat(lambda: super(RepeatingStorage, self).get_all_studies())

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """Find a trial."""
        read = super().get_trial_id_from_study_id_trial_number
        return self.repeat(lambda: read(study_id, trial_number))

    def get_trial_param(self, trial_id: int, param_name: str) -> float:
        """Return one value of a trial."""
        return self.repeat(lambda: super(RepeatingStorage, self).get_trial_param(trial_id, param_name))

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return one trial."""
        return self.repeat(lambda: super(RepeatingStorage, self).get_trial(trial_id))

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        read = super()._get_trials
        return self.repeat(lambda: read(study_id, states, included_trial_ids, trial_id_greater_than))

    def _get_best_trial_id(self, study_id: int, direction: StudyDirection) -> int:
        return self.repeat(lambda: super(RepeatingStorage, self)._get_best_trial_id(study_id, direction))


_boot_lock = threading.Lock()
_boot: list[str] = []


def _boot_id() -> str:
    """Return the name of this host's boot, so that a monotonic clock of an earlier one is never compared with."""
    with _boot_lock:
        if not _boot:
            path = Path("/proc/sys/kernel/random/boot_id")
            _boot.append(path.read_text(encoding="utf-8").strip() if path.exists() else _mac_boot_id())
        return _boot[0]


def _mac_boot_id() -> str:
    process = subprocess.run(["sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=False)
    return process.stdout.strip() or "unknown"
