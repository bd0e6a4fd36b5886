"""Set Transformer: attention through a few learned inducing points (Lee et al., *Set Transformer*, 2019)."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.config import Config
from train.methods.base import Dropout, Method, feed_forward, linear, standardise_or_not


class SetTransformer(Method):
    """Linear(D → width), induced set-attention blocks, LayerNorm, Linear(width → 1) at each position.

    Each block is two attention blocks, to the points and back, so half as many as the Transformer has layers are as
    deep. Norms stand before the parts, as in the Transformer, where the paper has them behind.
    """

    def __init__(
        self,
        input_dim: int,
        width: int,
        blocks: int,
        heads: int,
        hidden: int,
        inducing: int,
        dropout: float,
        standardise: bool,
    ):
        super().__init__(input_dim)
        self.standardise = standardise_or_not(input_dim, standardise)
        self.embed = linear(input_dim, width)
        self.blocks = nn.Sequential(
            *(InducedSetAttention(width, heads, hidden, inducing, dropout) for _ in range(blocks))
        )
        self.norm = nn.LayerNorm(width)
        self.classifier = linear(width, 1)

    @classmethod
    def from_config(cls, config: Config, input_dim: int, classes: int) -> Self:
        head = config.head
        blocks = max(1, head.layers // 2)
        return cls(
            input_dim,
            head.width,
            blocks,
            head.heads,
            head.feed_forward,
            head.inducing,
            head.dropout,
            head.standardise,
        )

    def initialise(self, generator: torch.Generator) -> None:
        super().initialise(generator)
        for block in self.blocks:
            assert isinstance(block, InducedSetAttention)
            nn.init.xavier_uniform_(block.points, generator=generator)

    def compare(self, encoded: Tensor) -> Tensor:
        x = self.blocks(self.embed(self.standardise(encoded)))
        return self.classifier(self.norm(x)).squeeze(-1).float()


class InducedSetAttention(nn.Module):
    """The points attend to the set, then the set to the points: (B, S, W) → (B, S, W), linear in S."""

    def __init__(self, width: int, heads: int, hidden: int, inducing: int, dropout: float):
        super().__init__()
        self.points = nn.Parameter(torch.empty(inducing, width))
        self.gather = AttentionBlock(width, heads, hidden, dropout)
        self.spread = AttentionBlock(width, heads, hidden, dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.spread(x, self.gather(self.points.expand(len(x), -1, -1), x))


class AttentionBlock(nn.Module):
    """Attention from x (B, Q, W) to y (B, K, W), and a feed-forward part, each added to x: → (B, Q, W)."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.query_norm, self.key_norm, self.feed_forward_norm = (nn.LayerNorm(width) for _ in range(3))
        self.query = linear(width, width)
        self.key_value = linear(width, 2 * width)
        self.output = linear(width, width)
        self.feed_forward = feed_forward(width, hidden, dropout)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        query = self.query(self.query_norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(self.key_norm(y)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scale = query.shape[-1] ** -0.5
        weights = functional.softmax(query * scale @ key.transpose(-2, -1), -1)
        x = x + self.dropout(self.output((weights @ value).transpose(1, 2).flatten(2)))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
