"""Errors that a user can mend, and the nearest-name hint they carry."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: the message says what was wrong, where, and what would be right.

    The command line prints it without a traceback and exits with code 2.
    """


def nearest(name: str, valid: Iterable[str], *, count: int = 3) -> str:
    """A hint for an unknown name: `; nearest: a, b` or, if nothing is close, `; valid: ...`."""
    names = sorted(set(valid))
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.5)
    if close:
        return "; nearest: " + ", ".join(close)
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"; valid: {shown}" if names else ""
