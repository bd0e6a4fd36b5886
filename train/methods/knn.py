"""Distance to the nearest neighbours within the set."""

import torch
from torch import Tensor
from torch.nn import functional

from train.methods.base import Method


class NearestNeighbours(Method):
    """The mean distance of each item to the k nearest others of its set (all others where there are fewer).

    metric: "l2", or "cosine" (1 - cosine).
    """

    settings = "distance"

    def __init__(self, input_dim: int, neighbours: int, metric: str, standardise: bool):
        super().__init__(input_dim, standardise)
        self.neighbours, self.metric = neighbours, metric

    def compare(self, encoded: Tensor) -> Tensor:
        if self.metric == "cosine":
            x = functional.normalize(encoded, dim=-1)
            distances = 1 - x @ x.transpose(1, 2)
        else:
            distances = torch.cdist(encoded, encoded)
        size = encoded.shape[1]
        itself = torch.eye(size, dtype=torch.bool, device=encoded.device)
        distances = distances.masked_fill(itself, torch.inf)
        return distances.topk(min(self.neighbours, size - 1), largest=False).values.mean(-1)
