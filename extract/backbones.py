"""Frozen backbones: a torchvision classification model by name, its classifier removed."""

import hashlib
import pickle
import re
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from common.errors import UserError, unknown_name
from common.files import sha256_file

LAST = "last"
AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16}
NUM_IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Backbone:
    """A frozen network (B, 3, H, W) → features (B, D), and where its weights come from.

    `layers` says how D is made up: name and dimension of each layer, the network's own features ("last") first.
    `weights_sha256` is the digest of the weights file; for random weights, of the tensors themselves.
    """

    name: str
    module: nn.Module
    layers: dict[str, int]
    weights: str
    weights_sha256: str
    random_seed: int | None = None

    @property
    def feature_dim(self) -> int:
        """D."""
        return sum(self.layers.values())

    def features(self, images: Tensor, precision: str = "float32") -> Tensor:
        """Preprocessed images (B, 3, H, W) float32 on the module's device → features (B, D) float32, no gradients."""
        images = images.contiguous(memory_format=torch.channels_last)
        dtype = AUTOCAST[precision]
        # TF32 would make "float32" mean less on a recent GPU than the store says
        with (
            torch.inference_mode(),
            torch.backends.cudnn.flags(allow_tf32=False),
            torch.autocast(images.device.type, dtype, enabled=dtype is not None),
        ):
            return self.module(images).flatten(1).float()


def load_backbone(name: str, weights: str, seed: int, image_size: int, layers: tuple[str, ...] = (LAST,)) -> Backbone:
    """A torchvision classification model with "torchvision" (ImageNet), "random" (from `seed`) or a file's weights.

    Its features are the input of its classifier ("last"), followed by the means over space of the other `layers`.
    Dimensions are found by a pass of one image of `image_size`. Raises UserError for an unknown model or layer, weights
    that cannot be had, read or fitted, and a size that the model does not take.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise unknown_name("backbone", name, known)
    random_seed = None
    if weights == "torchvision":
        digest = sha256_file(_download(name))
        module = _build(name, seed, weights="DEFAULT")
    elif weights == "random":
        module = _build(name, seed)
        digest, random_seed = _state_digest(module.state_dict()), seed
    else:
        module = _build(name, seed)
        _load_weights(module, name, Path(weights))
        digest = sha256_file(Path(weights))
    _remove_classifier(module)
    module.eval().requires_grad_(False)
    if layers != (LAST,):
        module = PooledLayers(module, name, layers[1:])
    module.eval().to(memory_format=torch.channels_last)
    dims = _find_dims(module, name, layers, image_size)
    return Backbone(name, module, dims, weights, digest, random_seed)


def parse_layers(text: str) -> tuple[str, ...]:
    """The layers of "last,layer3". Raises UserError for a repeated one, or another than last first."""
    layers = tuple(layer.strip() for layer in text.split(","))
    if layers[0] != LAST or len(set(layers)) != len(layers):
        raise UserError(f'--layers must begin with "{LAST}" and name each layer once, got "{text}"')
    return layers


class PooledLayers(nn.Module):
    """A network's features, and behind them the mean over space of each of some layers: (B, 3, H, W) → (B, D).

    Raises UserError for an unknown layer, and for a network whose layers cannot be told apart.
    """

    def __init__(self, network: nn.Module, name: str, layers: tuple[str, ...]):
        super().__init__()
        self.layers = layers
        known = [child for child, _ in network.named_children()]
        for layer in layers:
            if layer not in known:
                raise unknown_name(f"layer of {name}", layer, known)
        try:
            last = get_graph_node_names(network)[1][-1]
            self.network = create_feature_extractor(network, {**{layer: layer for layer in layers}, last: LAST})
        except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"the layers of {name} cannot be told apart ({error}): leave --layers out") from error

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat(self.parts(images), 1)

    def parts(self, images: Tensor) -> list[Tensor]:
        """The features of each layer."""
        found = self.network(images)
        return [found[LAST].flatten(1), *(found[layer].mean((2, 3)) for layer in self.layers)]


def _build(name: str, seed: int, weights: str | None = None) -> nn.Module:
    # torchvision draws initial weights from the global generator: it is lent to it, and given back as it was
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on initialisation, to those who train the network
        torch.manual_seed(seed)
        return torchvision.models.get_model(name, weights=weights)


def _remove_classifier(module: nn.Module) -> None:
    """Replace the last layer with one output per ImageNet class by the identity; earlier ones are auxiliary."""
    classifier = None
    for path, layer in module.named_modules():
        outputs = {nn.Linear: "out_features", nn.Conv2d: "out_channels"}.get(type(layer))
        if outputs and getattr(layer, outputs) == NUM_IMAGENET_CLASSES:
            classifier = path
    assert classifier, "every classification model of torchvision ends in such a layer"
    parent, _, child = classifier.rpartition(".")
    setattr(module.get_submodule(parent), child, nn.Identity())


def _find_dims(module: nn.Module, name: str, layers: tuple[str, ...], image_size: int) -> dict[str, int]:
    images = torch.zeros(1, 3, image_size, image_size)
    try:
        with torch.inference_mode():
            parts = module.parts(images) if isinstance(module, PooledLayers) else [module(images).flatten(1)]
    except (IndexError, KeyError) as error:
        raise UserError(
            f"not all of the layers {', '.join(layers)} of {name} are maps of pixels: choose others"
        ) from error
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"{name} does not take images of {image_size}×{image_size} pixels: {error}") from error
    return {layer: part.shape[1] for layer, part in zip(layers, parts, strict=True)}


def _download(name: str) -> Path:
    """torchvision's ImageNet weights in torch's own cache, their hash checked now, however long ago they came."""
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    by_hand = f"get {url} by hand, put it at {path}, and run the same command again; or give --weights a file"
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), _hash_prefix(path), progress=sys.stderr.isatty())
        except (OSError, RuntimeError) as error:
            raise UserError(f"the weights of {name} cannot be downloaded ({error}): {by_hand}") from error
    elif not sha256_file(path).startswith(_hash_prefix(path)):
        raise UserError(
            f"{path} is damaged: its SHA-256 does not begin with {_hash_prefix(path)}; delete it, then {by_hand}"
        )
    return path


def _hash_prefix(path: Path) -> str:
    """The digits of the SHA-256 that torchvision puts into its file names: resnet18-f37072fd.pth."""
    found = re.search(r"-([0-9a-f]{8,})\.", path.name)
    return found.group(1) if found else ""


def _load_weights(module: nn.Module, name: str, path: Path) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"there are no weights at {path}: give --weights (make: WEIGHTS=) a state dict") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).split("\n", 1)[0]
        raise UserError(f"{path} is not a readable state dict, or is truncated ({reason}): get it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} is not a state dict {{name: tensor}}: save it with torch.save(model.state_dict(), …)")
    expected, found = _shapes(module.state_dict()), _shapes(state)
    if odd := sorted(set(expected.items()) ^ set(found.items())):
        key = odd[0][0]
        raise UserError(
            f"{path} holds weights of another architecture than {name} "
            f'("{key}": expected {expected.get(key, "none")}, found {found.get(key, "none")}): '
            "give --backbone the model that they were made for"
        )
    module.load_state_dict(state, strict=False)  # the names are checked above; only the counters may be absent


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    # a counter that BatchNorm needs in training only, and that older files lack
    return {key: tuple(value.shape) for key, value in state.items() if not key.endswith("num_batches_tracked")}


def _state_digest(state: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode() + value.numpy().tobytes())
    return digest.hexdigest()
