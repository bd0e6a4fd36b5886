"""Sets of S images, S - 1 of one class and one of another, as index arithmetic on whole batches."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import UserError

SAMPLED_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class ClassIndex:
    """Rows of a store grouped by class.

    rows: (n,) int64, those of a class side by side. starts, counts: (C,) int64, where each class lies in `rows`.
    classes: (C,) int64, ascending labels. names: of each label, for messages; () where they have none.
    """

    rows: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    classes: np.ndarray
    names: Sequence[str] = ()

    @classmethod
    def build(cls, rows: np.ndarray, labels: np.ndarray, names: Sequence[str] = ()) -> "ClassIndex":
        """Group `rows` (n,) by their `labels` (n,). Raises UserError when there are fewer than 2 classes."""
        classes, starts, counts = np.unique(np.sort(labels), return_index=True, return_counts=True)
        if len(classes) < 2:
            raise UserError(
                f"sets need at least 2 classes, one for the inliers and one for the anomaly, got {len(classes)}"
            )
        return cls(rows[np.argsort(labels, kind="stable")], starts, counts, classes, names)


@dataclass(frozen=True)
class Sets:
    """A batch of B sets.

    rows: (B, S) int64, rows of the store. target: (B,) int64, the position of the anomaly; S where there is none.
    set_label, anomaly_label: (B,) int64, the class of the inliers and the class of the anomaly.
    """

    rows: np.ndarray
    target: np.ndarray
    set_label: np.ndarray
    anomaly_label: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: slice | np.ndarray) -> "Sets":
        return Sets(self.rows[chosen], self.target[chosen], self.set_label[chosen], self.anomaly_label[chosen])

    def digest(self) -> str:
        """Hexadecimal SHA-256 of rows and targets: runs of equal digests were measured on the same sets."""
        digest = hashlib.sha256(repr(self.rows.shape).encode())
        digest.update(self.rows.astype("<i8").tobytes())
        digest.update(self.target.astype("<i8").tobytes())
        return digest.hexdigest()


def draw_distinct(generator: np.random.Generator, counts: np.ndarray, k: int) -> np.ndarray:
    """For each count (B,) draw `k` distinct integers below it, every ordered choice equally likely → (B, k) int64.

    Raises ValueError where a count is less than `k`.
    """
    if counts.min(initial=k) < k:
        raise ValueError(f"cannot draw {k} distinct integers below {counts.min()}")
    # Fisher-Yates on a row 0 … count-1 that is never written down: step i takes what lies at index swaps[i] ≥ i,
    # and puts what lay at index i there. Tracing the earlier steps backwards tells what lay there.
    swaps = generator.integers(np.arange(k), counts[:, None])
    drawn = swaps.copy()
    for step in range(k - 2, -1, -1):
        later = drawn[:, step + 1 :]
        np.copyto(later, step, where=later == swaps[:, step : step + 1])
    return drawn


def sample_sets(
    index: ClassIndex,
    anomalies: np.ndarray,
    set_size: int,
    generator: np.random.Generator,
    pairs: np.ndarray | None = None,
    without: float = 0.0,
) -> Sets:
    """Draw a set around each anomaly: another class, S - 1 distinct images of it, and a position, all uniform.

    anomalies: (B,) int64, their places in `index.rows`. pairs: (C, C), the probability of each class of the inliers
    (column) for the class of the anomaly (row), 0 on the diagonal; None: all are equal. without: the fraction of the
    sets in which another image of the inliers' class replaces the anomaly, if the class has one left.
    Raises UserError when a class of the index has fewer than S - 1 images.
    """
    _require_images(index, set_size - 1)
    batch = len(anomalies)
    own = np.searchsorted(index.starts, anomalies, "right") - 1
    if pairs is None:
        other = generator.integers(len(index.classes) - 1, size=batch)
        other += other >= own  # skips the anomaly's own class
    else:
        below = pairs.cumsum(1)[own]
        other = (below <= generator.random((batch, 1)) * below[:, -1:]).sum(1)
    drawn = draw_distinct(generator, index.counts[other], set_size - 1)
    target = generator.integers(set_size, size=batch)
    rows = np.empty((batch, set_size), np.int64)
    rows[np.arange(set_size) != target[:, None]] = index.rows[index.starts[other][:, None] + drawn].ravel()
    rows[np.arange(batch), target] = index.rows[anomalies]
    if without:
        spare = index.counts[other] - (set_size - 1)
        clean = (generator.random(batch) < without) & (spare > 0)
        another = generator.integers(np.maximum(spare, 1))
        for used in np.sort(drawn, 1).T:
            another += another >= used
        rows[clean, target[clean]] = index.rows[(index.starts[other] + another)[clean]]
        target = np.where(clean, set_size, target)
    return Sets(rows, target, index.classes[other], index.classes[own])


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the sets of an epoch are drawn; `pairs` and `without` as in `sample_sets`.

    images_per_class: 0: the inliers of a set are any images. Else each batch has this many images of a class (S - 1 if
    that is more) and its sets have no others: what is computed of an image serves all the sets that it is in.
    """

    set_size: int
    batch_size: int
    images_per_class: int = 0
    pairs: np.ndarray | None = None
    without: float = 0.0

    def count_steps(self, images: int) -> int:
        """The number of batches that `draw_batches` makes of so many images."""
        parts = images / self.batch_size
        return max(1, round(parts)) if self.images_per_class else math.ceil(parts)


def draw_batches(index: ClassIndex, sampling: Sampling, generator: np.random.Generator) -> Iterator[Sets]:
    """Draw an epoch: every row of the index once as the anomaly, in random order, with fresh inliers, in batches.

    Raises UserError where a class has fewer than S - 1 images, or a batch that shares its images has a single class.
    """
    return (_draw_shared if sampling.images_per_class else _draw_free)(index, sampling, generator)


def _draw_free(index: ClassIndex, sampling: Sampling, generator: np.random.Generator) -> Iterator[Sets]:
    """Many batches at a time, but never more than about `SAMPLED_AT_ONCE` sets: memory does not grow with them."""
    order, size = generator.permutation(len(index.rows)), sampling.batch_size
    chunk = size * max(1, SAMPLED_AT_ONCE // size)
    for start in range(0, len(order), chunk):
        anomalies = order[start : start + chunk]
        sets = sample_sets(index, anomalies, sampling.set_size, generator, sampling.pairs, sampling.without)
        for first in range(0, len(sets), size):
            yield sets[first : first + size]


def _draw_shared(index: ClassIndex, sampling: Sampling, generator: np.random.Generator) -> Iterator[Sets]:
    """Batches of groups of images of a class, which are spread evenly over the epoch."""
    smallest, pairs = sampling.set_size - 1, sampling.pairs
    _require_images(index, smallest)
    groups, labels, times = [], [], []  # a group's time is when in the epoch it comes, from 0 to 1
    for label, start, count in zip(index.classes, index.starts, index.counts, strict=True):
        number = max(1, count // max(sampling.images_per_class, smallest))
        groups += np.array_split(index.rows[start : start + count][generator.permutation(count)], number)
        labels += [label] * number
        times.append((np.arange(number) + generator.random(number)) / number)
    order = np.argsort(np.concatenate(times))
    for chosen in np.array_split(order, sampling.count_steps(len(index.rows))):
        rows = np.concatenate([groups[i] for i in chosen])
        row_labels = np.concatenate([np.full(len(groups[i]), labels[i]) for i in chosen])
        if (row_labels == row_labels[0]).all():
            raise UserError(
                f"a batch of {len(rows)} images that share their sets has one class: raise training.batch_size "
                f"({sampling.batch_size}) or lower training.images_per_class ({sampling.images_per_class})"
            )
        batch = ClassIndex.build(rows, row_labels, index.names)
        among = None if pairs is None else pairs[np.ix_(*[np.searchsorted(index.classes, batch.classes)] * 2)]
        yield sample_sets(batch, np.arange(len(rows)), sampling.set_size, generator, among, sampling.without)


def draw_evaluation_sets(index: ClassIndex, set_size: int, seed: int, pairs: np.ndarray | None = None) -> Sets:
    """Every row of the index once as the anomaly, in the order of the index; `seed` fixes the rest.

    With `pairs` (see `sample_sets`), only the rows of classes that have a partner.
    """
    anomalies = np.arange(len(index.rows))
    if pairs is not None:
        anomalies = np.flatnonzero(np.repeat(pairs.any(1), index.counts))
    return sample_sets(index, anomalies, set_size, np.random.default_rng(seed), pairs)


def sample_mixed_sets(
    index: ClassIndex, count: int, anomalies: int, set_size: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """`count` sets with any number of anomalies, each of another class → rows (B, S) int64, is_anomaly (B, S) bool.

    The classes of the inliers take turns. Raises UserError where there are too few classes or images.
    """
    classes = len(index.classes)
    if classes <= anomalies:
        raise UserError(f"sets with {anomalies} anomalies need more than {anomalies} classes, got {classes}")
    inliers = set_size - anomalies
    _require_images(index, inliers)
    own = np.arange(count) % classes
    others = draw_distinct(generator, np.full(count, classes - 1), anomalies)
    others += others >= own[:, None]
    odd = generator.integers(index.counts[others])
    same = draw_distinct(generator, index.counts[own], inliers)
    chosen = np.concatenate([index.starts[others] + odd, index.starts[own][:, None] + same], 1)
    order = generator.permuted(np.broadcast_to(np.arange(set_size), (count, set_size)), axis=1)
    return index.rows[np.take_along_axis(chosen, order, 1)], order < anomalies


def pair_within(groups: np.ndarray) -> np.ndarray:
    """For `sample_sets`: only classes of the same group (C,) are paired, all equally often → (C, C) float64.

    >>> pair_within(np.array([0, 0, 1])).tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    same = (groups[:, None] == groups) & ~np.eye(len(groups), dtype=bool)
    return same / np.maximum(same.sum(1, keepdims=True), 1)


def pair_mostly_within(groups: np.ndarray, part: float) -> np.ndarray:
    """For `sample_sets`: `part` of the pairs as of `pair_within`, the rest of any two classes → (C, C) float64.

    >>> pair_mostly_within(np.array([0, 0, 1]), 0.5).tolist()
    [[0.0, 0.75, 0.25], [0.75, 0.0, 0.25], [0.5, 0.5, 0.0]]
    """
    within, any_two = pair_within(groups), pair_within(np.zeros_like(groups))
    return np.where(within.any(1, keepdims=True), part * within + (1 - part) * any_two, any_two)


def split_validation(
    rows: np.ndarray, labels: np.ndarray, fraction: float, set_size: int, seed: int, names: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Hold out `fraction` of each class, at least S - 1 images → rows (n,) for training and for validation, ascending.

    Raises UserError when a class has too few images for both.
    """
    index = ClassIndex.build(rows, labels, names)
    _require_images(index, 2 * (set_size - 1), " in the train split")
    generator = np.random.default_rng(seed)
    held_out = []
    for start, count in zip(index.starts, index.counts, strict=True):
        size = min(max(round(fraction * count), set_size - 1), count - (set_size - 1))
        held_out.append(start + generator.permutation(count)[:size])
    is_val = np.zeros(len(rows), bool)
    is_val[np.concatenate(held_out)] = True
    return np.sort(index.rows[~is_val]), np.sort(index.rows[is_val])


def _require_images(index: ClassIndex, needed: int, where: str = "") -> None:
    scarce = int(index.counts.argmin())
    if index.counts[scarce] < needed:
        label = int(index.classes[scarce])
        name = f'"{index.names[label]}"' if index.names else str(label)
        raise UserError(
            f"class {name} has {index.counts[scarce]} images{where}, sets of this size need {needed}: "
            "lower data.set_size, or leave the class out with data.classes"
        )
