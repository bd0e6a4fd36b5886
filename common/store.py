"""Reads feature stores (docs/feature-store.md), without the HDF5 library: one flipped bit can make it hang."""

import contextlib
import errno
import hashlib
import mmap
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError, unknown_name
from common.store_header import (
    BLOCK,
    BLOCK_BYTES,
    FORMAT,
    MAGIC,
    SEAL,
    SPLITS,
    VERSION,
    ArrayPlace,
    Damage,
    Newer,
    check_content,
    identity_digest,
    read_parts,
    seal_of,
)

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HDF5 = b"\x89HDF\r\n\x1a\n"
HEAD = 1 << 16  # bytes that are read first; they tell which kind of file it is
OPEN_FLAG = 11  # in the superblock of HDF5: bit 0 is set as long as the file is open for writing
ROOMY = 1 << 30
# The system must not reserve memory for the whole map: a store may be larger than the memory
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


class StoreError(UserError):
    """There is no sound store at a path, for one of the reasons below."""

    @property
    def word(self) -> str:
        """What is there, in a word: "damaged" for a DamagedStore."""
        return type(self).__name__.removesuffix("Store").lower()


class DamagedStore(StoreError):
    """The file is a feature store, but its content is not what was written, or not what the schema wants."""


class ForeignStore(StoreError):
    """The file is not a feature store."""


class OlderStore(StoreError):
    """The file was made before version 2 of the format, which this code does not read."""


class NewerStore(StoreError):
    """The file is a feature store of a version that this code does not know yet."""


class MissingStore(StoreError):
    """There is no file."""


class UnreadableStore(StoreError):
    """The system cannot read the file, which may be sound."""


def _array(name: str) -> "cached_property[np.ndarray]":
    """A property that is the array of this name."""

    def get(store: "FeatureStore") -> np.ndarray:
        return store.array(name)

    return cached_property(get)


@dataclass(frozen=True)
class FeatureStore:
    """A complete feature store. Its arrays are mapped, and verified on first use: damaged ones are not handed out.

    features (V, N, D) float32 or float16 · labels (N,) int64 · image_index (N,) int64, of an image in its split of the
    source · split (N,) uint8, an index into `SPLITS` · image_sha256 (N, 32) uint8 · thumbnails (N, H, W, 3) uint8 or
    None.

    `array` and the properties verify an array whole, once; `rows` the blocks of these rows; `unverified` nothing.
    Unsorted and repeated rows cost what they cost in memory; processes share the pages. The maps are private
    (copy-on-write): nothing written to them reaches the file. An instance pickles as its path and holds no HDF5 handle.
    """

    path: Path
    header: dict[str, Any] = field(repr=False)
    places: dict[str, ArrayPlace] = field(repr=False)
    stamp: tuple[int, ...] = field(repr=False)  # of the file that was opened, to notice when another takes its place
    _verified: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, path: Path | str) -> "FeatureStore":
        """Open a store: milliseconds, whatever its size. Its arrays are not read.

        Raises MissingStore, UnreadableStore, ForeignStore, OlderStore, NewerStore, or DamagedStore when the file is
        truncated, a byte outside its arrays has changed, or the header or an array is not as the specification says.
        """
        path = Path(path)
        with reading(path) as file:
            stamp = stamp_of(file)
            head = read_at(file, 0, HEAD)
            try:
                if head.startswith(MAGIC) or seal_of(head) == head[SEAL]:
                    parts = read_parts(head[:BLOCK], stamp[2], lambda offset, size: read_at(file, offset, size))
                    return cls(path, *parts, stamp)
                if HDF5 not in (head[:8], head[BLOCK : BLOCK + 8]):
                    raise ForeignStore(f"{path} is not an HDF5 file: give the feature store that extract wrote (.h5)")
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

    @property
    def stores(self) -> "tuple[FeatureStore, ...]":
        """Itself: `common.joined.JoinedStore` has several."""
        return (self,)

    @property
    def stem(self) -> str:
        """The file's name without its suffix."""
        return self.path.stem

    @property
    def identity(self) -> dict[str, Any]:
        """What the features are: data set, backbone, weights, preprocessing, precision."""
        return self.header["identity"]

    @property
    def identity_sha256(self) -> str:
        """The digest of `identity`; reports name it."""
        return identity_digest(self.identity)

    @property
    def class_names(self) -> list[str]:
        """The name of each label."""
        return self.header["class_names"]

    @property
    def feature_dim(self) -> int:
        """D."""
        return self.places["features"].shape[2]

    @property
    def views(self) -> list[str]:
        """The name of each view, view 0 first."""
        return self.identity["preprocessing"]["views"]

    @property
    def layers(self) -> dict[str, int]:
        """The name and the dimension of each layer that features are made of, in their order; they sum to D."""
        return dict(self.identity["backbone"].get("layers", [["last", self.feature_dim]]))

    @cached_property
    def features(self) -> np.ndarray:
        """The features (V, N, D), mapped."""
        mapped = self.array("features")
        # Rows are read in random order: reading ahead would be wasted
        self._advise(mapped, "MADV_RANDOM")
        return mapped

    labels = _array("labels")
    image_index = _array("image_index")
    split = _array("split")
    image_sha256 = _array("image_sha256")

    @cached_property
    def thumbnails(self) -> np.ndarray | None:
        """Small pictures (N, H, W, 3) uint8, or None where they were left out."""
        return self.array("thumbnails") if "thumbnails" in self.places else None

    def rows_of(self, split: str) -> np.ndarray:
        """The rows (n,) int64 of a split, ascending. Raises UserError for an unknown one."""
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        return np.flatnonzero(self.split == SPLITS.index(split))

    def names(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """The file of each of these rows, relative to the root of the images. A negative row counts from the end.

        Bytes that are not UTF-8 come as Python has them in file names: `os.fsencode` gives them back.
        """
        offsets, data = self.array("name_offsets"), self.array("name_bytes")
        rows = np.asarray(rows, np.int64)
        ranges = zip(offsets[:-1][rows], offsets[1:][rows], strict=True)
        return [data[start:stop].tobytes().decode("utf-8", "surrogateescape") for start, stop in ranges]

    def rows_by_store(self, rows: np.ndarray) -> list[np.ndarray]:
        """Where each of `stores` has these rows."""
        return [rows]

    def mean_views(self, rows: np.ndarray | slice = slice(None), views: int | None = None) -> np.ndarray:
        """The mean over the first views, default all, of the features of these rows, (n, D) float32."""
        return self.features[:views, rows].mean(0, dtype="float32")

    def array(self, name: str) -> np.ndarray:
        """An array, mapped. It is verified before it is handed out for the first time; raises DamagedStore."""
        if name not in self._verified:
            self.verify((name,))
        return self.unverified(name)

    def rows(self, name: str, rows: np.ndarray) -> np.ndarray:
        """A copy of rows of an array whose first axis is N. Only the blocks that hold them are read and verified."""
        found, n = self.unverified(name)[rows], self.places[name].shape[0]
        width = self.places[name].nbytes // n
        first = np.unique(rows % n) * width  # a negative row counts from the end
        for number in np.unique([first // BLOCK_BYTES, (first + width - 1) // BLOCK_BYTES]).tolist():
            self._verify_block(name, number)
        return found

    def verify(self, names: Sequence[str] | None = None, look: Callable[[str, bytes], None] = lambda *_: None) -> None:
        """Compare every block of the arrays `names` with its digest, and check that the values are possible.

        names: default all. look: is called with the name and the bytes of each sound block, for other checks in the
        same pass. Raises DamagedStore, which names the bad block or array.
        """
        for name in names or tuple(self.places):
            for number in range(len(self.header["blocks"][name])):
                look(name, self._verify_block(name, number))
            try:
                check_content(name, self.unverified(name), self.array, self.header)
            except Damage as error:
                raise DamagedStore(f"{self.path} is damaged: {error}; extract it again") from error
            self._verified.add(name)

    def _verify_block(self, name: str, number: int) -> bytes:
        """The bytes of a block, read and compared with its digest. They are not mapped, so memory does not grow."""
        place = self.places[name]
        offset = place.offset + number * BLOCK_BYTES
        with reading(self.path, self.stamp) as file:
            block = read_at(file, offset, min(BLOCK_BYTES, place.stop - offset))
            if hashlib.sha256(block).hexdigest() != self.header["blocks"][name][number]:
                require_at_rest(self.path, file, self.stamp)
                raise DamagedStore(
                    f"{self.path} is damaged: block {number} of /{name} does not match its digest; extract it again"
                )
        return block

    def release(self) -> None:
        """Give the pages of mapped features of at least `ROOMY` bytes back to the system, which may keep them."""
        self._advise(self.features, "MADV_DONTNEED")

    def __reduce__(self):  # the maps stay behind: another process makes its own
        return FeatureStore.open, (self.path,)

    def _advise(self, mapped: np.ndarray, advice: str) -> None:
        if mapped.nbytes >= ROOMY and isinstance(mapped.base, mmap.mmap) and hasattr(mmap, advice):
            mapped.base.madvise(getattr(mmap, advice))

    def unverified(self, name: str) -> np.ndarray:
        """An array, mapped, without any check that its bytes are what was written."""
        place = self.places[name]
        with reading(self.path, self.stamp) as file:
            if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
                return np.memmap(file, place.dtype, "c", place.offset, place.shape)
            start = place.offset - place.offset % mmap.ALLOCATIONGRANULARITY
            how = {"flags": mmap.MAP_PRIVATE | NO_RESERVE, "prot": mmap.PROT_READ | mmap.PROT_WRITE, "offset": start}
            return np.ndarray(
                place.shape, place.dtype, mmap.mmap(file.fileno(), place.stop - start, **how), place.offset - start
            )


@contextlib.contextmanager
def reading(path: Path, stamp: tuple[int, ...] | None = None) -> Iterator[FileIO]:
    """Open a regular file; stamp: of the file that is expected there.

    Raises MissingStore, ForeignStore for a folder or a pipe, or UnreadableStore with the reason of the system.
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
        raise UnreadableStore(f"cannot read {path} ({reason}): its content may be sound; correct the cause") from error


def stamp_of(file: FileIO) -> tuple[int, ...]:
    """What identifies a file, even if another takes its name: device, inode, size and time."""
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


def require_at_rest(path: Path, file: FileIO, stamp: tuple[int, ...]) -> None:
    """Raise UnreadableStore if another program is writing the file, which would look damaged meanwhile.

    HDF5 sets a flag in a file that is open for writing, and locks it where the file system has locks.
    """
    if stamp_of(file) != stamp:
        raise UnreadableStore(f"{path} changes while it is read: wait for the program that writes it")
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        locked = False
    except OSError as error:  # of another kind where there are no locks
        locked = isinstance(error, BlockingIOError)
    if locked or (read_at(file, BLOCK + OPEN_FLAG, 1) or b"\0")[0] & 1:
        raise UnreadableStore(f"{path} is open for writing in another program: close it there, and try again")


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # without it, opening a pipe waits for a writer
