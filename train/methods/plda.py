"""Probabilistic linear discriminant analysis: the exact answer, if classes were Gaussians of one covariance."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.gaussian import diagonalise, estimate_within, log_density_ratio
from train.methods.base import Method
from train.task import Task


class PLDA(Method):
    """log p(item alone, the others of one class), up to a constant of the set: a softmax gives the posterior.

    The two-covariance model of `train.gaussian`. No gradient steps, and classes never seen are no special case.
    """

    settings = "distance"

    def __init__(self, input_dim: int):
        super().__init__(input_dim)
        self.mean: Tensor = nn.Buffer(torch.zeros(input_dim))
        self.projection: Tensor = nn.Buffer(torch.eye(input_dim))
        self.ratio: Tensor = nn.Buffer(torch.ones(input_dim))

    def fit(self, task: Task) -> None:
        within, means = estimate_within(task.read_train, task.train_labels)
        projection, ratio = diagonalise(within, means, task.train.counts)
        parts = (torch.from_numpy(part).float() for part in (projection, ratio))
        self.projection, self.ratio = (functional.pad(part, (0, self.input_dim - len(ratio))) for part in parts)
        self.mean = torch.from_numpy(means.mean(0)).float()

    def compare(self, encoded: Tensor) -> Tensor:
        return log_density_ratio((encoded - self.mean) @ self.projection, self.ratio)
