"""How far each image is from the others of its class: what does not belong has no near neighbours.

The mean cosine distance to the nearest images tells foreign pictures better than density ratios, forests and class
posteriors do (deep nearest neighbours; Sun et al., *Out-of-distribution detection with deep nearest neighbors*, 2022;
measured in docs/find.md). Where there are several classes, they show which directions tell classes apart; distances in
these are a second opinion.
"""

import numpy as np

from find.rates import standardise

NEAREST = 5
CELLS = 1 << 24  # of one block of distances: 64 MB
TANGENT = 0.9
ROWS = 20_000  # that a covariance is estimated from, at most
CENTRED = 20  # images, of which a class is centred half by itself, half like all
OWN_WEIGHT = 2.0  # of the distance in the features as they are; the second opinion counts 1


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32."""
    return (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)).astype(np.float32, copy=False)


def nearest(x: np.ndarray, others: np.ndarray, k: int, itself: np.ndarray | None = None) -> np.ndarray:
    """The rows (n, k) of the k nearest of others (m, D) to each of x (n, D), both of length 1, the nearest first.

    itself: for each of x its row among the others, which does not count; -1 for none. Exact, in blocks of products: the
    cost grows with n · m. Beyond a million images an index of approximate neighbours would begin to pay.
    """
    rows = np.empty((len(x), k), np.int64)
    step = max(1, CELLS // max(1, len(others)))
    for start in range(0, len(x), step):
        cosine = x[start : start + step] @ others.T
        if itself is not None:
            here = itself[start : start + step]
            cosine[np.flatnonzero(here >= 0), here[here >= 0]] = -np.inf
        some = np.argpartition(-cosine, k - 1, axis=1)[:, :k] if k < cosine.shape[1] else np.argsort(-cosine, 1)
        order = np.argsort(-np.take_along_axis(cosine, some, 1), 1, kind="stable")
        rows[start : start + step] = np.take_along_axis(some, order, 1)
    return rows


def log_distance(x: np.ndarray, others: np.ndarray, same: bool = True) -> np.ndarray:
    """log d / (1 - d) (n,), d: the mean cosine distance of x (n, D) to its `NEAREST` others (m, D), all of length 1.

    same: others are x, and an image does not count for itself. Of images that belong, this is about normal, while log d
    has a short right tail and d a long one. A cosine may be negative: from d = `TANGENT` on it goes on straight.
    """
    n, m = len(x), len(others)
    k = min(NEAREST, m - 1 if same else m)
    d = np.empty(n)
    step = max(1, CELLS // max(1, m))
    for start in range(0, n, step):
        cosine = x[start : start + step] @ others.T
        if same:
            here = np.arange(len(cosine))
            cosine[here, here + start] = -np.inf
        d[start : start + step] = 1 - np.partition(cosine, m - k, axis=1)[:, m - k :].mean(1)
    inside = np.clip(d, 1e-7, TANGENT)
    beyond = np.maximum(d - TANGENT, 0) / (TANGENT * (1 - TANGENT))
    return np.log(inside / (1 - inside)) + beyond


def class_distances(x: np.ndarray, labels: np.ndarray, likely: np.ndarray | None = None) -> np.ndarray:
    """How far images (n, D) are from the nearest others of their class (n,), about N(0, 1) where they belong.

    labels (n,) in 0 … C - 1, at least 2 images each. likely (n,): a class that each may belong to instead; what fits
    there belongs.
    """
    likely = labels if likely is None else likely
    plain = unit(x)
    own, instead = _in_classes(plain, labels, likely)
    if len(np.unique(labels)) > 1:
        white = _within_class_white(plain, labels)
        for total, second in zip((own, instead), _in_classes(white, labels, likely), strict=True):
            total *= OWN_WEIGHT
            total += second
    return standardise(np.minimum(own, instead))


def _in_classes(x: np.ndarray, labels: np.ndarray, likely: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distance (n,) of unit vectors (n, D) to their own class, and to the likely one, as deviations.

    Classes differ in how much their images do, and small ones have farther neighbours. So each is centred by its
    median, the more so the more images it has.
    """
    moved = likely != labels
    own = np.concatenate([np.empty(len(x)), np.empty(int(moved.sum()))])
    instead = own[len(x) :]
    centres = np.empty(labels.max() + 1)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        own[rows] = log_distance(x[rows], x[rows])
        centres[label] = np.median(own[rows])
        there = np.flatnonzero(likely[moved] == label)
        if len(there):
            instead[there] = log_distance(x[moved][there], x[rows], same=False)
    counts = np.bincount(labels)
    share = counts / (counts + CENTRED)
    centres = share * centres + (1 - share) * np.median(own[: len(x)])
    own -= centres[np.concatenate([labels, likely[moved]])]
    own = standardise(own)
    both = own[: len(x)].copy()
    both[moved] = own[len(x) :]
    return own[: len(x)], both


def _within_class_white(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Unit vectors (n, D) in coordinates where images of one class differ alike in all directions.

    The covariance within classes is shrunk as Ledoit and Wolf (2004) estimate from the data.
    """
    from scipy.linalg import solve_triangular
    from sklearn.covariance import ledoit_wolf

    counts = np.bincount(labels)
    sums = np.stack([x[labels == label].sum(0, dtype=np.float64) for label in range(len(counts))])
    some = slice(None, None, -(-len(x) // ROWS))
    residuals = x[some] - (sums / counts[:, None])[labels[some]].astype(np.float32)
    covariance = ledoit_wolf(residuals, assume_centered=True)[0]
    root = np.linalg.cholesky(covariance + 1e-12 * np.eye(len(covariance)))
    transform = solve_triangular(root, np.eye(len(root)), lower=True).T.astype(np.float32)
    return unit(x @ transform - x.mean(0) @ transform)
