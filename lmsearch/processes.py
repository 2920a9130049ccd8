"""Child processes of our own."""

import sys


def python(*words: str) -> list[str]:
    """Return the command line of this Python with the working folder off its module path.

    Else a `random.py` that lies where a search is run would be imported, and run, in place of the library's.
    """
    return [sys.executable, "-P", *words]
