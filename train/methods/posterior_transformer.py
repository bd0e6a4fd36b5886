"""A Transformer over the class posteriors of the items, given by networks that never saw them."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.methods.base import Linear, Method, mlp
from train.methods.posterior import log_odds
from train.methods.transformer import EncoderLayer, maps_of
from train.task import NO_CLASS, Inputs

FLOOR = -12.0  # of log posteriors as tokens; a single image seldom says more


class PosteriorTransformer(Method):
    """Features (B, S, D) → log-odds (B, S) that an item is the anomaly, against "there is none"; any S.

    Each of `members` MLPs gives class posteriors q(class | image); the mean of their logits is what is known of an
    image. The items' log q, Linear(C → width), encoder layers without positions, LayerNorm and Linear(width → 1) give
    a score at each position. With `bayes` they are added to Bayes' rule of `train.methods.posterior`, from 0 on.

    The networks learn the classes alone, and each of them from all images but its own part of 1/members. The
    Transformer is trained on what the network that left an image out says of it: of images that it was trained on, a
    network is surer than of new ones (stacked generalization: Wolpert, 1992). The layers have no dropout; `dropout` is
    that of the networks. With one member, nothing is left out.
    """

    averages_views = True

    def __init__(
        self,
        input_dim: int,
        classes: int,
        members: int,
        hidden: int,
        width: int,
        layers: int,
        heads: int,
        feed_forward: int,
        dropout: float,
        standardise: bool,
        bayes: bool,
    ):
        super().__init__(input_dim, standardise)
        self.members = nn.ModuleList(mlp(input_dim, hidden, classes, dropout) for _ in range(members))
        self.embed = Linear(classes, width)
        self.layers = nn.Sequential(*(EncoderLayer(width, heads, feed_forward, 0.0) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.classifier = Linear(width, 1)
        self.bayes = bayes
        if bayes:
            nn.init.zeros_(self.classifier.weight)

    def encode(self, features: Tensor) -> Tensor:
        """Features (…, D) → logits of the classes (…, C), the mean of the members."""
        return self._by_member(features).mean(0)

    def compare(self, encoded: Tensor) -> Tensor:
        log_q = functional.log_softmax(encoded.float(), -1)
        scores = self.classifier(self.norm(self.layers(self._tokens(log_q)))).squeeze(-1).float()
        return scores + log_odds(log_q) if self.bayes else scores

    def class_logits(self, encoded: Tensor) -> Tensor:
        return encoded

    def training_outputs(self, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        logits = self._by_member(inputs.features)
        members, images = logits.shape[:2]
        left_out = inputs.rows % members
        encoded = logits[left_out, torch.arange(images, device=logits.device)].detach()
        labels = inputs.labels.repeat(members, 1)
        if members > 1:
            labels.scatter_(0, left_out[None], NO_CLASS)
        return self.compare(encoded[inputs.items]), logits.flatten(0, 1), labels.flatten()

    def attention_maps(self, features: Tensor) -> Tensor | None:
        return maps_of(self.layers, self._tokens(functional.log_softmax(self.encode(features), -1)))

    def _by_member(self, features: Tensor) -> Tensor:
        """Features (…, D) → logits of the classes (members, …, C) float32."""
        x = self.standardise(features)
        return torch.stack([member(x) for member in self.members]).float()

    def _tokens(self, log_q: Tensor) -> Tensor:
        return self.embed((log_q.clamp(min=FLOOR) - FLOOR / 2) / (-FLOOR / 4))
