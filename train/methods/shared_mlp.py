"""The same MLP at each position, blind to the rest of the set: what can be known without context."""

from torch import Tensor, nn

from train.methods.base import Dropout, Linear, Method


class SharedMLP(Method):
    """Linear(D → hidden), GELU, dropout, Linear(hidden → 1) on each item by itself."""

    def __init__(self, input_dim: int, hidden: int, dropout: float, standardise: bool):
        super().__init__(input_dim, standardise)
        self.layers = nn.Sequential(Linear(input_dim, hidden), nn.GELU(), Dropout(dropout), Linear(hidden, 1))

    def compare(self, encoded: Tensor) -> Tensor:
        return self.layers(encoded).squeeze(-1).float()
