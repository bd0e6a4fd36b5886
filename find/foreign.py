"""How far each image is from the images that it is most like: what does not belong has no near neighbours.

The mean cosine distance to the nearest images tells foreign pictures better than density ratios, forests and class
posteriors do (deep nearest neighbours; Sun et al., *Out-of-distribution detection with deep nearest neighbors*, 2022;
measured in docs/find.md).
"""

import numpy as np

from find.rates import standardise

NEAREST = 5
CELLS = 1 << 24  # of one block of distances: 64 MB
TANGENT = 0.9
CENTRED = 20  # images, of which a class is centred half by itself, half like all


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32."""
    return (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)).astype(np.float32, copy=False)


def nearest(
    x: np.ndarray, others: np.ndarray, k: int, itself: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The rows (n, k) of the k nearest of others (m, D) to each of x (n, D), all of length 1, and their cosines (n, k).

    The nearest come first. itself: for each of x its row among the others, which does not count (cosine -inf); -1 for
    none. Exact, in blocks of products: the cost grows with n · m. Beyond a million images an index of approximate
    neighbours would begin to pay.
    """
    rows, cosines = np.empty((len(x), k), np.int64), np.empty((len(x), k), np.float32)
    step = max(1, CELLS // max(1, len(others)))
    for start in range(0, len(x), step):
        cosine = x[start : start + step] @ others.T
        if itself is not None:
            here = itself[start : start + step]
            cosine[np.flatnonzero(here >= 0), here[here >= 0]] = -np.inf
        some = np.argpartition(cosine, len(others) - k, axis=1)[:, len(others) - k :]
        found = np.take_along_axis(cosine, some, 1)
        order = np.argsort(-found, 1, kind="stable")
        rows[start : start + step] = np.take_along_axis(some, order, 1)
        cosines[start : start + step] = np.take_along_axis(found, order, 1)
    return rows, cosines


def log_distance(x: np.ndarray) -> np.ndarray:
    """The distance (n,) of each of x (n, D) of length 1, n ≥ 2, to the nearest others, as `from_cosines` puts it."""
    return from_cosines(nearest(x, x, min(NEAREST, len(x) - 1), np.arange(len(x)))[1])


def from_cosines(cosines: np.ndarray) -> np.ndarray:
    """log d / (1 - d) (n,), d: the mean distance to the `NEAREST` of some images with cosines (n, k); -inf for none.

    Of images that belong, this is about normal, while log d has a short right tail and d a long one. A cosine may be
    negative: from d = `TANGENT` on it goes on straight.
    """
    near = -np.sort(-cosines, 1)[:, :NEAREST].astype(np.float64)
    d = 1 - np.mean(near, 1, where=np.isfinite(near))
    inside = np.clip(d, 1e-7, TANGENT)
    beyond = np.maximum(d - TANGENT, 0) / (TANGENT * (1 - TANGENT))
    return np.log(inside / (1 - inside)) + beyond


def class_distances(x: np.ndarray, labels: np.ndarray, likely: np.ndarray) -> np.ndarray:
    """How far images (n, D) are from the nearest others in two classes (n,), about N(0, 1) where they belong.

    labels, likely (n,): the class that an image is in, and the one that it is most like beside it; in 0 … C - 1, at
    least 2 images each. Where there is but one class, both are the same.

    Classes differ in how much their images do, and small ones have farther neighbours. So distances are centred by the
    median of the images whose nearest one is in the same class, the more so the more these are.
    """
    u = unit(x)
    cosines = np.full((2, len(x), NEAREST), -np.inf, np.float32)
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        k, itself = min(NEAREST, len(of_class)), np.arange(len(of_class))
        cosines[0, of_class, :k] = nearest(u[of_class], u[of_class], k, itself)[1]
        there = np.flatnonzero((likely == label) & (labels != label))
        cosines[1, there, :k] = nearest(u[there], u[of_class], k)[1]
    distance = from_cosines(np.concatenate(cosines, 1))
    closest = np.where(cosines[0, :, 0] >= cosines[1, :, 0], labels, likely)
    overall = np.median(distance)
    for label in np.unique(closest):
        of_class = closest == label
        share = of_class.sum() / (of_class.sum() + CENTRED)
        distance[of_class] -= share * np.median(distance[of_class]) + (1 - share) * overall
    return standardise(distance)
