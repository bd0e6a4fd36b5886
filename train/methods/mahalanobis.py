"""Mahalanobis distance to the set's mean, in the metric of how images of one class vary."""

from typing import Self

import numpy as np
import torch
from torch import Tensor

from train.config import Config
from train.methods.base import Method
from train.methods.centroid import distance_from_centre
from train.task import Task


class Mahalanobis(Method):
    """The distance of each item from the mean of the others, whitened by the within-class covariance Σ of the training.

    metric: "l2", √((x - mean)ᵀ Σ⁻¹ (x - mean)), the distance of the name; or "cosine", of the whitened features from
    the mean of all training images. All of the whitened dimensions are equally noisy, so that the distance is mostly
    noise where there are many; the direction is less so.
    The shrinkage of Σ is Ledoit and Wolf's (*A well-conditioned estimator for large-dimensional covariance matrices*,
    2004).
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, input_dim: int, metric: str):
        super().__init__(input_dim)
        self.metric = metric
        self.register_buffer("mean", torch.zeros(input_dim))
        self.register_buffer("whitening", torch.eye(input_dim))

    @classmethod
    def from_config(cls, config: Config, input_dim: int, classes: int) -> Self:
        return cls(input_dim, config.distance.metric)

    def fit(self, task: Task) -> None:
        within, means = within_class_covariance(task)
        variances, directions = np.linalg.eigh(within)
        self.mean = torch.from_numpy(means.mean(0)).float()
        self.whitening = torch.from_numpy(directions / np.sqrt(variances)).float()

    def compare(self, encoded: Tensor) -> Tensor:
        return distance_from_centre((encoded - self.mean) @ self.whitening, self.metric)


def within_class_covariance(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Of the training images in view 0: their shrunk within-class covariance (D, D), and the class means (C, D)."""
    from sklearn.covariance import ledoit_wolf  # here: it is slow to start

    index = task.train
    features = task.gather(index.rows[None])[0].double().numpy()
    means = np.add.reduceat(features, index.starts) / index.counts[:, None]
    residuals = features - np.repeat(means, index.counts, axis=0)
    return ledoit_wolf(residuals, assume_centered=True)[0], means
