"""Mahalanobis distance to the set's mean, in the metric of how images of one class vary."""

import numpy as np
import torch
from torch import Tensor

from train.methods.base import Method
from train.methods.centroid import distance_from_centre
from train.task import Task

ROWS_AT_A_TIME = 1 << 14


class Mahalanobis(Method):
    """The distance of each item from the mean of the others, whitened by the within-class covariance Σ of the training.

    metric: "l2", √((x - mean)ᵀ Σ⁻¹ (x - mean)), the distance of the name; or "cosine", of the whitened features from
    the mean of all training images. All of the whitened dimensions are equally noisy, so that the distance is mostly
    noise where there are many; the direction is less so.
    The shrinkage of Σ is Ledoit and Wolf's (*A well-conditioned estimator for large-dimensional covariance matrices*,
    2004).
    """

    settings = "distance"
    mean: Tensor
    whitening: Tensor

    def __init__(self, input_dim: int, metric: str):
        super().__init__(input_dim)
        self.metric = metric
        self.register_buffer("mean", torch.zeros(input_dim))
        self.register_buffer("whitening", torch.eye(input_dim))

    def fit(self, task: Task) -> None:
        within, means = within_class_covariance(task)
        variances, directions = np.linalg.eigh(within)
        self.mean = torch.from_numpy(means.mean(0)).float()
        self.whitening = torch.from_numpy(directions / np.sqrt(variances)).float()

    def compare(self, encoded: Tensor) -> Tensor:
        return distance_from_centre((encoded - self.mean) @ self.whitening, self.metric)


def within_class_covariance(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Of the training images in view 0: their shrunk within-class covariance (D, D), and the class means (C, D).

    Some rows at a time. The shrinkage is that of `sklearn.covariance.ledoit_wolf`, which wants all rows at once.
    """
    index, n = task.train, len(task.train.rows)
    class_of = np.repeat(np.arange(len(index.classes)), index.counts)
    parts = [slice(start, start + ROWS_AT_A_TIME) for start in range(0, n, ROWS_AT_A_TIME)]
    dim = task.feature_dim
    means, covariance, fourth_powers = np.zeros((len(index.classes), dim)), np.zeros((dim, dim)), 0.0
    for part in parts:
        np.add.at(means, class_of[part], task.gather(index.rows[None, part])[0].double().numpy())
    means /= index.counts[:, None]
    for part in parts:
        residuals = task.gather(index.rows[None, part])[0].double().numpy() - means[class_of[part]]
        covariance += residuals.T @ residuals / n
        fourth_powers += float((residuals**2).sum(1) @ (residuals**2).sum(1))
    scale = np.trace(covariance) / dim
    distance = (covariance**2).sum() - dim * scale**2  # from scale · 1, squared
    error = (fourth_powers / n - (covariance**2).sum()) / n
    shrinkage = min(error, distance) / distance if distance > 0 else 0.0
    return (1 - shrinkage) * covariance + shrinkage * scale * np.eye(dim), means
