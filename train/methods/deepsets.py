"""Deep Sets, the equivariant kind: each item sees the mean of all (Zaheer et al., *Deep Sets*, 2017, eq. 4)."""

from torch import Tensor, nn
from torch.nn import functional

from train.methods.base import Dropout, Linear, Method


class DeepSets(Method):
    """Linear(D → width), layers, LayerNorm, Linear(width → 1) at each position; context comes by mean-pooling only."""

    def __init__(self, input_dim: int, width: int, layers: int, feed_forward: int, dropout: float, standardise: bool):
        super().__init__(input_dim, standardise)
        self.embed = Linear(input_dim, width)
        self.layers = nn.Sequential(*(EquivariantLayer(width, feed_forward, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.classifier = Linear(width, 1)

    def compare(self, encoded: Tensor) -> Tensor:
        x = self.layers(self.embed(encoded))
        return self.classifier(self.norm(x)).squeeze(-1).float()


class EquivariantLayer(nn.Module):
    """x + V·GELU(A·x + B·mean(x)) on the normalised input, (B, S, W) → (B, S, W)."""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.item = Linear(width, hidden)
        self.context = Linear(width, hidden)
        self.output = Linear(hidden, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        hidden = functional.gelu(self.item(normed) + self.context(normed.mean(1, keepdim=True)))
        return x + self.dropout(self.output(self.dropout(hidden)))
