"""Deep Sets, the equivariant kind: each item sees the mean of all (Zaheer et al., *Deep Sets*, 2017, eq. 4)."""

from typing import Self

from torch import Tensor, nn
from torch.nn import functional

from train.config import Config
from train.methods.base import Dropout, Method, linear, standardise_or_not


class DeepSets(Method):
    """Linear(D → width), layers, LayerNorm, Linear(width → 1) at each position; context comes by mean-pooling only."""

    def __init__(self, input_dim: int, width: int, layers: int, hidden: int, dropout: float, standardise: bool):
        super().__init__(input_dim)
        self.standardise = standardise_or_not(input_dim, standardise)
        self.embed = linear(input_dim, width)
        self.layers = nn.Sequential(*(EquivariantLayer(width, hidden, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.classifier = linear(width, 1)

    @classmethod
    def from_config(cls, config: Config, input_dim: int, classes: int) -> Self:
        head = config.head
        return cls(input_dim, head.width, head.layers, head.feed_forward, head.dropout, head.standardise)

    def compare(self, encoded: Tensor) -> Tensor:
        x = self.layers(self.embed(self.standardise(encoded)))
        return self.classifier(self.norm(x)).squeeze(-1).float()


class EquivariantLayer(nn.Module):
    """x + V·GELU(A·x + B·mean(x)) on the normalised input, (B, S, W) → (B, S, W)."""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.item = linear(width, hidden)
        self.context = linear(width, hidden)
        self.output = linear(hidden, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        hidden = functional.gelu(self.item(normed) + self.context(normed.mean(1, keepdim=True)))
        return x + self.dropout(self.output(self.dropout(hidden)))
