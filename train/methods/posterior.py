"""Class posteriors of each image, and Bayes' rule over the classes of a set."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from train.methods.base import Method, mlp


class ClassPosterior(Method):
    """log-odds that item i is the anomaly, against "there is none", if an image is known by q(class | image).

    q comes from an MLP (`train.methods.base.mlp`). Nothing else is learnt: the loss on sets trains q to tell apart what
    sets need told apart, the loss on classes keeps q true to its name. See `log_odds`. Any S.
    """

    def __init__(self, input_dim: int, classes: int, hidden: int, dropout: float, standardise: bool):
        super().__init__(input_dim, standardise)
        self.layers = mlp(input_dim, hidden, classes, dropout)

    def encode(self, features: Tensor) -> Tensor:
        """Features (…, D) → logits of the classes (…, C)."""
        return self.layers(self.standardise(features)).float()

    def class_logits(self, encoded: Tensor) -> Tensor:
        return encoded

    def compare(self, encoded: Tensor) -> Tensor:
        return log_odds(functional.log_softmax(encoded, -1))


def log_odds(log_q: Tensor) -> Tensor:
    """Bayes' rule on the class posteriors of sets, log q (B, S, C) → log p(i is the anomaly) / p(there is none) (B, S).

    With equally frequent classes the likelihood of an image under class c is q(c), and under any other class
    (1 - q(c)) / (C - 1), up to factors that cancel. So the odds are Σ_c (1 - q_i(c)) / (C - 1) Π_{j ≠ i} q_j(c) over
    Σ_c Π_j q_j(c). The items of a set are drawn independently of each other, given its class: where q is true, no
    other function of the features is right more often.
    """
    log_all = log_q.sum(1, keepdim=True)
    log_one = torch.logsumexp(log_all - log_q + log_complement(log_q), -1)
    return log_one - torch.logsumexp(log_all, -1) - math.log(max(1, log_q.shape[-1] - 1))


def log_complement(log_q: Tensor) -> Tensor:
    """log(1 - q) of log q, both in float32; finite where q rounds to 1."""
    return torch.log(-torch.expm1(log_q.clamp(max=-1e-7)))
