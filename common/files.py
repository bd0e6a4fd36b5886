"""Atomic writes, locks, leftovers of killed processes, and digests. A file is complete or it is not there."""

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import filelock

from common.errors import UserError, is_scarce, refusal_of

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
# ".<stem>.<process>-<random><suffix>"
TEMPORARY = re.compile(r"\.(?P<stem>.+)\.\d+-[0-9a-f]{8}(?P<suffix>(\.[^.]+)?)")
LOCK = ".lock"
OUTPUT_MARK = ".set-anomaly-output"  # in a folder of ours: extraction takes no image from it


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
        text = re.sub(pattern, lambda match: re.sub(r"\n\s*", " ", match[0]), text)
    return text + "\n"


def sha256_text(text: str) -> str:
    """Hexadecimal SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes; in a process, a file that is as it was is read once."""
    status = path.stat()
    return _sha256(path, status.st_ino, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _sha256(path: Path, *_stamp: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def writing_to(target: Path) -> Iterator[None]:
    """Turn an error of writing `target` into a UserError that names it and says what to do.

    An error that names another file passes: it is not about `target`. Errors of write, flush and close name none.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or (error.filename is not None and not _is_part(error.filename, target)):
            raise
        if error.errno in FULL:
            raise UserError(f"no space left for {target}: free some and run the same command again") from error
        if is_scarce(error):
            raise UserError(f"cannot write {target}: {refusal_of(error)}") from error
        file = next((path for path in (target, *target.parents) if path.exists() and not path.is_dir()), None)
        if error.errno in (errno.EEXIST, errno.ENOTDIR) and file:
            raise UserError(
                f"cannot write {target}: {file} is a file, and must be a folder; choose another path"
            ) from error
        reason = os.strerror(error.errno).lower()
        raise UserError(f"cannot write {target} ({reason}): choose a path that is writable") from error


def _is_part(named: Any, target: Path) -> bool:
    """Whether a file is `target`, a folder above it, inside it, or hidden beside it under its name."""
    path, target = Path(os.path.abspath(os.fsdecode(named))), Path(os.path.abspath(target))  # noqa: PTH100
    beside = any(part.parent == target.parent and part.name.startswith(f".{target.stem}.") for part in path.parents)
    temporary = path.parent == target.parent and path.name.startswith(f".{target.stem}.")
    return beside or temporary or path in (target, *target.parents) or target in path.parents


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it is flushed and renamed to `target`, else removed.

    Whoever looks at `target` sees the old content or the whole new one, never a part. A process that is killed leaves
    the temporary file: `remove_leftovers` knows it. The body should do nothing but write.
    """
    # The suffix stays last: others choose the format by it.
    temporary = target.with_name(f".{target.stem}.{os.getpid()}-{secrets.token_hex(4)}{target.suffix}")
    with writing_to(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            flush_to_disk(temporary)
            temporary.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        flush_folder(target.parent)


def write_bytes(target: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)


def write_text(target: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    write_bytes(target, text.encode())


def require_writable(folder: Path) -> None:
    """Raise UserError where no file can be made in `folder`, which need not be there yet."""
    with writing_to(folder):
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "")
        if not os.access(nearest, os.W_OK):
            raise UserError(f"cannot write {folder}: {nearest} is read-only; choose another path")


def require_own_folder(folder: Path) -> None:
    """Raise UserError unless `folder` is new, empty, or has our mark, and can be written: its content is replaced."""
    with writing_to(folder):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file: give a folder")
        require_writable(folder)
        if folder.exists() and not (folder / OUTPUT_MARK).exists() and any(folder.iterdir()):
            raise UserError(f"{folder} holds files that are not ours: give a new or an empty folder")


def claim_folder(folder: Path) -> None:
    """Make a folder for output, with the mark by which it is known. Raises UserError as `require_own_folder`."""
    require_own_folder(folder)
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / OUTPUT_MARK).touch()


def flush_to_disk(path: Path) -> None:
    """Ask the operating system to put a file's bytes on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Ask the operating system to put a folder's names on the disk, so that a rename outlasts a loss of power."""
    if os.name != "posix":  # Windows does not open folders
        return
    with contextlib.suppress(OSError):  # some file systems refuse; the content itself is safe
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class Busy(UserError):
    """Another process holds the lock."""


@contextlib.contextmanager
def exclusive(folder: Path, busy: str, *writes: Path) -> Iterator[None]:
    """Hold `folder` (made when missing) for this process alone, or raise Busy(`busy`) at once.

    `writes` are files or folders elsewhere that only the holder writes. What dead processes left of these and inside
    `folder` is removed. The lock is the file `.lock` in the folder. It belongs to the process: a killed one holds none.
    In the end the file is removed, and so is the folder when nothing else is in it. Where the file system has no
    locks, one line says so and the work goes on.
    """
    path = folder / LOCK
    lock = filelock.FileLock(path, blocking=False, thread_local=False, fallback_to_soft=False)
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise Busy(busy) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            click.echo(f"no locks on the file system of {folder}: let no other process write there", err=True)
    try:
        for place in (folder, *writes) if lock.is_locked else ():
            remove_leftovers(place)
        yield
    finally:
        if os.name == "posix":  # under the lock, so nobody else's file; filelock notices a lock on a file that is gone
            with contextlib.suppress(OSError):
                path.unlink()
                folder.rmdir()
        lock.release()


def clear_up_folder(folder: Path) -> None:
    """Remove what a killed process left in a folder whose work is complete: its lock, and temporary files.

    Does nothing while another process works there, or where nothing can be written.
    """
    if any(path.name == LOCK or TEMPORARY.fullmatch(path.name) for path in folder.glob(".*")):
        with contextlib.suppress(UserError, OSError), exclusive(folder, "another process is at work"):
            pass


def remove_leftovers(place: Path) -> None:
    """Remove the temporary files that dead processes left of the file `place`, or of all files in the folder `place`.

    The caller must hold the lock that protects these files: then no temporary file is in use.
    """
    folder, own = (place, None) if place.is_dir() else (place.parent, (place.stem, place.suffix))
    with contextlib.suppress(OSError):  # a folder that cannot be listed keeps what it has
        for path in list(folder.glob(".*")):
            name = TEMPORARY.fullmatch(path.name)
            if name and own in (None, (name["stem"], name["suffix"])):
                with contextlib.suppress(OSError):
                    path.unlink()
