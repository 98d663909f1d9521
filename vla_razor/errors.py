"""Errors meant for the person at the keyboard.

A message says what is wrong, where, what was expected and what to do. The command line prints it once, on standard
error, without a traceback.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: an unknown name, a file that does not fit, a missing device, a refused folder. Exit status 2."""


class RunFailed(Exception):
    """The run itself failed, or a check did not hold: a loss that is not finite, a full disk. Exit status 1."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence for an unknown `name`: the closest known ones, or all of them where nothing is close.

    >>> nearest("pick_cam", ["pick_can", "drawer"])
    'Did you mean pick_can?'
    """
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=3, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"Known: {', '.join(options)}." if options else "None is known."
