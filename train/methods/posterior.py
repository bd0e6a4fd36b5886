"""Class posteriors of each image, and Bayes' rule over the classes of a set."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.methods.base import Dropout, Linear, Method, standardise_or_not


class ClassPosterior(Method):
    """log p(item i is the anomaly | the set), up to a constant of the set, if an image is known by q(class | image).

    q comes from an MLP: Linear(D → hidden), LayerNorm, GELU, dropout, Linear(hidden → C). With equally frequent classes
    the likelihood of an image under class c is q(c) and under any other 1 - q(c), up to factors that do not depend on
    i, so p(i | set) ∝ Σ_c (1 - q_i(c)) Π_{j ≠ i} q_j(c). Nothing else is learnt: the loss on sets trains q to tell
    apart what sets need told apart, the loss on classes keeps q true to its name. Any S.
    """

    def __init__(self, input_dim: int, classes: int, hidden: int, dropout: float, standardise: bool):
        super().__init__(input_dim)
        self.standardise = standardise_or_not(input_dim, standardise)
        self.layers = nn.Sequential(
            Linear(input_dim, hidden), nn.LayerNorm(hidden), nn.GELU(), Dropout(dropout), Linear(hidden, classes)
        )

    def encode(self, features: Tensor) -> Tensor:
        """Features (…, D) → logits of the classes (…, C)."""
        return self.layers(self.standardise(features)).float()

    def class_logits(self, encoded: Tensor) -> Tensor:
        return encoded

    def compare(self, encoded: Tensor) -> Tensor:
        log_q = functional.log_softmax(encoded, -1)
        log_others = log_q.sum(1, keepdim=True) - log_q
        return torch.logsumexp(log_others + log_complement(log_q), -1)


def log_complement(log_q: Tensor) -> Tensor:
    """log(1 - q) of log q, both in float32; finite where q rounds to 1."""
    return torch.log(-torch.expm1(log_q.clamp(max=-1e-7)))
