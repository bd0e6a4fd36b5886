"""Several groups of images in one folder, such as three subjects that were thrown together."""

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

from find.foreign import unit
from train.gaussian import compress

FEWEST, SMALLEST_SHARE = 10, 0.1  # a smaller group is a few odd images
MOST_GROUPS = 6
DIRECTIONS = 8
LOOKED_AT = 2000
# Mean silhouette of k-means in the directions of most variance. A single class of CIFAR-100's test split with strays
# stays below it, two or three classes come above (experiment of `bench/find.py`)
SEPARATE = 0.24


def find_groups(features: np.ndarray) -> np.ndarray | None:
    """The group (n,) of each image, 0 the largest; None where there is but one, of features (n, D).

    Some of the images decide, at most `LOOKED_AT`; the cost grows with n alone.
    """
    n = len(features)
    if n < 2 * FEWEST:
        return None
    x = unit(compress(features)).astype(np.float64)
    some = np.random.default_rng(0).permutation(n)[:LOOKED_AT]
    mean = x[some].mean(0)
    _, _, directions = np.linalg.svd(x[some] - mean, full_matrices=False)
    x = (x - mean) @ directions[:DIRECTIONS].T
    best, found = SEPARATE, None
    for k in range(2, MOST_GROUPS + 1):
        if n < k * FEWEST:
            break
        model = KMeans(k, n_init=4, random_state=0).fit(x[some])
        if np.bincount(model.labels_, minlength=k).min() < max(FEWEST * len(some) / n, SMALLEST_SHARE * len(some)):
            continue
        score = silhouette_score(x[some], model.labels_)
        if score > best:
            best, found = score, model
    if found is None:
        return None
    group = found.predict(x)
    order = np.argsort(-np.bincount(group), kind="stable")
    return np.argsort(order)[group]
