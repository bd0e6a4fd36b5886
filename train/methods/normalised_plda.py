"""PLDA on features that were made more like Gaussians first; no gradient steps."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from train.gaussian import ROWS_AT_A_TIME, SMALLEST, Normaliser, two_covariances
from train.methods.base import Method
from train.methods.plda import log_density_ratio
from train.task import Task


class NormalisedPLDA(Method):
    """The score of `train.methods.plda` on signed square roots of the features, standardised, all of one length.

    Features behind a ReLU are skewed, and their length says more about the picture than about its class; PLDA knows
    neither (Perronnin et al., *Improving the Fisher kernel*, 2010; Garcia-Romero and Espy-Wilson, *Analysis of i-vector
    length normalization*, 2011). Views are averaged after that, in training, too.
    """

    settings = "distance"
    averages_views = True
    mean: Tensor
    std: Tensor
    projection: Tensor
    shift: Tensor
    ratio: Tensor

    def __init__(self, input_dim: int):
        super().__init__(input_dim)
        self.register_buffer("mean", torch.zeros(input_dim))
        self.register_buffer("std", torch.ones(input_dim))
        self.register_buffer("projection", torch.eye(input_dim))
        self.register_buffer("shift", torch.zeros(input_dim))
        self.register_buffer("ratio", torch.ones(input_dim))

    def fit(self, task: Task) -> None:
        index = task.train
        normaliser = Normaliser.fit(task.gather(index.rows[None])[0].numpy())
        self.mean, self.std = torch.from_numpy(normaliser.mean), torch.from_numpy(normaliser.std)
        views = range(len(task.features))
        rows = [index.rows[start : start + ROWS_AT_A_TIME] for start in range(0, len(index.rows), ROWS_AT_A_TIME)]
        x = [
            torch.stack([self._normalised(task.gather(part[None], view)[0]) for view in views]).mean(0) for part in rows
        ]
        labels = np.repeat(np.arange(len(index.classes)), index.counts)
        mean, projection, ratio, _, _ = two_covariances(torch.cat(x).numpy(), labels)
        parts = (projection, mean @ projection, ratio)
        padded = (functional.pad(torch.from_numpy(part).float(), (0, self.input_dim - len(ratio))) for part in parts)
        self.projection, self.shift, self.ratio = padded

    def encode(self, features: Tensor) -> Tensor:
        """Features (…, D) → coordinates (…, D) in which images are N(class mean, 1); 0 where classes do not differ."""
        return self._normalised(features) @ self.projection - self.shift

    def compare(self, encoded: Tensor) -> Tensor:
        return log_density_ratio(encoded, self.ratio)

    def _normalised(self, features: Tensor) -> Tensor:
        """As `train.gaussian.Normaliser`, on any device."""
        x = (features.sign() * features.abs().sqrt() - self.mean) / self.std
        return x * (x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True).clamp(min=SMALLEST))
