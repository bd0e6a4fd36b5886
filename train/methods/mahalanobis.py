"""Mahalanobis distance to the set's mean, in the metric of how images of one class vary."""

import numpy as np
import torch
from torch import Tensor, nn

from train.gaussian import estimate_within
from train.methods.base import Method
from train.methods.centroid import measure_distance
from train.task import Task


class Mahalanobis(Method):
    """The distance of each item from the mean of the others, whitened by the within-class covariance Σ of the training.

    metric: "l2", √((x - mean)ᵀ Σ⁻¹ (x - mean)), the distance of the name; or "cosine", of the whitened features from
    the mean of all training images. All of the whitened dimensions are equally noisy, so that the distance is mostly
    noise where there are many; the direction is less so.
    Σ: see `train.gaussian.estimate_within`.
    """

    settings = "distance"

    def __init__(self, input_dim: int, metric: str):
        super().__init__(input_dim)
        self.metric = metric
        self.mean: Tensor = nn.Buffer(torch.zeros(input_dim))
        self.whitening: Tensor = nn.Buffer(torch.eye(input_dim))

    def fit(self, task: Task) -> None:
        within, means = estimate_within(task.read_train, task.train_labels)
        variances, directions = np.linalg.eigh(within)
        self.mean = torch.from_numpy(means.mean(0)).float()
        self.whitening = torch.from_numpy(directions / np.sqrt(variances)).float()

    def compare(self, encoded: Tensor) -> Tensor:
        return measure_distance((encoded - self.mean) @ self.whitening, self.metric)
