"""Classes as Gaussians of one covariance, from features as they are: what a store of any classes says of new ones."""

from dataclasses import dataclass

import numpy as np

from common.errors import UserError

SHRINKAGE = 0.3
SMALLEST = 1e-6
ROWS_AT_A_TIME = 1 << 13


def compress(features: np.ndarray) -> np.ndarray:
    """sign(x) √|x| of features (n, D), float32: behind a ReLU they are skewed, their roots much nearer to Gaussians."""
    features = np.asarray(features, np.float32)
    roots = np.abs(features)
    return np.copysign(np.sqrt(roots, out=roots), features, out=roots)


@dataclass(frozen=True)
class Normaliser:
    """Features (n, D) → square roots, each dimension standardised, then each image's vector of length √D."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray) -> "Normaliser":
        """The mean and the deviation of these features; 1 where nothing varies."""
        roots = compress(features)
        std = roots.std(0)
        return cls(roots.mean(0), np.where(std > SMALLEST, std, 1.0).astype(np.float32))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(n, D) float32."""
        x = compress(features)  # from here in place
        x -= self.mean
        x /= self.std
        length = np.sqrt(np.einsum("ij,ij->i", x, x))[:, None]
        x *= np.sqrt(x.shape[1], dtype=np.float32) / np.maximum(length, SMALLEST)
        return x


@dataclass(frozen=True)
class ClassSpace:
    """The two-covariance model of `train.methods.plda`: class means ~ N(0, λ), images ~ N(class mean, 1).

    normaliser: what is done to features first. mean (D,), projection (D, K): to the coordinates where that holds.
    ratio (K,): λ. sums (C, K), counts (C,): of the images that it was fitted on, by class.
    """

    normaliser: Normaliser
    mean: np.ndarray
    projection: np.ndarray
    ratio: np.ndarray
    sums: np.ndarray
    counts: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, labels: np.ndarray, normaliser: Normaliser | None = None) -> "ClassSpace":
        """Learn it from features (n, D) and labels (n,) in 0 … C - 1. Raises UserError where classes are too few."""
        normaliser = normaliser or Normaliser.fit(features)
        return cls(normaliser, *two_covariances(normaliser(features), labels))

    def embed(self, features: np.ndarray) -> np.ndarray:
        """Features (n, D) → coordinates (n, K) float32."""
        parts = [features[start : start + ROWS_AT_A_TIME] for start in range(0, len(features), ROWS_AT_A_TIME)]
        shift = (self.mean @ self.projection).astype(np.float32)
        return np.concatenate([self.normaliser(part) @ self.projection - shift for part in parts])

    def log_likelihood_ratios(self, embedded: np.ndarray) -> np.ndarray:
        """log p(image | class) - log p(image | a class never seen), of coordinates (n, K) → (n, C)."""
        return log_likelihood_ratio(embedded, self.sums, self.counts, self.ratio)


def two_covariances(
    x: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of normalised features x (n, D) and labels (n,) in 0 … C - 1: what `ClassSpace` holds besides its normaliser.

    The within-class covariance is drawn towards its diagonal mean. There are at most C - 1 coordinates: others tell no
    classes apart. Raises UserError where classes are too few, or do not differ.
    """
    from scipy.linalg import cholesky, solve_triangular, svd  # here: it is slow to start

    classes, counts = int(labels.max()) + 1, np.bincount(labels)
    used = counts > 0
    if used.sum() < 2 or len(x) <= used.sum():
        raise UserError("reference statistics need at least 2 classes of at least 2 images: give a larger store")
    sums = np.zeros((classes, x.shape[1]))
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.flatnonzero(used))
    residuals = x[order]
    sums[used] = np.add.reduceat(residuals, starts, dtype=np.float64)
    means = sums / np.maximum(counts, 1)[:, None]
    for part, mean in zip(np.split(residuals, starts[1:]), means[used], strict=True):
        part -= mean.astype(np.float32)
    within = (residuals.T @ residuals).astype(np.float64) / (len(x) - used.sum())
    scale = np.trace(within) / len(within)
    within = (1 - SHRINKAGE) * within + (SHRINKAGE * scale + SMALLEST) * np.eye(len(within))
    # Where images are N(0, 1), the few class means span all directions that tell classes apart
    mean, root = means[used].mean(0), cholesky(within, lower=True)
    white = solve_triangular(root, (means[used] - mean).T, lower=True)
    directions, deviation, _ = svd(white, full_matrices=False)
    ratio = deviation**2 / (used.sum() - 1) - np.mean(1 / counts[used])
    kept = ratio > SMALLEST
    if not kept.any():
        raise UserError("the classes of the reference do not differ in these features: give another store")
    projection = solve_triangular(root, directions[:, kept], lower=True, trans="T")
    return mean, projection.astype(np.float32), ratio[kept], (sums - counts[:, None] * mean) @ projection, counts


def log_likelihood_ratio(x: np.ndarray, sums: np.ndarray, counts: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """log p(x | the class of these images) - log p(x | another class), x (n, K) → (n, C).

    A class is known by the sum (C, K) and the number (C,) of its images, in coordinates where images are N(mean, 1)
    around their class mean, and class means N(0, λ): so images of another class are N(0, 1 + λ).
    """
    posterior = ratio / (1 + counts[:, None] * ratio)  # variance of what is still unknown of the class mean
    mean, variance = posterior * sums, 1 + posterior
    square = x.astype(np.float64) ** 2
    of_class = square @ (1 / variance).T - 2 * x @ (mean / variance).T + (mean**2 / variance + np.log(variance)).sum(1)
    of_another = square @ (1 / (1 + ratio)) + np.log1p(ratio).sum()
    return 0.5 * (of_another[:, None] - of_class)
