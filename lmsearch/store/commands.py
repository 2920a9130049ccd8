"""The commands that have searched a study, for the provenance of its results."""

import shlex
from collections.abc import Sequence

from lmsearch.store.opening import creating
from lmsearch.store.storage import FencedStorage

_ATTRIBUTE = "lmsearch:commands"  # a user attribute of a study
_MOST = 100


def add_command(storage: FencedStorage, study_id: int, words: Sequence[str]) -> None:
    """Record a command that adds to a study; one that is there already stays where it is."""
    command = shlex.join(words)
    if command in read_commands(storage, study_id):
        return
    with creating(storage):  # two commands at once are two
        storage.set_study_user_attr(study_id, _ATTRIBUTE, [*read_commands(storage, study_id), command][-_MOST:])


def read_commands(storage: FencedStorage, study_id: int) -> list[str]:
    """Return them in the order of their first use; none for a study of an earlier version."""
    found = storage.get_study_user_attrs(study_id).get(_ATTRIBUTE, [])
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []
