"""Phase 1's dummy model: trainable, blind to the features. It validates the pipeline: it must stay at chance."""

import torch
from torch import Tensor, nn

from train.methods.base import Method


class Dummy(Method):
    """One learned logit a position: the best that can be done without looking. Above 1/S, positions would leak."""

    def __init__(self, input_dim: int, set_size: int):
        super().__init__(input_dim)
        self.set_size = set_size
        self.position = nn.Parameter(torch.zeros(set_size))

    def compare(self, encoded: Tensor) -> Tensor:
        return self.position + encoded.new_zeros(encoded.shape[0], 1)
