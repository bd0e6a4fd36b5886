"""Set Transformer: attention through a few learned inducing points (Lee et al., *Set Transformer*, 2019)."""

import torch
from torch import Tensor, nn

from train.methods.base import Dropout, Linear, Method, compute_attention, make_feed_forward


class SetTransformer(Method):
    """Linear(D → width), induced set-attention blocks, LayerNorm, Linear(width → 1) at each position.

    Each block is two attention blocks, to the points and back, so half as many as the Transformer has layers are as
    deep. Norms stand before the parts, as in the Transformer, where the paper has them behind.
    """

    def __init__(
        self,
        input_dim: int,
        width: int,
        layers: int,
        heads: int,
        feed_forward: int,
        inducing: int,
        dropout: float,
        standardise: bool,
    ):
        super().__init__(input_dim, standardise)
        self.embed = Linear(input_dim, width)
        blocks = [
            InducedSetAttention(width, heads, feed_forward, inducing, dropout) for _ in range(max(1, layers // 2))
        ]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.classifier = Linear(width, 1)
        for block in blocks:  # drawn after all matrices, as ever, so that a seed gives the same weights as before
            nn.init.xavier_uniform_(block.points)

    def compare(self, encoded: Tensor) -> Tensor:
        x = self.blocks(self.embed(encoded))
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
        self.query = Linear(width, width)
        self.key_value = Linear(width, 2 * width)
        self.output = Linear(width, width)
        self.feed_forward = make_feed_forward(width, hidden, width, dropout)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        query = self.query(self.query_norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(self.key_norm(y)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        context = compute_attention(query, key) @ value
        x = x + self.dropout(self.output(context.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
