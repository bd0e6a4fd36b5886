"""What `docs/feature-store.md` asks of a header and its arrays: a violation is one sentence that names the key."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Struct, UnsetType

from common.files import canonical_json, sha256_text
from common.store_format import ArrayPlace, Damage

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
    """A digest for each split."""

    train: str
    test: str


class DataSet(Struct):
    """The images, by their digests."""

    pixels: Pixels
    labels: dict[Literal["train", "test"], str]
    class_names: Names


class Backbone(Struct):
    """The network. layers: name and dimension of each, "last" first."""

    name: str
    feature_dim: int
    layers: Annotated[list[tuple[str, Annotated[int, Meta(gt=0)]]], Meta(min_length=1)] | UnsetType = UNSET


class Weights(Struct):
    """The weights of the network."""

    sha256: Sha256
    random_seed: int | None = None


class Preprocessing(Struct):
    """What is done to an image before the network gets it."""

    views: Names


class Identity(Struct):
    """What the features are: stores with equal identities are interchangeable."""

    data_set: DataSet
    backbone: Backbone
    weights: Weights
    preprocessing: Preprocessing
    precision: Literal["float32", "bfloat16"]


class Provenance(Struct):
    """How the features were made."""

    request: dict[str, Any]


class Header(Struct):
    """The header, as far as it is read: other keys may be there."""

    identity: Identity
    identity_sha256: str
    class_names: Names
    superclass_names: list[Name]
    class_superclass: list[int]
    provenance: Provenance
    block_bytes: int
    blocks: dict[str, list[str]]


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
    if not isinstance(header, dict):
        raise Damage("/header must be a JSON object")
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


def _check_together(header: Header, features: ArrayPlace) -> None:
    """Raise Damage unless the parts of a header fit each other and the features."""
    views, _, feature_dim = features.shape
    identity, supers, of_class = header.identity, header.superclass_names, header.class_superclass
    layers = [("last", feature_dim)] if identity.backbone.layers is UNSET else identity.backbone.layers
    stored_as = STORED_AS[identity.precision]
    for holds, rule in (
        (_differ(header.class_names), '"class_names" must differ'),
        (_differ(supers), '"superclass_names" must differ'),
        (
            len(of_class) == (len(header.class_names) if supers else 0) and set(of_class) <= set(range(len(supers))),
            '"class_superclass" must hold an index of "superclass_names" for each of "class_names"',
        ),
        (
            identity.data_set.class_names == header.class_names,
            '"identity.data_set.class_names" must be those of "class_names"',
        ),
        (stored_as == features.dtype, f'"identity.precision" must be that of /features, {features.dtype}'),
        (identity.backbone.feature_dim == feature_dim, f'"identity.backbone.feature_dim" must be {feature_dim}'),
        (
            layers[0][0] == "last"
            and _differ([name for name, _ in layers])
            and sum(n for _, n in layers) == feature_dim,
            f'"identity.backbone.layers" must differ, "last" first, and sum to {feature_dim}',
        ),
        (
            len(identity.preprocessing.views) == views and _differ(identity.preprocessing.views),
            f'"identity.preprocessing.views" must be {views} that differ',
        ),
        (header.block_bytes == BLOCK_BYTES, f'"block_bytes" must be {BLOCK_BYTES}'),
    ):
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
        _check_labels(array, read("split"), header)
    elif name == "split":
        rises = bool((array[1:] >= array[:-1]).all())
        _require(rises and array[-1] < len(SPLITS), "/split must be 0 (train), then 1 (test)", array)
    elif name == "image_index":
        split = read("split")
        rises = bool(((array[1:] > array[:-1]) | (split[1:] != split[:-1])).all())
        _require(rises and bool((array >= 0).all()), "/image_index must rise within each split from 0 on", array)
    elif name == "name_offsets":
        length, rises = len(read("name_bytes")), bool((array[1:] > array[:-1]).all())
        _require(
            rises and array[0] == 0 and array[-1] == length,
            f"/name_offsets must rise from 0 to the length of /name_bytes, {length}",
            array,
        )


def _check_labels(labels: np.ndarray, split: np.ndarray, header: dict[str, Any]) -> None:
    classes = len(header["class_names"])
    _require(bool(((labels >= 0) & (labels < classes)).all()), f"/labels must lie in 0 … {classes - 1}", labels)
    for name, expected in header["identity"]["data_set"]["labels"].items():
        found = labels_digest(labels[split == SPLITS.index(name)])
        _require(
            found == expected,
            f'/labels of {name} must have the digest of "identity.data_set.labels", {expected}',
            found,
        )


def _check_arrays(places: dict[str, ArrayPlace]) -> None:
    _require(set(places) <= set(ARRAYS), f"its arrays must be among {', '.join(sorted(ARRAYS))}", sorted(places))
    for name in sorted(set(ARRAYS) - OPTIONAL - set(places)):
        raise Damage(f"/{name} is missing")
    shape = places["features"].shape
    sizes: dict[Any, int] = dict(zip("VND", shape, strict=False))
    sizes["N + 1"] = sizes.get("N", 0) + 1
    for name, place in places.items():
        dtypes, axes = ARRAYS[name]
        right = len(place.shape) == len(axes) and all(
            found == sizes.get(axis, axis) or axis is None for found, axis in zip(place.shape, axes, strict=True)
        )
        _require(
            right and min(place.shape) > 0 and place.dtype in dtypes,
            f"/{name} must be {' or '.join(dtypes)} of shape ({', '.join(str(axis or 'any') for axis in axes)})"
            + (f" with N={sizes['N']}" if name != "features" and "N" in sizes else ""),
            f"{place.dtype} of shape {place.shape}",
        )


def _require(holds: bool, rule: str, found: Any) -> None:
    if not holds:
        found = f"{found.min()} … {found.max()}" if isinstance(found, np.ndarray) else str(found)
        raise Damage(f"{rule}, found {found[:100]}")
