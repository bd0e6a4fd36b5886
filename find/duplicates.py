"""The same picture more than once: exactly, by the digest of its pixels, or nearly, by the cosine of its features."""

from dataclasses import dataclass

import numpy as np

from train.gaussian import Normaliser

NEAR = 0.95  # cosine of standardised features: the same scene, saved, cut or lit a little differently
SKETCH = 96  # dimensions of the first look
BLOCK = 2048


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows, first < second (m,) int64; exact (m,) bool: equal pixels; cosine (m,) of their features."""

    first: np.ndarray
    second: np.ndarray
    exact: np.ndarray
    cosine: np.ndarray

    def groups(self, n: int) -> np.ndarray:
        """The number of the group of each of n rows (n,): rows that pairs connect share one."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        graph = coo_array((np.ones(len(self.first), bool), (self.first, self.second)), shape=(n, n))
        return connected_components(graph, directed=False)[1]


def find_pairs(features: np.ndarray, digests: np.ndarray | None = None, near: float = NEAR) -> Pairs:
    """All pairs of equal digests (n, 32), and all whose features (n, D) have a cosine of at least `near`.

    Every pair is looked at, in products of blocks: some seconds for 60,000 images, and four times that for twice as
    many. From a few hundred thousand on an index of nearest neighbours would be worth its dependency.
    """
    x = Normaliser.fit(features)(features)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)
    first, second = _candidates(x, near)
    cosine = np.concatenate(
        [
            np.einsum("ij,ij->i", x[first[i : i + BLOCK]], x[second[i : i + BLOCK]])
            for i in range(0, max(1, len(first)), BLOCK)
        ]
    )
    kept = cosine >= near
    found = {(int(a), int(b)): False for a, b in zip(first[kept], second[kept], strict=True)}
    if digests is not None:
        found |= dict.fromkeys(_equal(digests), True)
    pairs = np.array(sorted(found), np.int64).reshape(-1, 2)
    exact = np.array([found[a, b] for a, b in pairs.tolist()], bool)
    cosine = np.einsum("ij,ij->i", x[pairs[:, 0]], x[pairs[:, 1]])
    return Pairs(pairs[:, 0], pairs[:, 1], exact, cosine)


def _equal(digests: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of equal digests; of more than two equal ones each with the first."""
    first: dict[bytes, int] = {}
    pairs = []
    for row, digest in enumerate(digests):
        other = first.setdefault(digest.tobytes(), row)
        if other != row:
            pairs.append((other, row))
    return pairs


def _candidates(x: np.ndarray, near: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of unit vectors (n, D) that may be so near.

    A projection onto orthogonal directions makes no distance longer, so none is lost by looking at the directions
    of most variance first.
    """
    n, dim = x.shape
    sketch = x
    if dim > 2 * SKETCH:
        sample = x[:: max(1, n // 5000)]
        _, directions = np.linalg.eigh(sample.T @ sample)
        sketch = x @ directions[:, -SKETCH:]
    square = (sketch**2).sum(1)
    farthest = 2 - 2 * near + 1e-4
    firsts, seconds = [], []
    for start in range(0, n, BLOCK):
        rows = sketch[start : start + BLOCK]
        # |a - b|² ≤ farthest, written so that the product needs one comparison
        product = rows @ sketch[start:].T
        product -= 0.5 * square[start:]
        a, b = np.nonzero(product >= 0.5 * (square[start : start + BLOCK] - farthest)[:, None])
        later = b > a
        firsts.append(a[later] + start)
        seconds.append(b[later] + start)
    return np.concatenate(firsts), np.concatenate(seconds)
