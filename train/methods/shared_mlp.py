"""The same MLP at each position, blind to the rest of the set: what can be had without context."""

from typing import Self

from torch import Tensor, nn

from train.config import Config
from train.methods.base import Dropout, Method, linear, standardise_or_not


class SharedMLP(Method):
    """Linear(D → hidden), GELU, dropout, Linear(hidden → 1) on each item by itself."""

    def __init__(self, input_dim: int, hidden: int, dropout: float, standardise: bool):
        super().__init__(input_dim)
        self.standardise = standardise_or_not(input_dim, standardise)
        self.layers = nn.Sequential(linear(input_dim, hidden), nn.GELU(), Dropout(dropout), linear(hidden, 1))

    @classmethod
    def from_config(cls, config: Config, input_dim: int, classes: int) -> Self:
        head = config.head
        return cls(input_dim, head.hidden, head.dropout, head.standardise)

    def compare(self, encoded: Tensor) -> Tensor:
        return self.layers(self.standardise(encoded)).squeeze(-1).float()
