"""The one door for arrays: what people have becomes what `find` computes with, or one sentence says what is wrong."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from common.errors import UserError
from find.findings import Image

LARGEST, SMALLEST = 1e15, 1e-15  # beyond, squares leave the range of float32
DIGEST = 32  # bytes


@dataclass(frozen=True)
class Inputs:
    """What `find.audit` and `find.odd` were given of n images.

    features (n, D) float32, finite. labels (n,) int64 in [0, C), C = len(class_names); both empty without labels.
    paths, splits: n texts. digests: (n, 32) uint8 or None.
    """

    features: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    paths: list[str]
    splits: list[str]
    digests: np.ndarray | None
    rate: float
    seed: int

    def images(self, rows: np.ndarray) -> tuple[Image, ...]:
        """Some of them, to be shown."""
        return tuple(Image(int(row), self.paths[row]) for row in rows)


def take_inputs(
    features: Any,
    labels: Any = None,
    *,
    class_names: Sequence[str] | None = None,
    paths: Sequence[Any] | None = None,
    splits: Sequence[str] | None = None,
    digests: Any = None,
    rate: Any = 0.1,
    seed: Any = 0,
) -> Inputs:
    """Check and convert the arguments of `find.audit` and `find.odd`.

    features: (n, D), an array, a tensor or lists. labels: (n,) integers or texts; numbers count from 0 into class_names
    where these are given. paths: texts or Path objects. digests: (n, 32) uint8, or 32 bytes or 64 hex digits each.
    Raises UserError where one of them cannot be what it should be, lengths differ, or all features are the same.
    """
    if isinstance(rate, bool) or not isinstance(rate, Real) or not 0 < float(rate) < 1:
        raise UserError(f"rate must be a number between 0 and 1, both excluded, got {rate!r}")
    if isinstance(seed, bool) or not isinstance(seed, Integral) or int(seed) < 0:
        raise UserError(f"seed must be a whole number of at least 0, got {seed!r}")
    matrix = take_features(features)
    n = len(matrix)
    codes, names = (np.zeros(0, np.int64), ()) if labels is None else take_labels(labels, n, class_names)
    for name, values in (("paths", paths), ("splits", splits), ("digests", digests)):
        if values is not None and len(values) != n:
            raise UserError(f"there are {len(values)} {name} for {n} images: give one for each")
    if n > 1 and (matrix == matrix[0]).all():
        raise UserError(f"all {n} images have the same features: there is nothing to tell them apart by")
    splits = ["train"] * n if splits is None else list(map(str, splits))
    paths = [f"{split}/{row}" for row, split in enumerate(splits)] if paths is None else list(map(str, paths))
    known = None if digests is None else _take_digests(digests)
    return Inputs(matrix, codes, names, paths, splits, known, float(rate), int(seed))


def take_features(features: Any, of: str = "features") -> np.ndarray:
    """Features as (n, D) float32. Raises UserError unless they are numbers, finite, and of a size to compute with."""
    values = _as_array(features, of)
    if values.ndim != 2 or not values.shape[1]:
        raise UserError(f"{of} must be (n, D), got {values.shape}: give a vector for each image")
    if values.dtype.kind not in "fiub":
        raise UserError(f"{of} must be numbers, got {values.dtype}: give a vector for each image")
    if not np.isfinite(values).all():
        raise UserError(f"{of} have values that are not finite: extract them again")
    largest = float(np.abs(values).max(initial=0))
    if largest > LARGEST or 0 < largest < SMALLEST:
        raise UserError(f"the largest of the {of} is {largest:.1g}, too far from 1 to compute with: scale them")
    return np.ascontiguousarray(values, np.float32)


def take_labels(labels: Any, n: int, class_names: Sequence[str] | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels of n images as numbers (n,) int64, and the names of the classes. Raises UserError as `take_inputs`."""
    values = _as_array(labels, "labels")
    if values.ndim != 1:
        raise UserError(f"labels must be (n,), got {values.shape}: give one for each image, a number or a name")
    if len(values) != n:
        raise UserError(f"there are {len(values)} labels for {n} images: give one for each")
    if values.dtype.kind == "f" and np.isfinite(values).all() and (values == np.floor(values)).all():
        values = values.astype(np.int64)  # a table with a gap elsewhere makes numbers of this kind
    if values.dtype.kind == "O" and {type(each) for each in values.tolist()} <= {str}:
        values = values.astype(str)
    if values.dtype.kind not in "iubUT":
        fits = (isinstance(each, str | Integral) or (isinstance(each, float) and each.is_integer()) for each in values)
        wrong = next((each for each, fit in zip(values.tolist(), fits, strict=True) if not fit), values[0])
        raise UserError(f"labels must be whole numbers or texts of one kind, found {wrong!r}: name the class of each")
    if class_names is None:
        used, codes = np.unique(values, return_inverse=True)
        return codes.astype(np.int64), tuple(map(str, used.tolist()))
    names = tuple(map(str, class_names))
    if len(set(names)) != len(names):
        raise UserError("two class_names are the same: give each class a name of its own")
    if values.dtype.kind in "UT":
        number = {name: label for label, name in enumerate(names)}
        values = np.array([number.get(name, -1) for name in values.tolist()], np.int64)
    if n and not (values.min() >= 0 and values.max() < len(names)):
        raise UserError(f"labels go beyond the {len(names)} class_names: name every class, or leave class_names out")
    return values.astype(np.int64), names


def _as_array(values: Any, name: str) -> np.ndarray:
    """An array of an array, a tensor (of any device, with or without gradient), or lists of these."""
    if isinstance(values, list | tuple) and values and hasattr(values[0], "detach"):
        values = [_as_array(each, name) for each in values]
    try:
        if hasattr(values, "detach"):
            values = values.detach().cpu()
            values = (values.float() if values.is_floating_point() else values).numpy()
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:  # such as a sparse tensor
        raise UserError(f"{name} cannot be made an array ({error}): give one row for each image") from error


def _take_digests(digests: Any) -> np.ndarray:
    try:
        if len(digests) and isinstance(digests[0], str | bytes):
            digests = [list(bytes.fromhex(each) if isinstance(each, str) else each) for each in digests]
        values = np.asarray(digests)
        if values.dtype.kind in "iu" and values.min(initial=0) >= 0 and values.max(initial=0) < 256:
            values = values.astype(np.uint8)
    except (ValueError, TypeError) as error:
        raise UserError(f"digests must be of {DIGEST} bytes or {2 * DIGEST} hex digits each ({error})") from error
    if values.ndim != 2 or values.shape[1] != DIGEST or values.dtype != np.uint8:
        raise UserError(f"digests must be (n, {DIGEST}) uint8, or as many bytes or hex digits each, got {values.shape}")
    return values
