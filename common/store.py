"""The feature store's reader; `docs/feature-store.md` is the specification."""

import contextlib
import hashlib
import mmap
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.shapes import check_shape
from common.store_format import (
    FORMAT,
    VERSION,
    ArrayPlace,
    Damage,
    DamagedStore,
    ForeignStore,
    Layout,
    MissingStore,
    NewerStore,
    OlderStore,
    UnreadableStore,
    read_at,
    read_layout,
    reading,
    require_at_rest,
)
from common.store_header import BLOCK_BYTES, SPLITS, check_content, check_schema, identity_digest

__all__ = [
    "BLOCK_BYTES",
    "FORMAT",
    "SPLITS",
    "VERSION",
    "ArrayPlace",
    "DamagedStore",
    "FeatureStore",
    "ForeignStore",
    "MissingStore",
    "NewerStore",
    "OlderStore",
    "UnreadableStore",
    "block_digests",
    "check_features",
    "identity_digest",
]

ROOMY = 1 << 30
# Room in the memory is not asked for in advance, which a store that is larger than the memory would not get
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def block_digests(array: np.ndarray) -> list[str]:
    """SHA-256 of each `BLOCK_BYTES` of a C-contiguous array's bytes, in order; the last block may be shorter."""
    data = memoryview(array.reshape(-1).view(np.uint8).data)
    return [hashlib.sha256(data[i : i + BLOCK_BYTES]).hexdigest() for i in range(0, len(data), BLOCK_BYTES)]


@dataclass(frozen=True)
class FeatureStore:
    """A complete feature store. Its arrays are mapped, and verified on first use: damaged ones are not handed out.

    features (V, N, D) float32 or float16 · labels (N,) int64 · image_index (N,) int64 · split (N,) uint8, an index
    into `SPLITS` · image_sha256 (N, 32) uint8 · thumbnails (N, H, W, 3) uint8 or None.

    `array` and the properties verify an array whole, once; `rows` the blocks of these rows; `unverified` nothing.
    Unsorted and repeated rows cost what they cost in memory; processes share the pages. The maps are private
    (copy-on-write): nothing written to them reaches the file. An instance pickles as its path and holds no HDF5 handle.
    """

    path: Path
    layout: Layout = field(repr=False)
    _verified: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, path: Path | str) -> "FeatureStore":
        """Open a store: milliseconds, whatever its size. Its arrays are not read.

        Raises MissingStore, UnreadableStore, ForeignStore, OlderStore, NewerStore, or DamagedStore when the file is
        truncated, a byte outside its arrays has changed, or the header or an array is not as the specification says.
        """
        path = Path(path)
        layout = read_layout(path)
        with _damage(path):
            check_schema(layout.header, layout.places)
        return cls(path, layout)

    @property
    def header(self) -> dict[str, Any]:
        """All that is said of the arrays."""
        return self.layout.header

    @property
    def places(self) -> dict[str, ArrayPlace]:
        """Where each array lies."""
        return self.layout.places

    @property
    def stores(self) -> "tuple[FeatureStore, ...]":
        """Itself: `common.joined.JoinedStore` has several."""
        return (self,)

    @property
    def stem(self) -> str:
        """The name of the file, without its suffix."""
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
        # Rows are asked for in no order: what the system would read ahead is not wanted
        self._advise(mapped, "MADV_RANDOM")
        return mapped

    @cached_property
    def labels(self) -> np.ndarray:
        """The labels (N,) int64."""
        return self.array("labels")

    @cached_property
    def thumbnails(self) -> np.ndarray | None:
        """Small pictures (N, H, W, 3) uint8, or None where they were left out."""
        return self.array("thumbnails") if "thumbnails" in self.places else None

    @cached_property
    def image_index(self) -> np.ndarray:
        """The index of each image in its split of the source (N,) int64."""
        return self.array("image_index")

    @cached_property
    def image_sha256(self) -> np.ndarray:
        """The digest of each decoded image (N, 32) uint8."""
        return self.array("image_sha256")

    @cached_property
    def split(self) -> np.ndarray:
        """The split of each row (N,) uint8, an index into `SPLITS`."""
        return self.array("split")

    def rows_of(self, split: str) -> np.ndarray:
        """The rows (n,) int64 of a split, ascending."""
        return np.flatnonzero(self.split == SPLITS.index(split))

    def names(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """The file of each of these rows, relative to the root of the images.

        Bytes that are not UTF-8 come as Python has them in file names: `os.fsencode` gives them back.
        """
        offsets, data = self.array("name_offsets"), self.array("name_bytes")
        return [data[offsets[row] : offsets[row + 1]].tobytes().decode("utf-8", "surrogateescape") for row in rows]

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
        place = self.places[name]
        width = place.nbytes // place.shape[0]
        first = np.unique(rows) * width
        for number in np.unique([first // BLOCK_BYTES, (first + width - 1) // BLOCK_BYTES]).tolist():
            self._verify_block(name, number)
        return self.unverified(name)[rows]

    def verify(self, names: Sequence[str] | None = None, look: Callable[[str, bytes], None] = lambda *_: None) -> None:
        """Compare every block of the arrays `names` with its digest, and see whether their values are possible.

        names: default all. look: gets the name and the bytes of each sound block, for what else is to be seen in the
        same pass. DamagedStore names a bad block or array.
        """
        for name in names or tuple(self.places):
            for number in range(len(self.header["blocks"][name])):
                look(name, self._verify_block(name, number))
            with _damage(self.path):
                check_content(name, self.unverified(name), self.array, self.header)
            self._verified.add(name)

    def _verify_block(self, name: str, number: int) -> bytes:
        """The bytes of a block, read without mapping them: memory stays as it is."""
        place = self.places[name]
        offset = place.offset + number * BLOCK_BYTES
        with reading(self.path, self.layout.stamp) as file:
            block = read_at(file, offset, min(BLOCK_BYTES, place.stop - offset))
            if hashlib.sha256(block).hexdigest() != self.header["blocks"][name][number]:
                require_at_rest(self.path, file, self.layout.stamp)
                raise DamagedStore(
                    f"{self.path} is damaged: block {number} of /{name} does not match its digest; extract it again"
                )
        return block

    def release(self) -> None:
        """Give the pages of mapped features back to the system, which keeps them for the next use while it has room.

        Features that take less than `ROOMY` bytes stay.
        """
        self._advise(self.features, "MADV_DONTNEED")

    def __reduce__(self):  # the maps stay behind: another process makes its own
        return FeatureStore.open, (self.path,)

    def _advise(self, mapped: np.ndarray, advice: str) -> None:
        if mapped.nbytes >= ROOMY and isinstance(mapped.base, mmap.mmap) and hasattr(mmap, advice):
            mapped.base.madvise(getattr(mmap, advice))

    def unverified(self, name: str) -> np.ndarray:
        """An array, mapped, as it lies on the disk: nothing says that it is what was written."""
        place = self.places[name]
        with reading(self.path, self.layout.stamp) as file:
            if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
                return np.memmap(file, place.dtype, "c", place.offset, place.shape)
            start = place.offset - place.offset % mmap.ALLOCATIONGRANULARITY
            how = {"flags": mmap.MAP_PRIVATE | NO_RESERVE, "prot": mmap.PROT_READ | mmap.PROT_WRITE, "offset": start}
            return np.ndarray(
                place.shape, place.dtype, mmap.mmap(file.fileno(), place.stop - start, **how), place.offset - start
            )


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except Damage as error:
        raise DamagedStore(f"{path} is damaged: {error}; extract it again") from error


def check_features(features: np.ndarray, feature_dim: int, where: str) -> None:
    """Raise ValueError unless (V, N, D) has D = `feature_dim`, and UserError when a value is not finite."""
    check_shape("features", features, where, D=feature_dim)
    if not np.isfinite(features).all():
        raise UserError(f"non-finite features at {where}: the weights do not suit these images or this precision")
