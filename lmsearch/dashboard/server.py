"""The server: optuna-dashboard on the store, our guard before it, and a few threads."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bottle
import optuna
import optuna_dashboard
import waitress
from waitress.server import BaseWSGIServer, MultiSocketServer

from lmsearch.dashboard.answers import Answers
from lmsearch.dashboard.channel import CONNECTIONS, LARGEST_BODY, make_channel
from lmsearch.dashboard.files import StudyFiles
from lmsearch.dashboard.guard import Guard, Rules
from lmsearch.dashboard.leases import keep_leased
from lmsearch.dashboard.odd import OddRequests
from lmsearch.dashboard.prefix import Prefixed, check_prefix
from lmsearch.errors import LmsearchError
from lmsearch.store.storage import FencedStorage

_log = logging.getLogger(__name__)

THREADS = 4


def serve(storage: FencedStorage, rules: Rules, runs: Path, prefix: str = "") -> None:
    """Serve the dashboard until it is interrupted; how to visit is logged once it listens, and what is refused.

    `prefix` is the path of another site below which it is called, `runs` the folder of the studies' files. The storage
    should have a connection for each of the `THREADS`, so that none waits for another's.
    """
    prefix = check_prefix(prefix)
    # Cached: plain RDBStorage reads every ended trial again at each poll.
    application = optuna_dashboard.wsgi(optuna.storages.get_storage(storage), artifact_store=StudyFiles(storage, runs))
    keep_leased(application, storage)
    application.install(_with_content)
    application.install(Answers(prefix))
    try:
        guard = Guard(OddRequests(application), rules)
        server = waitress.create_server(
            Prefixed(guard, prefix) if prefix else guard,
            host=rules.host,
            port=rules.port,
            threads=THREADS,
            connection_limit=CONNECTIONS,
            channel_timeout=60,
            cleanup_interval=5,
            max_request_body_size=LARGEST_BODY,
            asyncore_use_poll=True,  # select() takes no more than 1,024 files
            # From whomever: it decides nothing but whether a visitor's own cookie is for https alone.
            trusted_proxy="*",
            trusted_proxy_headers={"x-forwarded-proto"},
        )
    except (OSError, ValueError) as error:  # waitress: ValueError for a host that cannot be found
        reason = getattr(error, "strerror", None) or "no such address"
        raise LmsearchError(
            f"{rules.host} port {rules.port} cannot be served: {reason}; name another with --port or --host"
        ) from error
    for one in getattr(server, "map", {}).values() if isinstance(server, MultiSocketServer) else [server]:
        if isinstance(one, BaseWSGIServer):
            one.channel_class = make_channel(guard)
    visit = rules.address.rstrip("/") + f"{prefix}/" + ("" if rules.token is None else "?token=…")
    _log.info("%s  (Ctrl-C stops it; the search does not need it)", visit, extra={"event": "listening"})
    server.run()


def _with_content(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Answer what was done with 200 instead of 204, No Content.

    The page of optuna-dashboard 0.21 reads a document from each answer; where there is none it says that a deletion
    that was done has failed.
    """

    @functools.wraps(callback)
    def answer(*arguments: Any, **named: Any) -> Any:
        document = callback(*arguments, **named)
        if bottle.response.status_code == 204:
            bottle.response.status = 200
        return document

    return answer
