"""The same picture more than once: exactly, by the digest of its pixels, or nearly, by the cosine of its features."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from common.progress import Progress
from train.gaussian import Normaliser

NEAR = 0.95  # cosine of standardised features: the same scene, saved, cut or lit a little differently
SKETCH, SAMPLE = 96, 5000  # dimensions of the first look, and images that these are learnt from
TILE = 2048  # images of one block of products, 16 MB


@dataclass(frozen=True)
class Copies:
    """group (n,): images of one group show the same picture. equal (n,): those of one number are exactly equal."""

    group: np.ndarray
    equal: np.ndarray


def repeated(numbers: np.ndarray) -> dict[int, np.ndarray]:
    """Where each of these numbers (n,) is that is there twice or more."""
    order = np.argsort(numbers, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
    return {int(numbers[part[0]]): part for part in parts if len(part) > 1}


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
    graph = coo_array((np.ones(pairs.shape[1], bool), (pairs[0], pairs[1])), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def _near_pairs(x: np.ndarray, near: float) -> np.ndarray:
    """Pairs (2, m) of unit vectors (n, D) whose cosine is at least `near`.

    A projection onto orthogonal directions makes no distance longer, so none is lost by looking at the directions of
    most variance first.
    """
    n, dim = x.shape
    sketch = x
    if dim > 2 * SKETCH and n > SAMPLE:
        sample = torch.from_numpy(x[:: n // SAMPLE])
        _, directions = torch.linalg.eigh(sample.T @ sample)
        sketch = (torch.from_numpy(x) @ directions[:, -SKETCH:]).numpy()
    # |a - b|² ≤ farthest as one product: a·b - |a|²/2 - |b|²/2 + farthest/2 ≥ 0
    half, one = 0.5 * np.einsum("ij,ij->i", sketch, sketch)[:, None], np.ones((n, 1), np.float32)
    left = np.concatenate([sketch, one, (1 - near) + 5e-5 - half], 1, dtype=np.float32)
    right = np.concatenate([sketch, -half, one], 1, dtype=np.float32)

    def look(start: int) -> list[np.ndarray]:
        pairs = [np.empty((2, 0), np.int64)]
        for other in range(start, n, TILE):  # tiles that stay in the cache
            tile = left[start : start + TILE] @ right[other : other + TILE].T
            a, b = np.divmod(np.flatnonzero(tile >= 0), tile.shape[1])
            a, b = a[b + other > a + start] + start, b[b + other > a + start] + other
            for part in range(0, len(a), TILE):
                rows = slice(part, part + TILE)
                close = np.einsum("ij,ij->i", x[a[rows]], x[b[rows]]) >= near
                pairs.append(np.stack([a[rows][close], b[rows][close]]))
        return pairs

    with Progress(n, "looking for copies", "images") as progress, ThreadPoolExecutor(torch.get_num_threads()) as pool:
        pairs = []
        for start, of_block in zip(range(0, n, TILE), pool.map(look, range(0, n, TILE)), strict=True):
            pairs += of_block
            progress.update(min(TILE, n - start))
    return np.concatenate(pairs, 1)
