"""The metadata of a feature store: the first block, which seals the file, and the header, which has a schema.

`docs/feature-store.md` is the specification. The first `BLOCK` bytes, which HDF5 leaves to the user, say where each
array and the header are, and hold the digest of every byte outside the arrays. A violation raises `Damage`.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from math import prod
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Struct, UnsetType

from common.files import canonical_json, sha256_text

FORMAT = "set-anomaly/feature-store"
VERSION = 2
BLOCK = 4096
MAGIC = f"{FORMAT}\n".encode()
MAX_HEADER = 1 << 28
MAX_OTHER = 1 << 20  # what HDF5 itself needs beside the header is a few KB
SEAL = slice(len(MAGIC), len(MAGIC) + 64)
BLOCK_BYTES = 4 << 20
LABELS_AT_A_TIME = 1 << 20
SPLITS = ("train", "test")
STORED_AS = {"float32": "<f4", "bfloat16": "<f2"}  # half precision has room for every digit that bfloat16 gives
# name: (dtype, shape); None is any length of at least 1
ARRAYS: dict[str, tuple[tuple[str, ...], tuple[str | int | None, ...]]] = {
    "features": (("<f4", "<f2"), ("V", "N", "D")),
    "labels": (("<i8",), ("N",)),
    "image_index": (("<i8",), ("N",)),
    "split": (("|u1",), ("N",)),
    "image_sha256": (("|u1",), ("N", 32)),
    "thumbnails": (("|u1",), ("N", 32, 32, 3)),
    "name_bytes": (("|u1",), (None,)),
    "name_offsets": (("<i8",), ("N + 1",)),
}
OPTIONAL = {"thumbnails"}

Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Name = Annotated[str, Meta(min_length=1)]
Names = Annotated[list[Name], Meta(min_length=1)]


class Pixels(Struct, forbid_unknown_fields=True):
    train: str
    test: str


class DataSet(Struct):
    pixels: Pixels
    labels: dict[Literal["train", "test"], str]
    class_names: Names


class Backbone(Struct):
    """The network. layers: name and dimension of each, "last" first."""

    name: str
    feature_dim: int
    layers: Annotated[list[tuple[str, Annotated[int, Meta(gt=0)]]], Meta(min_length=1)] | UnsetType = UNSET


class Weights(Struct):
    sha256: Sha256
    random_seed: int | None = None


class Preprocessing(Struct):
    views: Names


class Identity(Struct):
    """What the features are: stores with equal identities are interchangeable."""

    data_set: DataSet
    backbone: Backbone
    weights: Weights
    preprocessing: Preprocessing
    precision: Literal["float32", "bfloat16"]


class Provenance(Struct):
    request: dict[str, Any]


class Header(Struct):
    """The keys of the header that this code reads; others are allowed."""

    identity: Identity
    identity_sha256: str
    class_names: Names
    superclass_names: list[Name]
    class_superclass: list[int]
    provenance: Provenance
    block_bytes: int
    blocks: dict[str, list[str]]


class Damage(ValueError):
    """What is wrong with the bytes of a store, without the name of the file."""


class Newer(Exception):
    """A version that is not known yet."""


Offset = Annotated[int, Meta(ge=0, lt=1 << 62)]


class ArrayPlace(Struct, frozen=True, array_like=True):
    """Where the bytes of one array lie in the file; `stop` is the offset of the byte behind its last."""

    dtype: str
    shape: tuple[Offset, ...]
    offset: Offset

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def stop(self) -> int:
        return self.offset + self.nbytes


class FirstBlock(Struct):
    """What the first block says. header: the offset and the length of the header."""

    file_bytes: Offset
    header: tuple[Offset, Offset]
    rest_sha256: str
    arrays: dict[str, ArrayPlace]


def seal_block(header: tuple[int, int], places: dict[str, ArrayPlace], size: int, rest_sha256: str) -> bytes:
    """The first `BLOCK` bytes of a file of `size` bytes. header: its offset and its length."""
    facts = {
        "version": VERSION,
        "file_bytes": size,
        "header": header,
        "rest_sha256": rest_sha256,
        "arrays": msgspec.to_builtins(places),
    }
    block = MAGIC + bytes(64) + b"\n" + canonical_json(facts).encode()
    block = block.ljust(BLOCK, b"\0")
    return block[: SEAL.start] + seal_of(block) + block[SEAL.stop :]


def seal_of(block: bytes) -> bytes:
    """The digest of a first block, which must stand at `SEAL`."""
    return hashlib.sha256(block[: SEAL.start] + block[SEAL.stop : BLOCK]).hexdigest().encode()


def gaps(places: dict[str, ArrayPlace], size: int) -> list[tuple[int, int]]:
    """The ranges (start, stop) of bytes that are neither the first block's nor an array's, in the order of the file.

    >>> gaps({"a": ArrayPlace("|u1", (100,), 5000), "b": ArrayPlace("|u1", (10,), 5100)}, 6000)
    [(4096, 5000), (5100, 5100), (5110, 6000)]
    """
    ranges, start = [], BLOCK
    for place in sorted(places.values(), key=lambda place: place.offset):
        if place.offset < start:
            raise Damage("its arrays overlap")
        ranges.append((start, place.offset))
        start = place.stop
    if size < start:
        raise Damage("an array reaches beyond its end")
    return [*ranges, (start, size)]


def read_parts(
    block: bytes, size: int, read_at: Callable[[int, int], bytes]
) -> tuple[dict[str, Any], dict[str, ArrayPlace]]:
    """Return the header and the places of the arrays of a file of `size` bytes; all but the arrays is read.

    block: the first bytes. read_at: gets an offset and a number of bytes. Raises Damage, or Newer for a later version.
    """
    if len(block) < BLOCK or seal_of(block) != block[SEAL]:
        raise Damage("its first block does not match its seal")
    facts = parse_json(block[SEAL.stop : BLOCK].rstrip(b"\0"), "its first block")
    version = facts.get("version") if isinstance(facts, dict) else None
    if type(version) is not int or version < VERSION:
        raise Damage(f'"version" must be a whole number from {VERSION} on, found {version!r}')
    if version > VERSION:
        raise Newer(f"format version {version}")
    try:
        first = msgspec.convert(facts, FirstBlock)
        ranges = gaps(first.arrays, first.file_bytes)
    except (msgspec.ValidationError, TypeError) as error:  # a TypeError of NumPy's, for a dtype that there is not
        raise Damage("its first block does not say where its parts are") from error
    if size != first.file_bytes:
        raise Damage(f"it has {size:,} bytes of {first.file_bytes:,}")
    (start, length), places = first.header, first.arrays
    if length > MAX_HEADER or sum(b - a for a, b in ranges) > length + MAX_OTHER:
        raise Damage("its arrays are not all named")
    pieces = {a: read_at(a, b - a) for a, b in ranges}
    if hashlib.sha256(b"".join(pieces.values())).hexdigest() != first.rest_sha256:
        raise Damage("its header or HDF5's own part does not match its digest")
    for a, b in ranges:
        if a <= start and start + length <= b:
            header = parse_json(pieces[a][start - a : start - a + length], "/header")
            check_schema(header, places)
            return header, places
    raise Damage("its header lies in an array")


def parse_json(text: bytes, where: str) -> Any:
    """The value of a text in JSON, or Damage."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Damage(f"{where} is not JSON") from error


def identity_digest(identity: dict[str, Any]) -> str:
    """Hexadecimal SHA-256 of an identity: equal digests mean interchangeable stores."""
    return sha256_text(canonical_json(identity))


def labels_digest(labels: np.ndarray) -> str:
    """Hexadecimal SHA-256 of the labels of a split, as an identity has it: of the text of their list.

    >>> labels_digest(np.array([0, 12])) == sha256_text("[0, 12]")
    True
    """
    digest, comma = hashlib.sha256(b"["), ""
    for start in range(0, len(labels), LABELS_AT_A_TIME):
        part = labels[start : start + LABELS_AT_A_TIME].tolist()
        digest.update((comma + ", ".join(map(str, part))).encode())
        comma = ", "
    digest.update(b"]")
    return digest.hexdigest()


def check_schema(header: Any, places: dict[str, ArrayPlace]) -> None:
    """Raise Damage, naming the key, unless header and arrays are as the specification says. Reads no array."""
    _check_arrays(places)
    try:
        checked, digest = msgspec.convert(header, Header), identity_digest(header["identity"])
    except (msgspec.ValidationError, UnicodeError) as error:  # such as half a surrogate pair
        raise Damage(f"/header is not as specified ({error})") from error
    _check_together(checked, places["features"])
    if checked.identity_sha256 != digest:
        raise Damage('header "identity_sha256" must be the digest of "identity"')
    for name, place in places.items():
        digests, number = checked.blocks.get(name, []), -(-place.nbytes // BLOCK_BYTES)
        if len(digests) != number or not _are_sha256(digests):
            raise Damage(f'header "blocks.{name}" must be {number} SHA-256 digest(s)')
    if checked.blocks.keys() != places.keys():
        raise Damage(f'header "blocks" must name {", ".join(sorted(places))}')


def _check_arrays(places: dict[str, ArrayPlace]) -> None:
    """Raise Damage unless all arrays are there, and each has its type and its axes."""
    _require(set(places) <= set(ARRAYS), f"its arrays must be among {', '.join(sorted(ARRAYS))}", sorted(places))
    for name in sorted(set(ARRAYS) - OPTIONAL - set(places)):
        raise Damage(f"/{name} is missing")
    sizes: dict[Any, int] = dict(zip("VND", places["features"].shape, strict=False))
    sizes["N + 1"] = sizes.get("N", 0) + 1
    for name, place in places.items():
        dtypes, axes = ARRAYS[name]
        fits = len(place.shape) == len(axes) and all(
            axis is None or size == sizes.get(axis, axis) for size, axis in zip(place.shape, axes, strict=True)
        )
        _require(
            fits and min(place.shape) > 0 and place.dtype in dtypes,
            f"/{name} must be {' or '.join(dtypes)} of shape ({', '.join(str(axis or 'any') for axis in axes)})"
            + (f" with N={sizes['N']}" if name != "features" and "N" in sizes else ""),
            f"{place.dtype} of shape {place.shape}",
        )


def _check_together(header: Header, features: ArrayPlace) -> None:
    """Raise Damage unless the parts of a header fit each other and the features."""
    views, _, feature_dim = features.shape
    identity, supers, of_class = header.identity, header.superclass_names, header.class_superclass
    layers = [("last", feature_dim)] if identity.backbone.layers is UNSET else identity.backbone.layers
    layer_names = [name for name, _ in layers]
    rules = {
        '"class_names" must differ': _differ(header.class_names),
        '"superclass_names" must differ': _differ(supers),
        '"class_superclass" must hold an index of "superclass_names" for each of "class_names"': (
            len(of_class) == (len(header.class_names) if supers else 0) and set(of_class) <= set(range(len(supers)))
        ),
        '"identity.data_set.class_names" must be those of "class_names"': (
            identity.data_set.class_names == header.class_names
        ),
        f'"identity.precision" must be that of /features, {features.dtype}': (
            STORED_AS[identity.precision] == features.dtype
        ),
        f'"identity.backbone.feature_dim" must be {feature_dim}': identity.backbone.feature_dim == feature_dim,
        f'"identity.backbone.layers" must differ, "last" first, and sum to {feature_dim}': (
            layer_names[0] == "last" and _differ(layer_names) and sum(n for _, n in layers) == feature_dim
        ),
        f'"identity.preprocessing.views" must be {views} that differ': (
            len(identity.preprocessing.views) == views and _differ(identity.preprocessing.views)
        ),
        f'"block_bytes" must be {BLOCK_BYTES}': header.block_bytes == BLOCK_BYTES,
    }
    for rule, holds in rules.items():
        if not holds:
            raise Damage(f"header {rule}")


def _differ(names: Sequence[str]) -> bool:
    return len(set(names)) == len(names)


def _are_sha256(values: list[str]) -> bool:
    # In a few passes over all of them: a store of 100 million rows has 100,000 digests
    if set(map(len, values)) - {64}:
        return False
    return not "".join(values).encode("utf-8", "replace").translate(None, b"0123456789abcdef")


def check_content(name: str, array: np.ndarray, read: Callable[[str], np.ndarray], header: dict[str, Any]) -> None:
    """Raise Damage, naming the array, unless its values are possible ones. Reads it whole.

    read: gives another array by its name.
    """
    if name == "labels":
        classes = len(header["class_names"])
        _require(((array >= 0) & (array < classes)).all(), f"/labels must lie in 0 … {classes - 1}", array)
        for split, expected in header["identity"]["data_set"]["labels"].items():
            digest = labels_digest(array[read("split") == SPLITS.index(split)])
            rule = f'/labels of {split} must have the digest of "identity.data_set.labels", {expected}'
            _require(digest == expected, rule, digest)
    elif name == "split":
        ascending = (array[1:] >= array[:-1]).all() and array[-1] < len(SPLITS)
        _require(ascending, "/split must be 0 (train), then 1 (test)", array)
    elif name == "image_index":
        split = read("split")
        ascending = ((array[1:] > array[:-1]) | (split[1:] != split[:-1])).all() and (array >= 0).all()
        _require(ascending, "/image_index must rise within each split from 0 on", array)
    elif name == "name_offsets":
        length = len(read("name_bytes"))
        ascending = (array[1:] > array[:-1]).all() and array[0] == 0 and array[-1] == length
        _require(ascending, f"/name_offsets must rise from 0 to the length of /name_bytes, {length}", array)


def _require(holds: bool | np.bool_, rule: str, found: Any) -> None:
    if not holds:
        found = f"{found.min()} … {found.max()}" if isinstance(found, np.ndarray) else str(found)
        raise Damage(f"{rule}, found {found[:100]}")
