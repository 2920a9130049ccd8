"""A confirmation whose perplexities a test makes up, written through the real store."""

from collections.abc import Callable

import optuna
from optuna.trial import TrialState

from lmsearch.search.confirm import begin_confirmation
from lmsearch.search.trial import _template
from lmsearch.store.records import SEED, optuna_study
from lmsearch.store.tickets import Holder, claim
from tests.bureau import Bureau


def confirm(bureau: Bureau, perplexity: Callable[[int, int], float | None], top: int = 3, seeds: int = 3) -> None:
    """Answer every pair of a confirmation; `perplexity` is given the leader's rank and the seed, None is a failure."""
    info = begin_confirmation(bureau.storage, "tiny", top=top, seeds=seeds)
    study: optuna.Study = optuna_study(bureau.storage, info.ref.name)
    holder = Holder(worker="w", host="h", process=1, device="cpu")
    ranks: list[dict[str, object]] = []
    while (ticket := claim(bureau.storage, info.ref, holder)) is not None:
        own = {path: value for path, value in ticket.fixed.items() if path != SEED}
        if own not in ranks:
            ranks.append(own)
        with bureau.storage.asking(ticket, _template(info, ticket)):
            trial = study.ask()
        value = perplexity(ranks.index(own), ticket.fixed[SEED])
        if value is None:
            study.tell(trial, state=TrialState.FAIL)
        else:
            trial.report(value, 1)
            study.tell(trial, value)
