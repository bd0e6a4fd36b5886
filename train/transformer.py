"""The head: a Transformer encoder over the items of a set, without positions (Vaswani et al., 2017; pre-norm)."""

import math

import torch
from torch import Tensor, nn

from common.checks import check_shape


class AnomalyTransformer(nn.Module):
    """Features (B, S, D) → logits (B, S), larger = more anomalous; any S.

    Linear(D → width), encoder layers, LayerNorm, Linear(width → 1) at each position; `standardise` puts the features
    on a common scale first. Nothing knows a position, so permuting the items permutes the logits. The parameters are
    not set before `initialise` or `load_state_dict`; with dropout, training needs `seed_dropout` first.
    """

    def __init__(
        self,
        input_dim: int,
        width: int,
        layers: int,
        heads: int,
        feed_forward: int,
        dropout: float,
        standardise: bool = False,
    ):
        super().__init__()
        self.input_dim = input_dim
        self.standardise = Standardise(input_dim) if standardise else nn.Identity()
        self.embed = _linear(input_dim, width)
        self.layers = nn.Sequential(*(EncoderLayer(width, heads, feed_forward, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.classifier = _linear(width, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, S) float32 of features (B, S, D). Raises ValueError for another D."""
        check_shape("set features", features, "head", D=self.input_dim)
        x = self.layers(self.embed(self.standardise(features)))
        return self.classifier(self.norm(x)).squeeze(-1).float()

    def attention_maps(self, features: Tensor) -> Tensor:
        """How much each item (row) looks at each other (column): (layers, B, heads, S, S), rows sum to 1."""
        check_shape("set features", features, "head", D=self.input_dim)
        x, maps = self.embed(self.standardise(features)), []
        for layer in self.layers:
            assert isinstance(layer, EncoderLayer)
            maps.append(layer.attention_map(x))
            x = layer(x)
        return torch.stack(maps)

    def initialise(self, generator: torch.Generator) -> None:
        """Set all parameters: Xavier-uniform matrices drawn from `generator`, zero biases, unit norms."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def seed_dropout(self, generator: torch.Generator) -> None:
        """Let all dropout masks be drawn from `generator`, which lives on the device of the features."""
        for module in self.modules():
            if isinstance(module, Dropout):
                module.generator = generator


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward part, each on the normalised input and added to it: (B, S, W) → (B, S, W)."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, dropout)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            _linear(width, feed_forward), nn.GELU(), Dropout(dropout), _linear(feed_forward, width)
        )
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))

    def attention_map(self, x: Tensor) -> Tensor:
        """The attention weights (B, heads, S, S) on an input (B, S, W)."""
        return self.attention.weights(self.attention_norm(x))[0]


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention, written out: on a CPU, sets of ten are faster so than fused."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of heads ({heads}), got {width}")
        self.heads = heads
        self.query_key_value = _linear(width, 3 * width)
        self.output = _linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, W) → (B, S, W)."""
        weights, value = self.weights(x)
        return self.output((self.dropout(weights) @ value).transpose(1, 2).flatten(2))

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """softmax(q kᵀ / √d) (B, heads, S, S) and the values (B, heads, S, d) of an input (B, S, W)."""
        query, key, value = self.query_key_value(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scale = 1 / math.sqrt(query.shape[-1])
        return (query * scale @ key.transpose(-2, -1)).softmax(-1), value


class Standardise(nn.Module):
    """(features - mean) / std per dimension, (…, D) → (…, D); mean and std are part of the state."""

    mean: Tensor
    std: Tensor

    def __init__(self, input_dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(input_dim))
        self.register_buffer("std", torch.ones(input_dim))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Dropout(nn.Module):
    """Dropout whose mask comes from an explicit generator; off in evaluation."""

    def __init__(self, probability: float):
        super().__init__()
        # A byte decides over each activation, so the probability is rounded to 1/256, and the scale follows suit
        self.dropped = round(probability * 256)
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.dropped == 0:
            return x
        if self.generator is None:
            raise RuntimeError("dropout needs a generator: call seed_dropout first")
        # Eight bytes a draw: with one, the draws would take a seventh of the training time
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device)
        words.random_(-(2**63), None, generator=self.generator)
        draws = words.view(torch.uint8)[: x.numel()].view(x.shape)
        return x * (draws >= self.dropped).to(x.dtype).mul_(256 / (256 - self.dropped))


def _linear(inputs: int, outputs: int) -> nn.Linear:
    # torch would fill it from the global generator
    return nn.utils.skip_init(nn.Linear, inputs, outputs)
