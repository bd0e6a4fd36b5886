"""The one exception that a user sees."""

import difflib
from collections.abc import Iterable

import click

LISTED = 100  # names in one sentence, at most


class UserError(click.ClickException):
    """A mistake that the user can mend: one sentence that says what, where, and what to do.

    On the command line it is printed without a traceback and the process exits with code 2.
    """

    exit_code = 2


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a misspelt name: says the nearest known one; when none is near, all of them if they are few.

    >>> unknown_name("view", "miror", ["plain", "mirror"]).message
    'unknown view "miror": did you mean "mirror"?'
    """
    known, name = sorted(known), name if len(name) <= 100 else f"{name[:100]}…"
    nearest = difflib.get_close_matches(name, known, n=1)
    if nearest:
        hint = f'did you mean "{nearest[0]}"?'
    elif len(known) <= LISTED:
        hint = f"choose from {', '.join(known)}"
    else:
        similar = difflib.get_close_matches(name, known, n=5, cutoff=0.3) or known[:5]
        hint = f"choose one of {len(known):,}, such as {', '.join(similar)}"
    return UserError(f'unknown {kind} "{name}": {hint}')
