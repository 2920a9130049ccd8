"""optuna-dashboard served on the store, behind a guard: by itself it lets anybody delete a study."""

from lmsearch.dashboard.guard import Guard, Rules
from lmsearch.dashboard.server import THREADS, serve

__all__ = ["THREADS", "Guard", "Rules", "serve"]
