"""How far each image is from the images that it is most like: what does not belong has no near neighbours.

The mean cosine distance to the nearest images tells foreign pictures better than density ratios, forests and class
posteriors do (deep nearest neighbours; Sun et al., *Out-of-distribution detection with deep nearest neighbors*, 2022;
measured in docs/find.md).
"""

import numpy as np
import torch

from find.rates import standardise

NEAREST = 5
BLOCK = 1024, 16_384  # images by images, whose cosines are computed at once: 64 MB
TANGENT = 0.9
ALIKE = 0.5  # spreads that the middle of a class may be farther than that of all: any set has classes that differ so
FEW = 20  # images, of which half of that is believed


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32."""
    return (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)).astype(np.float32, copy=False)


def nearest(
    x: np.ndarray, features: np.ndarray, k: int, rows: np.ndarray | None = None, itself: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The numbers (n, k) of the k nearest of some images to each of x (n, D), and their cosines (n, k).

    The nearest come first. The images are the rows (m,) of features (N, D), all by default, m ≥ k; numbers count from 0
    among them. itself: for each of x its number, which does not count (cosine -inf). Exact, in blocks of products: the
    cost grows with n · m. Beyond a million images an index of approximate neighbours would begin to pay.
    """
    rows = np.arange(len(features)) if rows is None else rows
    of = torch.from_numpy(unit(x))
    numbers, cosines = torch.zeros(len(x), k, dtype=torch.int64), torch.full((len(x), k), -torch.inf)
    for start in range(0, len(rows), BLOCK[1]):
        others = torch.from_numpy(unit(features[rows[start : start + BLOCK[1]]])).T
        for first in range(0, len(of), BLOCK[0]):
            here = slice(first, first + BLOCK[0])
            cosine = of[here] @ others
            if itself is not None:
                among = torch.from_numpy(itself[here] - start)
                known = torch.nonzero((among >= 0) & (among < others.shape[1]))[:, 0]
                cosine[known, among[known]] = -torch.inf
            both = torch.cat([cosines[here], cosine], 1).topk(k)
            before = numbers[here].gather(1, both.indices.clamp(max=k - 1))
            numbers[here] = torch.where(both.indices < k, before, both.indices - k + start)
            cosines[here] = both.values
    return numbers.numpy(), cosines.numpy()


def log_distance(x: np.ndarray) -> np.ndarray:
    """The distance (n,) of each of x (n, D), n ≥ 2, to the nearest others, as `from_cosines` puts it."""
    return from_cosines(nearest(x, x, min(NEAREST, len(x) - 1), itself=np.arange(len(x)))[1])


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


def class_distances(features: np.ndarray, rows: np.ndarray, labels: np.ndarray, likely: np.ndarray) -> np.ndarray:
    """How far the rows (m,) of features (n, D) are from the nearest others of two classes (m,), N(0, 1) if all belong.

    labels, likely (m,): the class that an image is in, and the one that it is most like beside it; in 0 … C - 1, at
    least 2 images each. Where there is but one class, both are the same.

    The images of some classes differ much more than those of others. Of an image whose nearest one is in such a class,
    less than that counts.
    """
    cosines = np.full((2, len(rows), NEAREST), -np.inf, np.float32)
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        there = np.flatnonzero((likely == label) & (labels != label))
        own, k = features[rows[of_class]], min(NEAREST, len(of_class))
        cosines[0, of_class, :k] = nearest(own, own, k, itself=np.arange(len(own)))[1]
        cosines[1, there, :k] = nearest(features[rows[there]], own, k)[1]
    distance = standardise(from_cosines(np.concatenate(cosines, 1)))
    closest = np.where(cosines[0, :, 0] >= cosines[1, :, 0], labels, likely)
    for label in np.unique(closest):
        of_class = closest == label
        share = of_class.sum() / (of_class.sum() + FEW)
        distance[of_class] -= max(0.0, share * np.median(distance[of_class]) - ALIKE)
    return distance
