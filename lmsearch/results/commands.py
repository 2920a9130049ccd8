"""The commands that a person may want next."""

from collections.abc import Callable, Sequence

from lmsearch.results.confirmation import confirm_words
from lmsearch.results.ranges import edges
from lmsearch.results.reading import Results

Command = Callable[[Sequence[str]], str]
"""Writes a command of lmsearch so that a person can copy it, with how it finds the store."""


def next_commands(results: Results) -> list[list[str]]:
    """List the commands that a person may want next, most useful first."""
    name = results.name
    found: list[list[str]] = []
    if results.record.done < results.record.total:
        found.append(["lmsearch", "worker", name])
    if results.winner is None:
        return found
    found += [] if (words := confirm_next(results)) is None else [words]
    if results.confirmation is not None and results.confirmation.verdict == "none":
        return found
    changes = [word for e in edges(results.record) if e.wider is not None for word in ("--set", e.change)]
    if changes:
        found.append(["lmsearch", "extend", name, *changes])
    found.append(["lmsearch", "train", f"runs/{name}/best-config.json", "--seeds", "3", "--name", f"{name}-final"])
    found.append(["lmsearch", "test", name])
    return found


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
