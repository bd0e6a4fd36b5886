"""The head: a Transformer encoder over the items of a set, without positions (Vaswani et al., 2017; pre-norm)."""

import torch
from torch import Tensor, nn

from train.methods.base import Dropout, Linear, Method, compute_attention, make_feed_forward


class AnomalyTransformer(Method):
    """Features (B, S, D) → logits (B, S), larger = more anomalous; any S.

    Linear(D → width), encoder layers, LayerNorm, Linear(width → 1) at each position. Nothing knows a position, so
    permuting the items permutes the logits.
    """

    def __init__(
        self, input_dim: int, width: int, layers: int, heads: int, feed_forward: int, dropout: float, standardise: bool
    ):
        super().__init__(input_dim, standardise)
        self.embed = Linear(input_dim, width)
        self.layers = nn.Sequential(*(EncoderLayer(width, heads, feed_forward, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.classifier = Linear(width, 1)

    def compare(self, encoded: Tensor) -> Tensor:
        x = self.layers(self.embed(encoded))
        return self.classifier(self.norm(x)).squeeze(-1).float()

    def attention_maps(self, features: Tensor) -> Tensor | None:
        return maps_of(self.layers, self.embed(self.encode(features)))


def maps_of(layers: nn.Sequential, x: Tensor) -> Tensor | None:
    """The attention weights (layers, B, heads, S, S) of encoder layers on an input (B, S, W); None of no layers."""
    maps = []
    for layer in layers:
        assert isinstance(layer, EncoderLayer)
        maps.append(layer.attention_map(x))
        x = layer(x)
    return torch.stack(maps) if maps else None


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward part, each on the normalised input and added to it: (B, S, W) → (B, S, W)."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, dropout)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = make_feed_forward(width, hidden, width, dropout)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))

    def attention_map(self, x: Tensor) -> Tensor:
        """The attention weights (B, heads, S, S) on an input (B, S, W)."""
        return self.attention.weights(self.attention_norm(x))[0]


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention among the items of a set."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.query_key_value = Linear(width, 3 * width)
        self.output = Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, W) → (B, S, W)."""
        weights, value = self.weights(x)
        return self.output((self.dropout(weights) @ value).transpose(1, 2).flatten(2))

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """softmax(q kᵀ / √d) (B, heads, S, S) and the values (B, heads, S, d) of an input (B, S, W)."""
        query, key, value = self.query_key_value(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return compute_attention(query, key), value
