"""Frozen backbones: a network by name, its classifier removed. `KINDS` is the only list of where they come from."""

import contextlib
import hashlib
import pkgutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from common.errors import UserError, unknown_name
from common.files import sha256_file
from extract.preprocessing import Preprocessing
from extract.weights import load_weights

# name: where its class is; imported only when it is used
KINDS = {"torchvision": "extract.torchvision_models:TorchvisionModels", "timm": "extract.timm_models:TimmModels"}
DEFAULT_KIND = "torchvision"
PRETRAINED = ("torchvision", "pretrained")
LAST = "last"
POOLED = {3: (1,), 4: (2, 3)}  # by the number of axes: (B, tokens, D), (B, D, H, W)
_generator_turn = threading.Lock()


@dataclass(frozen=True)
class Backbone:
    """A frozen network (B, 3, H, W) → features (B, D), and where its weights come from.

    layers: the name and the dimension of each layer; they sum to D. The network's own features, "last", come first.
    weights_sha256: the digest of the weights file; for random weights, of the tensors.
    note: what was decided about a file that holds more than plain weights, or "".
    """

    name: str
    module: nn.Module
    layers: dict[str, int]
    weights: str
    weights_sha256: str
    random_seed: int | None = None
    note: str = ""

    @property
    def feature_dim(self) -> int:
        """D."""
        return sum(self.layers.values())

    def features(self, images: Tensor) -> Tensor:
        """Preprocessed images (B, 3, H, W) float32 on the module's device → features (B, D) float32, no gradients."""
        with torch.inference_mode():
            return self.module(images.contiguous(memory_format=torch.channels_last)).flatten(1)

    def splits(self) -> Iterator[tuple[int, nn.Module, nn.Module]]:
        """For more and more layers with weights: their number, the network up to behind them, and the rest.

        The parts share their weights. It is cut where a single tensor is passed on; not at all where it cannot be
        traced.
        """
        try:
            traced = fx.symbolic_trace(self.module)
        except Exception:  # a network may raise any error when it is traced
            return
        for layers, last in _cuts(traced).items():
            yield layers, *_split(traced, last)


class BackboneKind(Protocol):
    """One kind of backbone: models by name, from one library."""

    def build(self, name: str, image_size: int | None) -> nn.Module:
        """A network with random weights from torch's global generator. Raises UserError for an unknown name."""

    def pretrained(self, name: str, image_size: int | None) -> tuple[nn.Module, Path]:
        """A network with its published weights, and the file that they are in."""

    def remove_classifier(self, module: nn.Module) -> str:
        """Make the network return the input of its classifier; returns the name of that, "" for none."""

    def preprocessing(self, name: str, image_size: int | None) -> Preprocessing:
        """The preprocessing of the model's images; image_size: None for the model's own."""


def backbone_kind(name: str) -> tuple[str, BackboneKind, str]:
    """The kind and the model of "timm:resnet18"; without a kind it is torchvision's. Raises UserError for another kind.

    >>> backbone_kind("resnet18")[::2]
    ('torchvision', 'resnet18')
    """
    kind, _, model = name.rpartition(":")
    kind = kind or DEFAULT_KIND
    if kind not in KINDS:
        raise unknown_name("kind of backbone", kind, KINDS)
    return kind, pkgutil.resolve_name(KINDS[kind])(), model


def preprocessing_of(name: str, image_size: int | None = None, views: tuple[str, ...] = ("plain",)) -> Preprocessing:
    """The preprocessing of a backbone, which is not loaded; image_size: None for the model's own."""
    _, kind, model = backbone_kind(name)
    return replace(kind.preprocessing(model, image_size), views=views)


def load_backbone(
    name: str, weights: str, seed: int, image_size: int | None = None, layers: tuple[str, ...] = (LAST,)
) -> Backbone:
    """A frozen model with its "pretrained" weights (or "torchvision"), "random" ones (from `seed`) or those of a file.

    name: as `backbone_kind` takes it. Its features are the input of its classifier ("last"), followed by the means over
    space of the other `layers`. Dimensions are found by a pass of one image of `image_size`, None for the model's own.
    Raises UserError for an unknown model or layer, weights that cannot be loaded, and a size that the model refuses.
    """
    _, kind, model = backbone_kind(name)
    random_seed, note = None, ""
    if weights in PRETRAINED:
        module, path = kind.pretrained(model, image_size)
        digest = sha256_file(path)
        kind.remove_classifier(module)
    else:
        # The global generator is used by one thread at a time, and restored
        with _generator_turn, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            module = kind.build(model, image_size)
        if weights == "random":
            digest, random_seed = _state_digest(module.state_dict()), seed
            kind.remove_classifier(module)
        else:
            note = load_weights(module, name, Path(weights), kind.remove_classifier(module))
            digest = sha256_file(Path(weights))
    module.eval().requires_grad_(False)
    if layers != (LAST,):
        module = PooledLayers(module, name, layers[1:])
    module.eval().to(memory_format=torch.channels_last)
    size = image_size or kind.preprocessing(model, None).image_size
    dims = _find_dims(module, name, layers, size)
    return Backbone(name, module, dims, weights, digest, random_seed, note)


def parse_layers(text: str) -> tuple[str, ...]:
    """The layers of "last,layer3". Raises UserError for a repeated one, or another than last first."""
    layers = tuple(layer.strip() for layer in text.split(","))
    if layers[0] != LAST or len(set(layers)) != len(layers):
        raise UserError(f'--layers must begin with "{LAST}" and name each layer once, got "{text}"')
    return layers


class PooledLayers(nn.Module):
    """A network's features, followed by the means of some of its layers: (B, 3, H, W) → (B, D).

    A layer is a module of the network, such as "layer3" or "blocks.5". The mean is over space, or over tokens.
    Raises UserError for an unknown layer.
    """

    def __init__(self, network: nn.Module, name: str, layers: tuple[str, ...]):
        super().__init__()
        self.layers = layers
        known = {module for module, _ in network.named_modules() if module}
        for layer in layers:
            if layer not in known:
                raise unknown_name(f"layer of {name}", layer, known)
        self.network: nn.Module
        try:
            last = get_graph_node_names(network)[1][-1]
            self.network = create_feature_extractor(network, {**{layer: layer for layer in layers}, last: LAST})
        except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError):
            self.network = HookedLayers(network, layers)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat(self.parts(images), 1)

    def parts(self, images: Tensor) -> list[Tensor]:
        """The features of each layer. Raises KeyError for a layer whose output is neither a map nor tokens."""
        outputs = self.network(images)
        maps = [outputs[layer] for layer in self.layers]
        return [outputs[LAST].flatten(1), *(_mean_over_space(values) for values in maps)]


@fx.wrap  # a traced value does not know its number of axes
def _mean_over_space(values: Tensor) -> Tensor:
    return values.mean(POOLED[values.ndim])


class HookedLayers(nn.Module):
    """A network that cannot be traced: hooks catch the outputs of some layers; its own output is "last"."""

    def __init__(self, network: nn.Module, layers: tuple[str, ...]):
        super().__init__()
        self.network, self.layers = network, layers

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}

        def catch(layer: str) -> Callable:
            return lambda module, inputs, output: outputs.__setitem__(layer, output)

        with contextlib.ExitStack() as hooks:
            for layer in self.layers:
                hooks.enter_context(self.network.get_submodule(layer).register_forward_hook(catch(layer)))
            return {LAST: self.network(images), **outputs}


def _find_dims(module: nn.Module, name: str, layers: tuple[str, ...], image_size: int) -> dict[str, int]:
    images = torch.zeros(1, 3, image_size, image_size)
    try:
        with torch.inference_mode():
            parts = module.parts(images) if isinstance(module, PooledLayers) else [module(images).flatten(1)]
    except (IndexError, KeyError) as error:
        raise UserError(
            f"not all of the layers {', '.join(layers)} of {name} are maps of pixels, or tokens: choose others"
        ) from error
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"{name} does not take images of {image_size}×{image_size} pixels: {error}") from error
    return {layer: part.shape[1] for layer, part in zip(layers, parts, strict=True)}


def _state_digest(state: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode() + value.numpy().tobytes())
    return digest.hexdigest()


def _split(traced: fx.GraphModule, last: fx.Node) -> tuple[nn.Module, nn.Module]:
    """The network up to a node, and the rest; they share its weights."""
    nodes = list(traced.graph.nodes)
    after = nodes.index(last) + 1
    first, rest = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes[:after]:
        copies[node] = first.node_copy(node, copies.__getitem__)
    first.output(copies[last])
    copies = {last: rest.placeholder("x")}
    for node in nodes:
        if node.op == "get_attr" or node in nodes[after:]:
            copies[node] = rest.node_copy(node, copies.__getitem__)
    return fx.GraphModule(traced, first).eval(), fx.GraphModule(traced, rest).eval()


def _cuts(traced: fx.GraphModule) -> dict[int, fx.Node]:
    """For a number of layers with weights, the last node after them whose value is all that later ones use."""
    nodes = list(traced.graph.nodes)
    order = {node: number for number, node in enumerate(nodes)}
    last_use = [max((order[user] for user in node.users), default=-1) for node in nodes]
    cuts, layers = {}, 0
    for number, node in enumerate(nodes):
        if node.op == "call_module" and isinstance(traced.get_submodule(node.target), nn.Conv2d | nn.Linear):
            layers += 1
        in_use = [n for n in range(number + 1) if last_use[n] > number and nodes[n].op != "get_attr"]
        if layers and in_use == [number]:
            cuts[layers] = node
    cuts.pop(layers, None)  # a cut behind the last layer leaves nothing
    return cuts
