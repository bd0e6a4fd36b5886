"""Writes feature stores. HDF5 builds the file in memory, without its arrays; plain writes put it on the disk.

The HDF5 library can lose a write error, when it frees its objects. So it never touches the disk.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import atomic_path, canonical_json, flush_folder, sha256_text, writing_to
from common.store import DamagedStore, FeatureStore, UnreadableStore
from common.store_header import (
    BLOCK,
    BLOCK_BYTES,
    FORMAT,
    VERSION,
    ArrayPlace,
    check_schema,
    gaps,
    identity_digest,
    seal_block,
)

ALIGNMENT = 64
# These come first in the file, so that their places are known before anything else is, and they can be written early
BATCHED = ("features", "image_sha256", "thumbnails")

Layout = dict[str, tuple[str, tuple[int, ...]]]  # {name: (dtype, shape)}


def write_store(target: Path, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write one feature store atomically. The digests of the identity and of the blocks are added to `header`.

    What was written is read back and compared before it takes its place. Raises UserError when the disk is full,
    cannot be written, or returns other bytes; then `target` is as it was. Raises ValueError, naming the key, when the
    header or an array is not as the specification says.
    """
    with atomic_path(target) as temporary:
        temporary.touch()
        _complete(temporary, target, header, {}, arrays)


def complete_store(
    path: Path, target: Path, header: dict[str, Any], present: Layout, arrays: dict[str, np.ndarray]
) -> None:
    """Complete a file that has the arrays `present` already, at their `places_of`, and rename it to `target`.

    These are not copied, and do not change. Otherwise as `write_store`.
    """
    with writing_to(target):
        _complete(path, target, header, present, arrays)
        path.replace(target)
        flush_folder(target.parent)


def places_of(layout: Layout) -> dict[str, ArrayPlace]:
    """Where arrays of `BATCHED` lie in a store, whatever else is in it."""
    return _build_hdf5("{}", layout)[2]


def block_digests(array: np.ndarray) -> list[str]:
    """SHA-256 of each `BLOCK_BYTES` of a C-contiguous array's bytes, in order; the last block may be shorter."""
    data = _bytes_of(array)
    return [hashlib.sha256(data[i : i + BLOCK_BYTES]).hexdigest() for i in range(0, len(data), BLOCK_BYTES)]


def _complete(path: Path, target: Path, header: dict[str, Any], present: Layout, arrays: dict[str, np.ndarray]) -> None:
    """Write all of a store except the arrays `present` into a file, then read everything back and compare."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    fixed = places_of(present) if present else {}
    mapped = {name: np.memmap(path, place.dtype, "r", place.offset, place.shape) for name, place in fixed.items()}
    metadata, places = _build_metadata(header, {**mapped, **arrays})
    if any(places[name] != place for name, place in fixed.items()):
        raise ValueError(f"the arrays must lie where they are, at {fixed}, got {places}")
    del mapped
    with path.open("r+b", buffering=0) as file:
        _write(file, {**metadata, **{places[name].offset: array for name, array in arrays.items()}})
    _read_back(path, target, metadata[0])


def _build_metadata(
    header: dict[str, Any], arrays: dict[str, np.ndarray]
) -> tuple[dict[int, Any], dict[str, ArrayPlace]]:
    """Return the bytes of everything except the arrays, as {file offset: bytes}, and the place of each array."""
    blocks = {name: block_digests(array) for name, array in arrays.items()}
    sealed = {"identity_sha256": identity_digest(header["identity"]), "block_bytes": BLOCK_BYTES, "blocks": blocks}
    text = canonical_json({**header, **sealed})
    layout = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
    memory, header_offset, places = _build_hdf5(text, layout)
    size = memory.seek(0, os.SEEK_END)
    check_schema(json.loads(text), places)
    pieces = {start: memory.read_at(start, stop - start) for start, stop in gaps(places, size)}
    rest_sha256 = hashlib.sha256(b"".join(pieces.values())).hexdigest()
    return {0: seal_block((header_offset, len(text.encode())), places, size, rest_sha256), **pieces}, places


def name_arrays(names: Sequence[str]) -> dict[str, np.ndarray]:
    """The file names of N images as the arrays of a store: their bytes one behind the other, and N + 1 offsets.

    >>> {name: array.tolist() for name, array in name_arrays(["a/b", "é"]).items()}
    {'name_bytes': [97, 47, 98, 195, 169], 'name_offsets': [0, 3, 5]}
    """
    encoded = [name.encode("utf-8", "surrogateescape") for name in names]
    return {
        "name_bytes": np.frombuffer(b"".join(encoded), np.uint8),
        "name_offsets": np.cumsum([0, *map(len, encoded)], dtype=np.int64),
    }


def _build_hdf5(text: str, layout: Layout) -> tuple["_SparseFile", int, dict[str, ArrayPlace]]:
    """Return the HDF5 file without the bytes of the arrays, the offset of the header, and the place of each array."""
    import h5py  # here, because `--help` and "up to date" must not wait for it

    memory, places = _SparseFile(), {}
    options = {"libver": ("v108", "v108"), "userblock_size": BLOCK, "meta_block_size": 1 << 14}
    with h5py.File(memory, "w", alignment_threshold=1, alignment_interval=ALIGNMENT, **options) as file:
        file.attrs["format"] = np.bytes_(FORMAT)
        file.attrs["format_version"] = VERSION
        file.attrs["header_sha256"] = np.bytes_(sha256_text(text))

        def add(name: str) -> None:
            dtype, shape = layout[name]
            plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            plan.set_obj_track_times(False)
            kind, space = h5py.h5t.py_create(np.dtype(dtype)), h5py.h5s.create_simple(shape)
            dataset = h5py.h5d.create(file.id, name.encode(), kind, space, plan)
            places[name] = ArrayPlace(dtype, shape, dataset.get_offset())

        names = sorted(layout, key=[*BATCHED, *sorted(layout)].index)
        for name in names:
            if name in BATCHED:
                add(name)
        header_offset = file.create_dataset("header", data=np.bytes_(text.encode())).id.get_offset()
        for name in names:
            if name not in BATCHED:
                add(name)
    return memory, header_offset, places


def _bytes_of(array: np.ndarray) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8).data)


def write_all(file: io.FileIO, data: Any) -> None:
    """Write all bytes of a C-contiguous array or a bytes-like object, however few the system takes at a time."""
    left = _bytes_of(data) if isinstance(data, np.ndarray) else memoryview(data)
    while left:
        left = left[file.write(left[:BLOCK_BYTES]) :]


def _write(file: io.FileIO, pieces: dict[int, Any]) -> None:
    """Write {offset: piece}, end the file behind the last piece, and flush it to the disk."""
    for offset, piece in sorted(pieces.items()):
        file.seek(offset)
        write_all(file, piece)
    file.truncate()
    os.fsync(file.fileno())
    if hasattr(os, "posix_fadvise"):  # drop the cache, so that what is read back comes from the disk
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_back(temporary: Path, target: Path, first: bytes) -> None:
    try:
        with temporary.open("rb") as file:
            if file.read(BLOCK) != first:
                raise DamagedStore("its first block is not what was written")
        FeatureStore.open(temporary).verify()
    except (DamagedStore, UnreadableStore) as error:
        raise UserError(
            f"{target} was not put in place: read back from the disk, it is not what was written ({error.message}). "
            "Check the disk and the memory, and run the same command again"
        ) from error


class _SparseFile(io.RawIOBase):
    """A file in memory for HDF5 to write into. Only the pages that were written take room; all else reads as zeros.

    The big arrays come first in the file and HDF5 never writes them, so a store of any size fits.
    """

    PAGE = 4096

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}
        self._position = self._size = 0

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def truncate(self, size: int | None = None) -> int:
        self._size = self._position if size is None else size
        return self._size

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        size = max(0, min(len(view), self._size - self._position))
        view[:size] = self.read_at(self._position, size)
        self._position += size
        return size

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for page, within, part in self._parts(self._position, len(view)):
            content = self._pages.setdefault(page, bytearray(self.PAGE))
            content[within] = view[part]
        self._position += len(view)
        self._size = max(self._size, self._position)
        return len(view)

    def read_at(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on."""
        empty = bytes(self.PAGE)
        return b"".join(bytes(self._pages.get(page, empty)[within]) for page, within, _ in self._parts(offset, size))

    def _parts(self, offset: int, size: int) -> Iterator[tuple[int, slice, slice]]:
        """For each page that a range touches: its number, the range within it, and within the whole."""
        for page in range(offset // self.PAGE, -(-(offset + size) // self.PAGE)):
            base = page * self.PAGE
            start, stop = max(offset, base), min(offset + size, base + self.PAGE)
            yield page, slice(start - base, stop - base), slice(start - offset, stop - offset)
