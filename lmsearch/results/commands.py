"""The commands that a person may want next."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lmsearch.errors import ConfigError
from lmsearch.folders import LOGS, STUDY_FILE, study_folder
from lmsearch.results.confirmation import confirm_words
from lmsearch.results.ranges import edges
from lmsearch.results.reading import Results
from lmsearch.results.trouble import why_nothing
from lmsearch.store.records import StudyInfo
from lmsearch.study.shipped import find_study_file

Command = Callable[[Sequence[str]], str]
"""Writes a command of lmsearch so that a person can copy it, with how it finds the store."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command that a person may want next, and what it is for."""

    words: list[str]
    why: str


def next_steps(results: Results) -> list[Step]:
    """List the commands that help now, the first one first.

    A confirmation waits until all trials have ended, and the test split until a winner is confirmed.
    """
    record, name = results.record, results.name
    if record.done < record.total:
        return [Step(words=resume_words(record.info), why="resume the search")]
    if results.winner is None:
        found = why_nothing(record)
        return [Step(words=found.words, why=found.try_this)] if found is not None and found.words else []
    again = confirm_next(results)
    steps = [] if again is None else [Step(words=again, why="is the winner real?")]
    if results.confirmation is not None and results.confirmation.verdict == "none":
        return steps
    changes = [word for e in edges(record) if e.wider is not None for word in ("--set", e.change)]
    if changes:
        steps.append(Step(words=["lmsearch", "extend", name, *changes], why="search beyond the crowded end"))
    if not steps:
        steps.append(Step(words=["lmsearch", "test", name], why="evaluate on the test split, once, at the very end"))
    return steps


def confirm_next(results: Results) -> list[str] | None:
    """Return the command that helps to decide whether the winner is real; None where there is a winner."""
    again = results.confirmation
    if again is None:
        return confirm_words(results.name)
    top, seeds = again.top, again.requested_seeds
    if again.done == again.total:
        if again.verdict not in ("tie", "none"):
            return None
        top, seeds = (2 * top, seeds) if again.verdict == "none" else (top, 2 * seeds)
    return ["lmsearch", "confirm", results.name, "--top", str(top), "--seeds", str(seeds)]


def resume_words(info: StudyInfo) -> list[str]:
    """Return the command that resumes a study of the store, wherever its file lies now."""
    name = info.ref.name
    try:
        path = find_study_file(name)
    except ConfigError:
        return ["lmsearch", "run", name]  # by its name in the store
    if path.is_file() and path.read_text(encoding="utf-8", errors="replace") == info.spec.text:
        return ["lmsearch", "run"] if name == "default" else ["lmsearch", "run", name]
    return ["lmsearch", "run", str(study_folder(name) / STUDY_FILE), "--name", name]


def failure_sentence(results: Results, command: Command) -> str:
    """Say why a study whose trials have all ended has no model, and what to try."""
    found = why_nothing(results.record)
    said = [f"no trial of {results.name} completed, so no model was kept"]
    if found is not None:
        said = [f"{found.what}, so no model was kept", *found.because]
        said += [f"{found.try_this}: {command(found.words)}"] if found.words else []
    return ". ".join([*said, f"The logs of its workers are in {study_folder(results.name) / LOGS}"])
