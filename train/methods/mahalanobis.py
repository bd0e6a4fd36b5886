"""Mahalanobis distance to the set's mean, in the metric of how images of one class vary."""

from typing import Self

import numpy as np
import torch
from torch import Tensor

from train.config import Config
from train.methods.base import Method
from train.task import Task


class Mahalanobis(Method):
    """√((x - mean)ᵀ Σ⁻¹ (x - mean)) with the within-class covariance Σ of the training images, shrunk.

    The shrinkage is Ledoit and Wolf's (*A well-conditioned estimator for large-dimensional covariance matrices*, 2004).
    """

    whitening: Tensor

    def __init__(self, input_dim: int):
        super().__init__(input_dim)
        self.register_buffer("whitening", torch.eye(input_dim))

    @classmethod
    def from_config(cls, config: Config, input_dim: int) -> Self:
        return cls(input_dim)

    def fit(self, task: Task) -> None:
        variances, directions = np.linalg.eigh(within_class_covariance(task)[0])
        self.whitening = torch.from_numpy(directions / np.sqrt(variances)).float()

    def forward(self, features: Tensor) -> Tensor:
        x = features @ self.whitening
        return (x - x.mean(1, keepdim=True)).norm(dim=-1)


def within_class_covariance(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Of the training images in view 0: their shrunk within-class covariance (D, D), and the class means (C, D)."""
    from sklearn.covariance import ledoit_wolf  # here: it is slow to start

    index = task.train
    features = task.gather(index.rows[None])[0].double().numpy()
    means = np.add.reduceat(features, index.starts) / index.counts[:, None]
    residuals = features - np.repeat(means, index.counts, axis=0)
    return ledoit_wolf(residuals, assume_centered=True)[0], means
