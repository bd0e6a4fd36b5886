"""The feature store's schema and reader; `docs/feature-store.md` is the specification."""

import hashlib
import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import canonical_json, sha256_text
from common.shapes import check_shape

FORMAT = "set-anomaly/feature-store"
VERSION = 1
BLOCK_BYTES = 4 << 20
ROOMY = 1 << 30
SPLITS = ("train", "test")
FEATURE_TYPES = ("<f4", "<f2")
# name: (dtype, the axes behind the first N); thumbnails may be absent
PER_IMAGE = {
    "labels": "<i8",
    "image_index": "<i8",
    "split": "|u1",
    "image_sha256": "|u1",
    "thumbnails": "|u1",
}


class DamagedStore(UserError):
    """The file is a feature store, but its content is not what was written."""


class ForeignStore(UserError):
    """The file is not a feature store."""


class NewerStore(UserError):
    """The file is a feature store of a version that this code does not know."""


def identity_digest(identity: dict[str, Any]) -> str:
    """Hexadecimal SHA-256 of an identity: equal digests mean interchangeable stores."""
    return sha256_text(canonical_json(identity))


def block_digests(array: np.ndarray) -> list[str]:
    """SHA-256 of each `BLOCK_BYTES` of a C-contiguous array's bytes, in order; the last block may be shorter."""
    data = memoryview(array.reshape(-1).view(np.uint8).data)
    return [hashlib.sha256(data[i : i + BLOCK_BYTES]).hexdigest() for i in range(0, len(data), BLOCK_BYTES)]


@dataclass(frozen=True)
class ArrayPlace:
    """Where the bytes of one array lie in the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class FeatureStore:
    """A complete feature store, memory-mapped on first use.

    features (V, N, D) float32 or float16 · labels (N,) int64 · image_index (N,) int64 · split (N,) uint8, an index
    into `SPLITS` · image_sha256 (N, 32) uint8 · thumbnails (N, H, W, 3) uint8 or None.

    Unsorted and repeated rows cost what they cost in memory; processes share the pages. The maps are private
    (copy-on-write): nothing written to them reaches the file. An instance pickles as its path and holds no HDF5 handle.
    """

    path: Path
    header: dict[str, Any] = field(repr=False)
    places: dict[str, ArrayPlace] = field(repr=False)

    @classmethod
    def open(cls, path: Path | str) -> "FeatureStore":
        """Open a store: milliseconds, whatever its size.

        Raises UserError when there is no such file, ForeignStore, NewerStore, or DamagedStore when the file is
        truncated, its header does not match its seal, or an array has not the shape and dtype of the schema.
        """
        path = Path(path)
        header, places = _read_layout(path)
        store = cls(path, header, places)
        store._check_schema()
        return store

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
        mapped = self._map("features")
        # Rows are asked for in no order: what the system would read ahead is not wanted
        self._advise(mapped, "MADV_RANDOM")
        return mapped

    @cached_property
    def labels(self) -> np.ndarray:
        """The labels (N,) int64."""
        return self._map("labels")

    @cached_property
    def thumbnails(self) -> np.ndarray | None:
        """Small pictures (N, H, W, 3) uint8, or None where they were left out."""
        return self._map("thumbnails") if "thumbnails" in self.places else None

    @cached_property
    def image_index(self) -> np.ndarray:
        """The index of each image in its split of the source (N,) int64."""
        return self._map("image_index")

    @cached_property
    def image_sha256(self) -> np.ndarray:
        """The digest of each decoded image (N, 32) uint8."""
        return self._map("image_sha256")

    @cached_property
    def split(self) -> np.ndarray:
        """The split of each row (N,) uint8, an index into `SPLITS`."""
        return self._map("split")

    def rows_of(self, split: str) -> np.ndarray:
        """The rows (n,) int64 of a split, ascending."""
        return np.flatnonzero(self.split == SPLITS.index(split))

    def verify(self, names: tuple[str, ...] | None = None) -> None:
        """Compare every block of the arrays `names` (default: all) with its digest; DamagedStore names a bad one."""
        for name in names or tuple(self.places):
            for number, (block, sealed) in enumerate(zip(self.blocks(name), self.header["blocks"][name], strict=True)):
                if hashlib.sha256(block).hexdigest() != sealed:
                    raise DamagedStore(
                        f"{self.path}: block {number} of /{name} does not match its digest: "
                        "the file was damaged after it was written; extract it again"
                    )

    def blocks(self, name: str) -> Iterator[bytes]:
        """The bytes of an array, `BLOCK_BYTES` at a time, read without mapping them: memory stays as it is."""
        place = self.places[name]
        left = int(np.prod(place.shape)) * np.dtype(place.dtype).itemsize
        with self.path.open("rb", buffering=0) as file:
            file.seek(place.offset)
            while left and (block := file.read(min(left, BLOCK_BYTES))):
                left -= len(block)
                yield block

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

    def _map(self, name: str) -> np.ndarray:
        place = self.places[name]
        return np.memmap(self.path, place.dtype, "c", place.offset, place.shape)

    def _check_schema(self) -> None:
        features = self.places.get("features")
        if features is None or features.dtype not in FEATURE_TYPES or len(features.shape) != 3:
            raise DamagedStore(
                f"{self.path}: /features must be (V, N, D) of {' or '.join(FEATURE_TYPES)}, found {features}; "
                "extract it again"
            )
        views, n, _ = features.shape
        for name, dtype in PER_IMAGE.items():
            place = self.places.get(name)
            if place is None and name == "thumbnails":
                continue
            if place is None or place.dtype != dtype or place.shape[0] != n:
                raise DamagedStore(
                    f"{self.path}: /{name} must be {dtype} with N={n} rows, found {place}; extract it again"
                )
        if views != len(self.views):
            raise DamagedStore(
                f"{self.path}: /features has V={views} but the header names {len(self.views)} views; extract it again"
            )


def _read_layout(path: Path) -> tuple[dict[str, Any], dict[str, ArrayPlace]]:
    """Read the header and the place of each array with HDF5, and close the file."""
    import h5py  # here, because `--help` must not wait for it

    if not path.is_file():
        raise UserError(
            f"there is no feature store at {path}: make it with `make features` or `python -m extract features`"
        )
    if not h5py.is_hdf5(path):
        raise ForeignStore(
            f"{path} is not an HDF5 file, so not a feature store: give the path of a .h5 that extract wrote"
        )
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT:
                raise ForeignStore(f'{path} is HDF5 but its attribute "format" is not "{FORMAT}": give a feature store')
            version = int(file.attrs["format_version"])
            if version > VERSION:
                raise NewerStore(f"{path} has format version {version}, this code reads up to {VERSION}: update it")
            text = file["header"][()].decode()
            if sha256_text(text) != file.attrs["header_sha256"]:
                raise DamagedStore(f"{path}: /header does not match its seal; extract it again")
            header = json.loads(text)
            places = {name: _place(path, file, name) for name in header["blocks"]}
    except (OSError, KeyError, ValueError, AttributeError, RuntimeError) as error:
        raise DamagedStore(f"{path} is truncated or damaged ({error}): extract it again") from error
    size = path.stat().st_size
    for name, place in places.items():
        if place.offset + int(np.prod(place.shape)) * np.dtype(place.dtype).itemsize > size:
            raise DamagedStore(f"{path} is truncated: /{name} reaches beyond its end; extract it again")
    return header, places


def _place(path: Path, file: Any, name: str) -> ArrayPlace:
    dataset = file[name]
    offset = dataset.id.get_offset()
    if dataset.chunks is not None or offset is None:
        raise DamagedStore(f"{path}: /{name} must be contiguous and uncompressed; extract it again")
    return ArrayPlace(dataset.dtype.str, dataset.shape, offset)


def check_features(features: np.ndarray, feature_dim: int, where: str) -> None:
    """Raise ValueError unless (V, N, D) has D = `feature_dim`, and UserError when a value is not finite."""
    check_shape("features", features, where, D=feature_dim)
    if not np.isfinite(features).all():
        raise UserError(f"non-finite features at {where}: the weights do not suit these images or this precision")
