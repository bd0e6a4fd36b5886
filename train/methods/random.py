"""Chance, measured: uniform scores that never look at the features."""

import torch
from torch import Tensor

from train.methods.base import Method


class Random(Method):
    """A uniform score for each item; the same seed and the same calls give the same scores."""

    def __init__(self, input_dim: int, seed: int):
        super().__init__(input_dim)
        self.generator = torch.Generator().manual_seed(seed)

    def compare(self, encoded: Tensor) -> Tensor:
        return torch.rand(encoded.shape[:2], generator=self.generator).to(encoded.device)
