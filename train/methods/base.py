"""The contract of all methods, and the layers that several of them are made of."""

import itertools
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from msgspec.structs import asdict
from torch import Tensor, nn
from torch.nn import functional

from common.shapes import check_shape
from train.config import Config
from train.methods import list_parameters, load_method_class
from train.task import Inputs, Task


class Method(nn.Module):
    """Features (B, S, D) float32 → scores (B, S) float32, larger = more anomalous.

    In two steps: `encode`, what needs each image alone, done once per image however many sets it is in; and `compare`,
    what needs the set. `fit` learns what has a closed form, and keeps it in buffers; parameters, if any, are then
    trained by `train.loop`. The state dict is all that has to be saved.

    The names of the constructor's parameters say what a method is made of: `input_dim`; `classes`, the number of
    training classes, where it knows classes; `set_size` and `seed`, of the config; each other one is a key of the
    config's table `settings`. No parameter needs a generator: `build_method` seeds torch's own.

    settings: "head", or "distance" for what is not trained by gradients.
    set_size: the only S that the method can score; None: any.
    averages_views: several views of an image are averaged as `encode` gives them, so sets are compared once; else the
    scores are.
    """

    settings: ClassVar[Literal["head", "distance"]] = "head"
    averages_views: ClassVar[bool] = False
    set_size: int | None = None

    def __init__(self, input_dim: int, standardise: bool = False):
        super().__init__()
        self.input_dim = input_dim
        self.standardise = Standardise(input_dim) if standardise else nn.Identity()

    def encode(self, features: Tensor) -> Tensor:
        """Features (…, D) of images → (…, E), what `compare` needs of each; here: the features, on the scale wanted."""
        return self.standardise(features)

    def compare(self, encoded: Tensor) -> Tensor:
        """What `encode` gave for the items of sets, (B, S, E) → scores (B, S)."""
        raise NotImplementedError

    def class_logits(self, encoded: Tensor) -> Tensor | None:
        """What `encode` gave for images, (n, E) → logits of the training classes (n, C); None without such."""
        return None

    def training_outputs(self, inputs: Inputs) -> tuple[Tensor, Tensor | None, Tensor]:
        """What a training step needs: scores of the sets (B, S), class logits (m, C) or None, and their labels (m,)."""
        encoded = self.encode(inputs.features)
        # Not encoded[items]: threads would add its gradients up in no fixed order
        scores = self.compare(functional.embedding(inputs.items, encoded))
        return scores, self.class_logits(encoded), inputs.labels

    def attention_maps(self, features: Tensor) -> Tensor | None:
        """How much each item (row) looks at each other (column), of set features (B, S, D): (layers, B, heads, S, S).

        Rows sum to 1. None where a method has no attention among the items.
        """
        return None

    def forward(self, features: Tensor) -> Tensor:
        """Scores (B, S) of set features (B, S, D)."""
        return self.compare(self.encode(features))

    def fit(self, task: Task) -> None:
        """Learn from the training images what needs no gradients; here: the scale of the features."""
        for module in self.modules():
            if isinstance(module, Standardise):
                module.mean, module.std = task.statistics()

    @property
    def learns(self) -> bool:
        """Whether there are parameters to train."""
        return next(self.parameters(), None) is not None

    @property
    def device(self) -> torch.device:
        """Where it computes: the CPU, unless `to` put it elsewhere."""
        return next(itertools.chain(self.parameters(), self.buffers()), torch.empty(0)).device

    def score_sets(self, features: Any) -> Tensor:
        """Scores (B, S) float32 of set features (B, S, D), a tensor, an array or lists; without gradients and dropout.

        Raises ValueError for another D, or an S that the method was not made for.
        """
        features = torch.as_tensor(features, dtype=torch.float32)
        check_shape("set features", features, type(self).__name__, D=self.input_dim)
        items = torch.arange(features.shape[0] * features.shape[1], device=features.device)
        return self.score_encoded(self.encode_views([features.flatten(0, 1)]), items.view(features.shape[:2]))

    @torch.inference_mode()
    def encode_views(self, views: Iterable[Tensor]) -> Tensor:
        """What `encode` gives for images' features (n, D) in some views: (V, n, E); V is 1 where views are averaged."""
        self.eval()
        encoded = torch.stack([self.encode(features) for features in views])
        return encoded.mean(0, keepdim=True) if self.averages_views else encoded

    @torch.inference_mode()
    def score_encoded(self, encoded: Tensor, items: Tensor) -> Tensor:
        """As `score_sets`, of what `encode_views` gave (V, n, E), and sets of these images `items` (B, S) int64.

        Scores are averaged over the views.
        """
        sizes = {} if self.set_size is None else {"S": self.set_size}
        check_shape("rows", items, type(self).__name__, **sizes)
        self.eval()
        scores = torch.stack([self.compare(of_view[items]) for of_view in encoded]).mean(0)
        check_shape("scores", scores, type(self).__name__, B=items.shape[0], S=items.shape[1])
        return scores

    def seed_dropout(self, generator: torch.Generator) -> None:
        """Let all dropout masks be drawn from `generator`, which lives on the device of the features."""
        for module in self.modules():
            if isinstance(module, Dropout):
                module.generator = generator


def build_method(config: Config, input_dim: int, classes: int = 0) -> Method:
    """The method of a config for features of D = input_dim, initialised from `training.seed`, on the CPU; not fitted.

    classes: number of training classes, for methods that know classes.
    The state of torch's generators is left as it was.
    """
    cls = load_method_class(config.method)
    arguments = {
        **asdict(getattr(config, cls.settings)),
        "input_dim": input_dim,
        "classes": classes,
        "set_size": config.data.set_size,
        "seed": config.training.seed,
    }
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.training.seed)
        return cls(**{name: arguments[name] for name in list_parameters(config.method)})


class Standardise(nn.Module):
    """(features - mean) / std per dimension, (…, D) → (…, D); mean and std are part of the state."""

    def __init__(self, input_dim: int):
        super().__init__()
        self.mean: Tensor = nn.Buffer(torch.zeros(input_dim))
        self.std: Tensor = nn.Buffer(torch.ones(input_dim))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Dropout(nn.Module):
    """Dropout whose mask comes from an explicit generator; off in evaluation.

    By hand: torch's takes no generator, and one draw for each activation took a seventh of the training time.
    """

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
        # Eight activations a draw
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device)
        words.random_(-(2**63), None, generator=self.generator)
        # In place: to compare into new bytes takes six times as long
        mask = words.view(torch.uint8)[: x.numel()].view(x.shape).ge_(self.dropped)
        return x * mask.to(x.dtype).mul_(256 / (256 - self.dropped))


class Linear(nn.Linear):
    """A linear layer with Xavier-uniform weights and zero biases at first."""

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)


def mlp(input_dim: int, hidden: int, output_dim: int, dropout: float) -> nn.Sequential:
    """Linear(D → hidden), LayerNorm, GELU, dropout, Linear(hidden → E): (…, D) → (…, E)."""
    return nn.Sequential(
        Linear(input_dim, hidden), nn.LayerNorm(hidden), nn.GELU(), Dropout(dropout), Linear(hidden, output_dim)
    )


def make_feed_forward(input_dim: int, hidden: int, output_dim: int, dropout: float) -> nn.Sequential:
    """Linear(D → hidden), GELU, dropout, Linear(hidden → E): (…, D) → (…, E)."""
    return nn.Sequential(Linear(input_dim, hidden), nn.GELU(), Dropout(dropout), Linear(hidden, output_dim))


def compute_attention(query: Tensor, key: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) of queries (B, heads, Q, d) and keys (B, heads, K, d) → (B, heads, Q, K).

    By hand: on a CPU, sets of ten were measured faster so than with torch's fused attention.
    """
    return (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1)
