"""Where everything is in a feature store's file, found without the HDF5 library: one flipped bit can hang that.

The first `BLOCK` bytes, which HDF5 leaves to the user, say where each array and the header are and hold the digest of
every byte that is not an array's. `docs/feature-store.md` is the specification.
"""

import contextlib
import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import canonical_json

FORMAT = "set-anomaly/feature-store"
VERSION = 2
BLOCK = 4096
MAGIC = f"{FORMAT}\n".encode()
HDF5 = b"\x89HDF\r\n\x1a\n"
HEAD = 1 << 16  # what is read first: whose file it is shows there
MAX_HEADER = 1 << 28
OPEN_FLAG = 11  # in the superblock of HDF5: bit 0 is set as long as the file is open for writing
MAX_OTHER = 1 << 20  # what HDF5 itself needs beside the header is a few KB
_SEAL = slice(len(MAGIC), len(MAGIC) + 64)

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Read = Callable[[int, int], bytes]


class DamagedStore(UserError):
    """The file is a feature store, but its content is not what was written, or not what the schema wants."""


class ForeignStore(UserError):
    """The file is not a feature store."""


class OlderStore(UserError):
    """The file was made before version 2 of the format, which this code does not read."""


class NewerStore(UserError):
    """The file is a feature store of a version that this code does not know yet."""


class MissingStore(UserError):
    """There is no file."""


class UnreadableStore(UserError):
    """The system does not give the file's bytes: nothing is known about them."""


@dataclass(frozen=True)
class ArrayPlace:
    """Where the bytes of one array lie in the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """The number of its bytes."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def stop(self) -> int:
        """The offset of the byte behind its last."""
        return self.offset + self.nbytes


@dataclass(frozen=True)
class Layout:
    """What a file says of itself: the header as JSON, and the places of the arrays."""

    header: Any
    places: dict[str, ArrayPlace]
    stamp: tuple[int, ...]  # of the file that was read, to notice when another takes its place


@contextlib.contextmanager
def reading(path: Path, stamp: tuple[int, ...] | None = None) -> Iterator[FileIO]:
    """Open a regular file; stamp: of the file that is expected there.

    Raises MissingStore, ForeignStore for a folder or a pipe, or UnreadableStore with what the system said.
    """
    if "\0" in str(path):
        raise MissingStore(f"there is no feature store at {str(path)!r}: a path must not hold a NUL character")
    try:
        with open(path, "rb", buffering=0, opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ForeignStore(f"{path} is not a regular file: give the path of a .h5 that extract wrote")
            if stamp is not None and stamp_of(file) != stamp:
                raise UnreadableStore(f"{path} was replaced or changed while it was in use: run the same command again")
            yield file
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingStore(
            f"there is no feature store at {path}: make it with `make features` or `python -m extract features`"
        ) from error
    except IsADirectoryError as error:
        raise ForeignStore(f"{path} is a folder: give the path of a .h5 that extract wrote") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise MissingStore(f"there is no feature store at {str(path)[:100]} …: no name may be so long") from error
        reason = (error.strerror or str(error)).lower()
        raise UnreadableStore(f"cannot read {path} ({reason}): its content may be sound, see to the cause") from error


def stamp_of(file: FileIO) -> tuple[int, ...]:
    """What tells a file from another that took its name: device, number, size and time."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def read_at(file: FileIO, offset: int, size: int) -> bytes:
    """`size` bytes from `offset` on, fewer only where the file ends."""
    file.seek(offset)
    pieces = []
    while size > 0 and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def read_layout(path: Path) -> Layout:
    """Read and check all of a store but its arrays: milliseconds, whatever its size.

    Raises MissingStore, UnreadableStore, ForeignStore, OlderStore, NewerStore or DamagedStore.
    """
    with reading(path) as file:
        stamp = stamp_of(file)
        size = stamp[2]
        head = read_at(file, 0, HEAD)
        try:
            if head.startswith(MAGIC) or _seal(head) == head[_SEAL]:
                text, places = _read_parts(head, size, lambda offset, n: read_at(file, offset, n))
                return Layout(parse_json(text, "/header"), places, stamp)
            if HDF5 not in (head[:8], head[BLOCK : BLOCK + 8]):
                raise ForeignStore(
                    f"{path} is not an HDF5 file, so not a feature store: give the path of a .h5 that extract wrote"
                )
            if FORMAT.encode() not in head and b"header_sha256" not in head:  # one of them may be what is damaged
                raise ForeignStore(f'{path} is HDF5, but its "format" is not "{FORMAT}": give a feature store')
            if head.startswith(HDF5):
                raise OlderStore(f"{path} was made by an older version of this project: extract it again")
            raise Damage("its first block does not match its seal")
        except Newer as error:
            raise NewerStore(f"{path} has {error}, this code reads up to {VERSION}: update it") from error
        except Damage as error:
            require_at_rest(path, file, stamp)
            raise DamagedStore(f"{path} is damaged: {error}; extract it again") from error


def require_at_rest(path: Path, file: FileIO, stamp: tuple[int, ...]) -> None:
    """Raise UnreadableStore where another program writes the file, or has opened it to write: so it looks damaged.

    HDF5 notes that in the file, and holds a lock where the file system has locks.
    """
    if stamp_of(file) != stamp:
        raise UnreadableStore(f"{path} changes while it is read: wait for the program that writes it")
    opened = bool((read_at(file, BLOCK + OPEN_FLAG, 1) or b"\0")[0] & 1)
    if not opened and fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            opened = True
        except OSError:  # no locks here
            pass
    if opened:
        raise UnreadableStore(f"{path} is open for writing in another program: close it there, and try again")


class Damage(ValueError):
    """What is wrong with the bytes of a store, without the name of the file."""


class Newer(Exception):
    """A version that is not known yet."""


def seal_block(header: tuple[int, int], places: dict[str, ArrayPlace], size: int, rest_sha256: str) -> bytes:
    """The first `BLOCK` bytes of a file of `size` bytes. header: its offset and its length."""
    facts = {
        "version": VERSION,
        "file_bytes": size,
        "header": header,
        "rest_sha256": rest_sha256,
        "arrays": {name: [place.dtype, place.shape, place.offset] for name, place in places.items()},
    }
    text = canonical_json(facts).encode()
    block = MAGIC + bytes(64) + b"\n" + text
    if len(block) > BLOCK:
        raise ValueError(f"the facts of a store must fit into {BLOCK} bytes, got {len(block)}")
    block = block.ljust(BLOCK, b"\0")
    return block[: _SEAL.start] + _seal(block) + block[_SEAL.stop :]


def gaps(places: dict[str, ArrayPlace], size: int) -> list[tuple[int, int]]:
    """The ranges (start, stop) of bytes that are neither the first block's nor an array's, in the order of the file.

    >>> gaps({"a": ArrayPlace("|u1", (100,), 5000), "b": ArrayPlace("|u1", (10,), 5100)}, 6000)
    [(4096, 5000), (5100, 5100), (5110, 6000)]
    """
    found, start = [], BLOCK
    for place in sorted(places.values(), key=lambda place: place.offset):
        if place.offset < start:
            raise Damage("its arrays overlap")
        found.append((start, place.offset))
        start = place.stop
    if size < start:
        raise Damage("an array reaches beyond its end")
    return [*found, (start, size)]


def parse_json(text: bytes, where: str) -> Any:
    """The value of a text in JSON, or Damage."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Damage(f"{where} is not JSON") from error


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # without it, opening a pipe waits for a writer


def _seal(block: bytes) -> bytes:
    return hashlib.sha256(block[: _SEAL.start] + block[_SEAL.stop : BLOCK]).hexdigest().encode()


def _read_parts(head: bytes, size: int, read: Read) -> tuple[bytes, dict[str, ArrayPlace]]:
    """The bytes of the header and the places of the arrays."""
    if len(head) < BLOCK or _seal(head) != head[_SEAL]:
        raise Damage("its first block does not match its seal")
    facts = parse_json(head[_SEAL.stop : BLOCK].rstrip(b"\0"), "its first block")
    version = facts.get("version") if isinstance(facts, dict) else None
    if type(version) is not int or version < VERSION:
        raise Damage(f'"version" must be a whole number from {VERSION} on, found {version!r}')
    if version > VERSION:
        raise Newer(f"format version {version}")
    start, length, places = _facts(facts)
    if size != facts["file_bytes"]:
        raise Damage(f"it has {size:,} bytes of {facts['file_bytes']:,}")
    ranges = gaps(places, size)
    if length > MAX_HEADER or sum(b - a for a, b in ranges) > length + MAX_OTHER:
        raise Damage("its arrays are not all named")
    pieces = {a: read(a, b - a) for a, b in ranges}
    if hashlib.sha256(b"".join(pieces.values())).hexdigest() != facts["rest_sha256"]:
        raise Damage("its header or HDF5's own part does not match its digest")
    for a, b in ranges:
        if a <= start and start + length <= b:
            return pieces[a][start - a : start - a + length], places
    raise Damage("its header lies in an array")


def _facts(facts: dict[str, Any]) -> tuple[int, int, dict[str, ArrayPlace]]:
    try:
        start, length = facts["header"]
        places = {name: ArrayPlace(d, tuple(shape), offset) for name, (d, shape, offset) in facts["arrays"].items()}
        numbers = [start, length, facts["file_bytes"]]
        for place in places.values():
            numbers += [*place.shape, place.offset, np.dtype(place.dtype).itemsize]
        if all(type(n) is int and 0 <= n < 1 << 62 for n in numbers) and type(facts["rest_sha256"]) is str:
            return start, length, places
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    raise Damage("its first block does not say where its parts are")
