"""An MLP on the flattened set: not permutation-equivariant, and so the control for position."""

from torch import Tensor

from train.methods.base import Method, make_feed_forward


class FlatMLP(Method):
    """Linear(S · D → hidden), GELU, dropout, Linear(hidden → S). It must learn at each position what it learnt at
    the others."""

    def __init__(self, input_dim: int, set_size: int, hidden: int, dropout: float, standardise: bool):
        super().__init__(input_dim, standardise)
        self.set_size = set_size
        self.layers = make_feed_forward(set_size * input_dim, hidden, set_size, dropout)

    def compare(self, encoded: Tensor) -> Tensor:
        return self.layers(encoded.flatten(1)).float()
