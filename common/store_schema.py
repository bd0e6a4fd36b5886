"""What `docs/feature-store.md` asks of a header and its arrays: each violation is one sentence that names the key."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

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
    _require(isinstance(header, dict), "/header must be a JSON object", header)
    _check_arrays(places)
    _check_names(header)
    _check_identity(header, places["features"])
    provenance = _of_type(header, "provenance", dict)
    _of_type(provenance, "request", dict, "provenance.")
    _check_blocks(header, places)


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


def _check_names(header: dict[str, Any]) -> None:
    classes = _strings(header, "class_names")
    _require(len(classes) > 0, 'header "class_names" must name a class', classes)
    supers, of_class = _strings(header, "superclass_names"), _of_type(header, "class_superclass", list)
    _require(
        len(of_class) == (len(classes) if supers else 0),
        'header "class_superclass" must have an entry for each of "class_names" where there are "superclass_names"',
        of_class,
    )
    _require(
        all(type(number) is int and 0 <= number < len(supers) for number in of_class),
        'header "class_superclass" must hold indices of "superclass_names"',
        of_class,
    )


def _check_identity(header: dict[str, Any], features: ArrayPlace) -> None:
    identity = _of_type(header, "identity", dict)
    views, _, feature_dim = features.shape
    parts = {key: _of_type(identity, key, dict, "identity.") for key in _PARTS}
    for part, rules in _PARTS.items():
        for key, (rule, holds) in rules.items():
            found = parts[part].get(key)
            _require(holds(found), f'header "identity.{part}.{key}" must be {rule}', found)
    precision = identity.get("precision")
    _require(
        isinstance(precision, str) and STORED_AS.get(precision) is not None,
        f'header "identity.precision" must be {" or ".join(STORED_AS)}',
        precision,
    )
    _require(
        STORED_AS[precision] == features.dtype,
        f'/features must be {STORED_AS[precision]} where header "identity.precision" is {precision}',
        features.dtype,
    )
    for key, found, expected in (
        ("data_set.class_names", parts["data_set"]["class_names"], header["class_names"]),
        ("backbone.feature_dim", parts["backbone"]["feature_dim"], feature_dim),
        ("preprocessing.views", len(parts["preprocessing"]["views"]), views),
    ):
        _require(found == expected, f'header "identity.{key}" must fit the rest of the store, {expected!r}', found)
    layers = parts["backbone"].get("layers", [["last", feature_dim]])
    _require(
        _are_layers(layers) and sum(size for _, size in layers) == feature_dim,
        f'header "identity.backbone.layers" must be pairs of name and dimension, last first, that sum to {feature_dim}',
        layers,
    )
    _require(
        header.get("identity_sha256") == identity_digest(identity),
        'header "identity_sha256" must be the digest of "identity"',
        header.get("identity_sha256"),
    )


def _check_blocks(header: dict[str, Any], places: dict[str, ArrayPlace]) -> None:
    size = header.get("block_bytes")
    _require(type(size) is int and size == BLOCK_BYTES, f'header "block_bytes" must be {BLOCK_BYTES}', size)
    blocks = _of_type(header, "blocks", dict)
    _require(set(blocks) == set(places), f'header "blocks" must name {", ".join(sorted(places))}', sorted(blocks))
    for name, place in places.items():
        digests, number = blocks[name], -(-place.nbytes // BLOCK_BYTES)
        right = isinstance(digests, list) and len(digests) == number and _are_sha256(digests)
        _require(right, f'header "blocks.{name}" must be {number} SHA-256 digest(s)', digests)


def _is_sha256(value: Any) -> bool:
    return _are_sha256([value])


def _are_sha256(values: list[Any]) -> bool:
    # In a few passes over all of them: a store of 100 million rows has 100,000 digests
    if set(map(type, values)) - {str} or set(map(len, values)) - {64}:
        return False
    return not "".join(values).encode("utf-8", "replace").translate(None, b"0123456789abcdef")


def _are_layers(value: Any) -> bool:
    pairs = isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
    right = pairs and all(isinstance(name, str) and type(size) is int and size > 0 for name, size in value)
    return right and len(value) > 0 and value[0][0] == "last" and len(dict(value)) == len(value)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(n, str) and n for n in value) and len(set(value)) == len(value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _per_split(value: Any) -> bool:
    return _are_texts(value) and set(value) == set(SPLITS)


_PARTS: dict[str, dict[str, tuple[str, Callable[[Any], bool]]]] = {
    "data_set": {
        "pixels": ("a digest for train and one for test", _per_split),
        "labels": ("digests by split", lambda value: _are_texts(value) and set(value) <= set(SPLITS)),
        "class_names": ("a list of names", _are_names),
    },
    "backbone": {
        "name": ("text", lambda value: isinstance(value, str)),
        "feature_dim": ("a whole number", lambda value: type(value) is int),
    },
    "weights": {
        "sha256": ("a SHA-256 digest", _is_sha256),
        "random_seed": ("a whole number or null", lambda value: value is None or type(value) is int),
    },
    "preprocessing": {"views": ("a list of names", _are_names)},
}


def _strings(header: dict[str, Any], key: str) -> list[str]:
    value = header.get(key)
    _require(_are_names(value), f'header "{key}" must be a list of names, none twice', value)
    return value  # type: ignore[return-value]


def _of_type(header: dict[str, Any], key: str, kind: type, parent: str = "") -> Any:
    name = "a list" if kind is list else "a JSON object"
    _require(isinstance(header.get(key), kind), f'header "{parent}{key}" must be {name}', header.get(key))
    return header[key]


def _require(holds: bool, rule: str, *found: Any) -> None:
    if not holds:
        raise Damage(rule + "".join(f", found {_short(value)}" for value in found))


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.min()} … {value.max()}"
    text = (
        ", ".join(map(str, value))
        if isinstance(value, Iterable) and not isinstance(value, str | dict)
        else f"{value!r}"
    )
    return text if len(text) < 100 else text[:100] + " …"
