"""The one exception that a user sees, and the sentences for what the system refuses."""

import difflib
import errno
import importlib
import os
import re
from collections.abc import Iterable
from types import ModuleType

import click

LISTED = 50  # names in one sentence, at most
AGAIN = "what was complete is kept; run the same command again"
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
NO_FILES = (errno.EMFILE, errno.ENFILE)
# What libraries say when memory, or an address for it, is refused; they raise RuntimeError or ImportError
NO_MEMORY = (
    "allocate memory",
    "out of memory",
    "not enough memory",
    "bad_alloc",
    "failed to map segment",
    "start new thread",
    "array is too big",
    "storage size calculation overflowed",
)


class UserError(click.ClickException):
    """A mistake that the user can mend: one sentence that says what, where, and what to do.

    On the command line it is printed without a traceback and the process exits with code 2.
    """

    exit_code = 2

    def __init__(self, message: str):
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """A text whose control characters are escaped: a file name may hold any but NUL.

    >>> print(one_line("a" + chr(10) + "b.png"))
    a\\nb.png
    """
    return CONTROL.sub(lambda character: repr(character[0])[1:-1], text)


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


def import_optional(library: str, alternative: str) -> ModuleType:
    """Import a library that need not be installed. Raises UserError, which names it and the alternative."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        name = library.partition(".")[0]
        raise UserError(f"the library {name} is not installed: `pip install {name}`, or {alternative}") from error


def is_scarce(error: BaseException) -> bool:
    """Whether an error says that the system has no memory, or no more open files, for this process."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in (errno.ENOMEM, *NO_FILES)


def refusal_of(error: BaseException) -> str:
    """One sentence for an error by which the system or a library refuses memory, open files or a path; "" for others.

    >>> refusal_of(OSError(24, "Too many open files"))[:46]
    'too many open files: raise the limit (`ulimit '
    """
    text, number = str(error).lower(), getattr(error, "errno", None)
    if number in NO_FILES or "too many open files" in text:
        return f"too many open files: raise the limit (`ulimit -n 1024`); {AGAIN}"
    if is_scarce(error) or any(words in text for words in NO_MEMORY):
        return (
            "out of memory (`ulimit -v` shows whether it is limited): free some, or ask for less, such as smaller "
            f"batches or a smaller model; {AGAIN}"
        )
    if isinstance(error, ValueError) and "embedded null" in text:
        return "a path must not hold a NUL character: correct it"
    if not isinstance(error, OSError) or number is None or isinstance(error, BrokenPipeError):
        return ""
    reason = os.strerror(number).lower()
    if number == errno.ENAMETOOLONG:
        return f"cannot use {os.fsdecode(error.filename or 'a path')[:100]} … ({reason}): choose a shorter name"
    where = f"cannot use {os.fsdecode(error.filename)}" if error.filename is not None else "cannot read or write"
    return f"{where} ({reason}): correct this; {AGAIN}"
