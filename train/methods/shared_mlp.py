"""The same MLP at each position, blind to the rest of the set: what can be known without context."""

from torch import Tensor

from train.methods.base import Method, make_feed_forward


class SharedMLP(Method):
    """Linear(D → hidden), GELU, dropout, Linear(hidden → 1) on each item by itself."""

    def __init__(self, input_dim: int, hidden: int, dropout: float, standardise: bool):
        super().__init__(input_dim, standardise)
        self.layers = make_feed_forward(input_dim, hidden, 1, dropout)

    def compare(self, encoded: Tensor) -> Tensor:
        return self.layers(encoded).squeeze(-1).float()
