"""Probabilistic linear discriminant analysis: the exact answer, if classes were Gaussians of one covariance."""

import numpy as np
import torch
from torch import Tensor

from train.methods.base import Method
from train.methods.mahalanobis import within_class_covariance
from train.task import Task


class PLDA(Method):
    """log p(item alone, the others of one class), up to a constant of the set: a softmax gives the posterior.

    The two-covariance model (Ioffe, *Probabilistic Linear Discriminant Analysis*, 2006): class means are Gaussian with
    covariance B, images around them with covariance W. In coordinates where W = 1 and B = diag(λ), n images of one
    class with the sum s have log-density ½ Σ λ s² / (1 + n λ) + (what does not depend on how they are grouped).
    No gradient steps, and classes that were never seen are no special case.
    """

    settings = "distance"
    mean: Tensor
    projection: Tensor
    ratio: Tensor

    def __init__(self, input_dim: int):
        super().__init__(input_dim)
        self.register_buffer("mean", torch.zeros(input_dim))
        self.register_buffer("projection", torch.eye(input_dim))
        self.register_buffer("ratio", torch.ones(input_dim))

    def fit(self, task: Task) -> None:
        from scipy.linalg import eigh  # here: it is slow to start

        within, means = within_class_covariance(task)
        # Class means scatter by B, and by W / n since they are means of n images
        between = np.cov(means.T) - within * np.mean(1 / task.train.counts)
        ratio, projection = eigh(between, within)
        self.mean = torch.from_numpy(means.mean(0)).float()
        self.projection = torch.from_numpy(projection).float()
        self.ratio = torch.from_numpy(ratio.clip(min=0)).float()

    def compare(self, encoded: Tensor) -> Tensor:
        return log_density_ratio((encoded - self.mean) @ self.projection, self.ratio)


def log_density_ratio(x: Tensor, ratio: Tensor) -> Tensor:
    """log p(item alone, the others of one class), up to a constant of the set, where W = 1: x (B, S, D), λ (D,)."""
    alone = ratio / (1 + ratio)
    together = ratio / (1 + (x.shape[1] - 1) * ratio)
    # Σ alone x² + together (s - x)², multiplied out: products of matrices instead of passes over all of x
    total = x.sum(1, keepdim=True)
    weighted = total * together
    of_each = x.square() @ (alone + together) - 2 * (weighted @ x.transpose(1, 2)).squeeze(1)
    return 0.5 * (of_each + (weighted * total).sum(-1))
