"""optuna-dashboard served on the store, on this machine only."""

import optuna
import waitress
from optuna_dashboard import wsgi
from sqlalchemy.engine import URL

from lmsearch.errors import LmsearchError
from lmsearch.store.storage import open_storage

_THREADS = 4


def serve(url: URL, port: int) -> None:
    """Serve the dashboard on the loopback address until it is interrupted."""
    storage = open_storage(url, connections=_THREADS)
    # Cached: plain RDBStorage reads every ended trial again at each poll.
    application = wsgi(optuna.storages.get_storage(storage))
    try:
        waitress.serve(application, host="127.0.0.1", port=port, threads=_THREADS, _quiet=True)
    except OSError as error:
        raise LmsearchError(f"port {port} cannot be served: {error.strerror}; name another with --port") from error
