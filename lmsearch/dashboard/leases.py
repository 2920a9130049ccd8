"""A study that somebody works on is neither deleted nor renamed (which deletes it) from the page."""

import functools
import json
import logging
import shlex
from collections.abc import Callable
from typing import Any

import bottle
import sqlalchemy as sa

from lmsearch.errors import LmsearchError
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import TICKET
from lmsearch.store.tickets import live_lease

_log = logging.getLogger(__name__)

REMOVING = frozenset({("DELETE", "/api/studies/<study_id:int>"), ("POST", "/api/studies/<study_id:int>/rename")})
"""optuna-dashboard's routes that delete a study."""


def count_leases(storage: FencedStorage, study_id: int) -> int:
    """Return the number of trials of a study that a worker is on now."""

    query = sa.select(sa.func.count()).where(TICKET.c.study_id == study_id, live_lease(storage))
    return storage.do(lambda session: int(session.execute(query).scalar_one()))


def keep_leased(application: bottle.Bottle, storage: FencedStorage) -> None:
    """Make optuna-dashboard refuse to remove a study while leases live on it.

    Why is logged, too: the page says no more than that it failed. It is done where its own router has found the
    study, so that no spelling of a URL leads around it.
    """
    missing = REMOVING - {(route.method, route.rule) for route in application.routes}
    if missing:
        raise LmsearchError(
            f"this optuna-dashboard has no {' '.join(min(missing))} for lmsearch to guard; install the version that "
            f"constraints.txt names"
        )
    application.install(_KeepLeased(storage))


class _KeepLeased:
    """A plugin in Bottle's sense: it is asked about each route once."""

    name, api = "keep_leased", 2

    def __init__(self, storage: FencedStorage) -> None:
        self._storage = storage

    def apply(self, callback: Callable[..., Any], route: bottle.Route) -> Callable[..., Any]:
        """Return the function that answers a route from now on."""
        if (route.method, route.rule) not in REMOVING:
            return callback

        @functools.wraps(callback)
        def unless_leased(study_id: int) -> Any:
            # A claim between this look and the deletion is possible; its worker then finds no study, and says so.
            leases = count_leases(self._storage, study_id)
            if not leases:
                return callback(study_id=study_id)
            sentence = _reason(self._storage.get_study_name_from_id(study_id), leases)
            _log.info("%s", sentence, extra={"event": "refused", "leases": leases})
            return _conflict(sentence)

        return unless_leased


def _reason(name: str, leases: int) -> str:
    trials = "1 trial" if leases == 1 else f"{leases} trials"
    return (
        f"{trials} of {name} {'is' if leases == 1 else 'are'} being worked on, so it is neither deleted nor renamed; "
        f"stop it first with: lmsearch stop {shlex.quote(name)}"
    )


def _conflict(sentence: str) -> bottle.HTTPResponse:
    return bottle.HTTPResponse(json.dumps({"reason": sentence}), 409, {"Content-Type": "application/json"})
