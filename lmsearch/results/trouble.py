"""What went wrong: the trials without a result, by their reason, and what helps where none has one."""

from dataclasses import dataclass

from lmsearch.space import Choice
from lmsearch.spelling import count, spell_value
from lmsearch.store.records import StudyRecord

_RATE = "train.learning_rate"


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Trials that ended without a result for one reason."""

    outcome: str
    reason: str  # "" where there is no more to say than the outcome
    trials: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Nothing:
    """Why no trial of a study has completed, and what to try."""

    what: str
    because: list[str]
    try_this: str
    words: list[str]  # of a command; none where nothing is known to help


def troubles(record: StudyRecord) -> list[Trouble]:
    """List the reasons for which trials ended without a result, the most frequent first."""
    groups: dict[tuple[str, str], list[int]] = {}
    for trial in record.trials:
        if trial.outcome in ("failed", "diverged", "infeasible"):
            groups.setdefault((trial.outcome, trial.reason), []).append(trial.number)
    return [
        Trouble(outcome=outcome, reason="" if reason == outcome else reason, trials=tuple(numbers))
        for (outcome, reason), numbers in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]


def why_nothing(record: StudyRecord) -> Nothing | None:
    """Return why no trial of a study has completed; None where one has, or some have not ended."""
    if record.done < record.total or record.count("complete") or not record.trials or record.info.is_plain:
        return None
    found = troubles(record)
    main = found[0].outcome if found else "pruned"
    number = sum(len(one.trials) for one in found if one.outcome == main) if found else record.count(main)
    trials, verb = count(len(record.trials), "trial"), {"diverged": "diverged", "failed": "failed"}.get(main)
    of = f"all {trials}" if number == len(record.trials) > 1 else f"{number} of {trials}"
    what = f"{of} of {record.info.ref.name} {verb or f'ended as {main}'}"
    if main == "diverged":
        return _too_fast(record, what)
    reasons = [one.reason.strip().splitlines()[-1][:200] for one in found if one.outcome == main and one.reason.strip()]
    because = [f"The reason: {reason}" for reason in dict.fromkeys(reasons[:3])]
    if main == "failed":
        first = next(one.trials[0] for one in found if one.outcome == main)
        words = ["lmsearch", "show", record.info.ref.name, str(first)]
        return Nothing(what=what, because=because, try_this="See the traceback", words=words)
    return Nothing(what=what, because=because, try_this="", words=[])


def _too_fast(record: StudyRecord, what: str) -> Nothing:
    """Trials diverge from steps that are too large."""
    study, opened = record.info.ref.name, record.info.spec.open.get(_RATE)
    tried = [float(t.params[_RATE]) for t in record.trials if t.outcome == "diverged" and _RATE in t.params]
    extend = ["lmsearch", "extend", study]
    if opened is None or isinstance(opened, Choice) or not tried:
        value = float(record.info.spec.value(_RATE, {})) if opened is None else min(tried, default=1.0)
        because = [f"The loss was no longer finite with {_RATE} = {spell_value(value)}"]
        words = [*extend, "--set", f"{_RATE}={value / 100:.2g}"]
        return Nothing(what=what, because=because, try_this="Try a lower learning rate", words=words)
    because = [
        f"The loss was no longer finite: each {_RATE} tried was between {spell_value(min(tried))} and "
        f"{spell_value(max(tried))}, and the range begins at {spell_value(opened.low)}"
    ]
    changes = [f"{_RATE}.low={opened.low / 100:.2g}", f"{_RATE}.high={min(tried):.2g}"]
    words = [*extend, *(word for change in changes for word in ("--set", change))]
    return Nothing(what=what, because=because, try_this="Try lower learning rates", words=words)
