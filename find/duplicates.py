"""The same picture more than once: exactly, by the digest of its pixels, or nearly, by the cosine of its features."""

from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from train.gaussian import Normaliser

NEAR = 0.95  # cosine of standardised features: the same scene, saved, cut or lit a little differently
SKETCH = 96  # dimensions of the first look
CELLS = 1 << 24  # of one block of products: 64 MB


@dataclass(frozen=True)
class Copies:
    """group (n,): images of one group show the same picture. equal (n,): those of one number are exactly equal."""

    group: np.ndarray
    equal: np.ndarray

    def groups(self) -> list[np.ndarray]:
        """The rows of each group of two or more, rising."""
        order = np.argsort(self.group, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(self.group[order])) + 1)
        return [part for part in parts if len(part) > 1]


def find_copies(features: np.ndarray, digests: np.ndarray | None = None, near: float = NEAR) -> Copies:
    """Copies among images of features (n, D): of equal digests (n, 32) or features, or of a cosine of at least `near`.

    Equal ones are put together first, and count once from then on. Of the others every pair is looked at, in products
    of blocks: four times as long for twice as many.
    """
    equal = _number(features)
    if digests is not None:
        equal = _connected(np.stack([equal, _number(digests) + len(equal)]), 2 * len(equal))[equal]
    _, first, equal = np.unique(equal, return_index=True, return_inverse=True)
    x = Normaliser.fit(features[first])(features[first])
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)
    group = _connected(_near_pairs(x, near), len(first))
    return Copies(group[equal], equal)


def _number(rows: np.ndarray) -> np.ndarray:
    """The number (n,) of the first row that is equal to each of rows (n, D)."""
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(sha256(row.tobytes()).digest(), i) for i, row in enumerate(rows)], np.int64)


def _connected(pairs: np.ndarray, n: int) -> np.ndarray:
    """The number (n,) of the part that each of n nodes is in, of a graph of pairs (2, m)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(pairs.shape[1], bool), (pairs[0], pairs[1])), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def _near_pairs(x: np.ndarray, near: float) -> np.ndarray:
    """Pairs (2, m) of unit vectors (n, D) whose cosine is at least `near`.

    A projection onto orthogonal directions makes no distance longer, so none is lost by looking at the directions of
    most variance first.
    """
    n, dim = x.shape
    sketch = x
    if dim > 2 * SKETCH:
        sample = x[:: max(1, n // 5000)]
        _, directions = np.linalg.eigh(sample.T @ sample)
        sketch = x @ directions[:, -SKETCH:]
    square = (sketch**2).sum(1)
    farthest = 2 - 2 * near + 1e-4
    found, step = [np.empty((2, 0), np.int64)], max(1, CELLS // max(1, n))
    for start in range(0, n, step):
        # |a - b|² ≤ farthest, written so that the product needs one comparison
        product = sketch[start : start + step] @ sketch[start:].T
        product -= 0.5 * square[start:]
        a, b = np.nonzero(product >= 0.5 * (square[start : start + step] - farthest)[:, None])
        a, b = a[b > a] + start, b[b > a] + start
        for part in range(0, len(a), step):
            rows = slice(part, part + step)
            kept = np.einsum("ij,ij->i", x[a[rows]], x[b[rows]]) >= near
            found.append(np.stack([a[rows][kept], b[rows][kept]]))
    return np.concatenate(found, 1)
