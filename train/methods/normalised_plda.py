"""PLDA on features that were made more like Gaussians first; no gradient steps."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from train.gaussian import SMALLEST, Normaliser, fit_two_covariances, log_density_ratio
from train.methods.base import Method
from train.task import Task


class NormalisedPLDA(Method):
    """The score of `train.methods.plda` on signed square roots of the features, standardised, all of one length.

    Features behind a ReLU are skewed, and their length says more about the picture than about its class; PLDA knows
    neither (Perronnin et al., *Improving the Fisher kernel*, 2010; Garcia-Romero and Espy-Wilson, *Analysis of i-vector
    length normalization*, 2011). Views are averaged after that, in training, too.

    between_shrinkage: see `train.gaussian.diagonalise`. It helps with classes never seen, and harms with known ones.
    """

    settings = "distance"
    averages_views = True

    def __init__(self, input_dim: int, between_shrinkage: float):
        super().__init__(input_dim)
        self.between_shrinkage = between_shrinkage
        self.mean: Tensor = nn.Buffer(torch.zeros(input_dim))
        self.std: Tensor = nn.Buffer(torch.ones(input_dim))
        self.projection: Tensor = nn.Buffer(torch.eye(input_dim))
        self.shift: Tensor = nn.Buffer(torch.zeros(input_dim))
        self.ratio: Tensor = nn.Buffer(torch.ones(input_dim))

    def fit(self, task: Task) -> None:
        index = task.train
        normaliser = Normaliser.fit(task.gather(index.rows[None])[0].numpy())
        self.mean, self.std = torch.from_numpy(normaliser.mean), torch.from_numpy(normaliser.std)
        views = range(task.views)

        def read(part: slice) -> np.ndarray:
            of_views = [self._normalise(task.gather(index.rows[None, part], view)[0]) for view in views]
            return torch.stack(of_views).mean(0).numpy()

        mean, projection, ratio, _ = fit_two_covariances(read, task.train_labels, self.between_shrinkage)
        parts = (projection, mean @ projection, ratio)
        padded = (functional.pad(torch.from_numpy(part).float(), (0, self.input_dim - len(ratio))) for part in parts)
        self.projection, self.shift, self.ratio = padded

    def encode(self, features: Tensor) -> Tensor:
        """Features (…, D) → coordinates (…, D) in which images are N(class mean, 1); 0 where classes do not differ."""
        return self._normalise(features) @ self.projection - self.shift

    def compare(self, encoded: Tensor) -> Tensor:
        return log_density_ratio(encoded, self.ratio)

    def _normalise(self, features: Tensor) -> Tensor:
        """As `train.gaussian.Normaliser`, on any device."""
        x = (features.sign() * features.abs().sqrt() - self.mean) / self.std
        length = x.square().sum(-1, keepdim=True).sqrt()
        return x * (x.shape[-1] ** 0.5 / length.clip(min=SMALLEST))
