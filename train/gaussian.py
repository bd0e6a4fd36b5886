"""The two-covariance model: class means ~ N(mean, B), images ~ N(class mean, W), of one W for all classes.

Features are normalised, W and B estimated and made diagonal, W = 1 and B = diag(λ). In these coordinates
`log_density_ratio` scores the items of a set, and `log_likelihood_ratio` images against classes. (Ioffe, *Probabilistic
Linear Discriminant Analysis*, 2006)

n images · D features · C classes · K coordinates · λ = `ratio`
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cholesky, solve_triangular, svd
from scipy.sparse import csc_array
from torch import Tensor

from common.errors import UserError

SHRINKAGE = 0.3
SMALLEST = 1e-6
ROWS_AT_A_TIME = 1 << 13

Read = Callable[[slice], np.ndarray]  # rows → their features (m, D); all that is computed of them is of their dtype


def compress(features: np.ndarray) -> np.ndarray:
    """Return sign(x) √|x| of features (n, D), float32: behind a ReLU they are skewed, their roots are much less so."""
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
        """Measure the mean and the deviation of these features; 1 where nothing varies."""
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


def fit_two_covariances(
    read: Read, labels: np.ndarray, between_shrinkage: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fit the model on normalised features → mean (D,), projection (D, K), λ (K,), class means (C, D).

    labels: (n,) in 0 … C - 1. between_shrinkage: as `diagonalise` takes it; with 0 there are at most C - 1 coordinates,
    since others tell none of these classes apart. Raises UserError where classes are too few, or do not differ.
    """
    counts = np.bincount(labels)
    used = counts > 0
    if used.sum() < 2 or len(labels) <= used.sum():
        raise UserError("reference statistics need at least 2 classes of at least 2 images: give a larger store")
    within, means = estimate_within(read, labels, SHRINKAGE)
    projection, ratio = diagonalise(within, means[used], counts[used], between_shrinkage)
    differs = ratio > SMALLEST
    if not differs.any():
        raise UserError("the classes of the reference do not differ in these features: give another store")
    return means[used].mean(0), projection[:, differs], ratio[differs], means


def estimate_within(read: Read, labels: np.ndarray, shrinkage: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Estimate W (D, D), drawn towards its mean variance, and the class means (C, D), some rows at a time.

    labels: (n,) in 0 … C - 1. shrinkage: how far it is drawn; None: as far as Ledoit and Wolf say (*A well-conditioned
    estimator for large-dimensional covariance matrices*, 2004), as `sklearn.covariance.ledoit_wolf`.
    """
    n, counts = len(labels), np.bincount(labels)
    parts = [slice(start, min(start + ROWS_AT_A_TIME, n)) for start in range(0, n, ROWS_AT_A_TIME)]
    means = sum(_sum_by_class(read(part), labels[part], len(counts)) for part in parts)
    means = means / np.maximum(counts, 1)[:, None]
    scatter, fourth_powers = np.zeros((means.shape[1],) * 2), 0.0
    for part in parts:
        x = read(part)
        x = x - means[labels[part]].astype(x.dtype)
        scatter += x.T @ x
        squares = (x * x).sum(1, dtype=np.float64)
        fourth_powers += float(squares @ squares)
    identity = np.eye(len(scatter))
    if shrinkage is not None:
        within = scatter / (n - (counts > 0).sum())
        return (1 - shrinkage) * within + (shrinkage * np.diag(within).mean() + SMALLEST) * identity, means
    within = scatter / n
    scale, squared = np.diag(within).mean(), (within**2).sum()
    distance = squared - len(within) * scale**2  # from scale · 1, squared
    error = (fourth_powers / n - squared) / n
    shrinkage = min(error, distance) / distance if distance > 0 else 0.0
    return (1 - shrinkage) * within + shrinkage * scale * identity, means


def diagonalise(
    within: np.ndarray, means: np.ndarray, counts: np.ndarray, shrinkage: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the projection (D, K) to coordinates where W is 1, and the variances λ (K,) of the class means in them.

    means: (C, D), of counts (C,) images: they scatter by B, and by W / count since they are means. Where W is 1, the
    means themselves span all directions in which they scatter, K ≤ C of them; in all others λ is 0.
    shrinkage: how far λ is drawn towards its mean over all D directions. Classes never seen differ in other directions,
    too; so then K = D.
    """
    root = cholesky(within, lower=True)
    white = solve_triangular(root, (means - means.mean(0)).T, lower=True)
    directions, deviation, _ = svd(white, full_matrices=shrinkage > 0)
    ratio = np.zeros(directions.shape[1])
    ratio[: len(deviation)] = (deviation**2 / (len(means) - 1) - np.mean(1 / counts)).clip(min=0)
    ratio = (1 - shrinkage) * ratio + shrinkage * ratio.mean()
    return solve_triangular(root, directions, lower=True, trans="T"), ratio


def log_density_ratio(x: Tensor, ratio: Tensor) -> Tensor:
    """Return log p(item alone, the others of one class), up to a constant of the set, of x (B, S, K) → (B, S).

    n images of one class with the sum s have log-density ½ Σ λ s² / (1 + n λ) + (what does not depend on how they are
    grouped).
    """
    alone = ratio / (1 + ratio)
    together = ratio / (1 + (x.shape[1] - 1) * ratio)
    # Σ alone x² + together (s - x)², multiplied out: products of matrices instead of passes over all of x
    total = x.sum(1, keepdim=True)
    weighted = total * together
    of_items = x.square() @ (alone + together) - 2 * (weighted @ x.transpose(1, 2)).squeeze(1)
    return 0.5 * (of_items + (weighted * total).sum(-1))


def log_density_together(sums: np.ndarray, counts: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """Return log p(images of one class), up to what does not depend on how images are grouped.

    sums (n, K), counts (n,): of n groups → (n,).
    """
    spread = 1 + counts[:, None] * ratio
    return 0.5 * (ratio * sums**2 / spread - np.log(spread)).sum(1)


def log_likelihood_ratio(x: np.ndarray, sums: np.ndarray, counts: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """Return log p(x | the class of these images) - log p(x | another class), of x (n, K) → (n, C).

    sums (C, K), counts (C,): of the images by which a class is known. Those of another class are N(0, 1 + λ).
    """
    posterior = ratio / (1 + counts[:, None] * ratio)  # variance of what is still unknown of the class mean
    mean, variance = posterior * sums, 1 + posterior
    square = x.astype(np.float64) ** 2
    of_class = square @ (1 / variance).T - 2 * x @ (mean / variance).T + (mean**2 / variance + np.log(variance)).sum(1)
    of_another = square @ (1 / (1 + ratio)) + np.log1p(ratio).sum()
    return 0.5 * (of_another[:, None] - of_class)


def _sum_by_class(x: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Sums (C, D) float64 of the rows of x (m, D), by their labels (m,)."""
    one_per_column = np.arange(len(x) + 1)
    return csc_array((np.ones(len(x)), labels, one_per_column), (classes, len(x))) @ x
