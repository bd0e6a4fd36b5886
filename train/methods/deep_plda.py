"""PLDA on a learned embedding: trained on some classes, made for classes that were never seen."""

import torch
from torch import Tensor, nn

from train.gaussian import log_density_ratio
from train.methods.base import Linear, Method, mlp


class DeepPLDA(Method):
    """The score of `train.methods.plda` on an embedding by an MLP (`train.methods.base.mlp`, D → hidden → width).

    The within-class covariance of the embedding is 1 by decree; the between-class variance of each dimension is learnt,
    as is the embedding. A class is known by the other items of its set alone, so new ones are no special case. The
    classes of the training are told apart by one more linear layer, for the loss on classes.
    """

    def __init__(self, input_dim: int, classes: int, width: int, hidden: int, dropout: float, standardise: bool):
        super().__init__(input_dim, standardise)
        self.layers = mlp(input_dim, hidden, width, dropout)
        self.log_ratio = nn.Parameter(torch.zeros(width))
        self.classifier = Linear(width, classes)

    def encode(self, features: Tensor) -> Tensor:
        """Features (…, D) → embedding (…, width)."""
        return self.layers(self.standardise(features)).float()

    def class_logits(self, encoded: Tensor) -> Tensor:
        return self.classifier(encoded)

    def compare(self, encoded: Tensor) -> Tensor:
        return log_density_ratio(encoded, self.ratio)

    @property
    def ratio(self) -> Tensor:
        """The between-class variances (width,)."""
        return self.log_ratio.exp()
