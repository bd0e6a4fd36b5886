"""Files that are complete or not there: atomic writes, locks, and digests."""

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: no advisory locks, everything else works
    fcntl = None  # type: ignore[assignment]

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
UNWRITABLE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENOENT,
}


def canonical_json(value: Any) -> str:
    """The one JSON text of a value (sorted keys, no spaces), so that equal values have equal digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def readable_json(value: Any) -> str:
    """JSON for people: indented, but a list of numbers or words, and a list of such lists, on one line.

    >>> print(readable_json({"a": [1, 2], "b": [[1], [2]]}), end="")
    {
      "a": [ 1, 2 ],
      "b": [ [ 1 ], [ 2 ] ]
    }
    """
    text = json.dumps(value, indent=2, ensure_ascii=False)
    inner = r"\[[^][{}]*\]"
    for pattern in (inner, rf"\[(?:[^][{{}}]|{inner})*\]"):
        text = re.sub(pattern, lambda found: re.sub(r"\n\s*", " ", found[0]), text)
    return text + "\n"


def sha256_text(text: str) -> str:
    """Hexadecimal SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def writing_to(target: Path) -> Iterator[None]:
    """Turn an unwritable or full `target` into a UserError that names it; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise UserError(f"no space left for {target}: free some and run the same command again") from error
        if error.errno in UNWRITABLE:
            reason = os.strerror(error.errno).lower()
            raise UserError(f"cannot write {target} ({reason}): choose a path that is writable") from error
        raise


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it is flushed and renamed to `target`, else removed.

    Whoever looks at `target` sees the old content or the whole new one, never a part.
    """
    # The suffix stays last: matplotlib and others choose the format by it.
    temporary = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    with writing_to(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            flush_to_disk(temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flush_to_disk(path: Path) -> None:
    """Ask the operating system to put a file's bytes on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


class Busy(UserError):
    """Another process holds what this one wants."""


@contextlib.contextmanager
def exclusive(folder: Path, busy: str) -> Iterator[None]:
    """Hold `folder` (made when missing) for this process alone, or raise Busy(`busy`) at once.

    The lock belongs to the process: a killed one leaves none behind.
    """
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not folder.exists() or folder.stat().st_ino != os.fstat(handle).st_ino:
            raise BlockingIOError  # its last owner finished and removed it in this very moment
        yield
    except BlockingIOError:
        raise Busy(busy) from None
    finally:
        os.close(handle)
