"""The backbone kind "torchvision": its classification models, with the transforms that their weights name."""

import re
import sys
import warnings
from pathlib import Path

import torch
import torchvision
from torch import nn

from common.errors import UserError, unknown_name
from common.files import sha256_file
from extract.preprocessing import Preprocessing

NUM_IMAGENET_CLASSES = 1000
# The project's own protocol: resized to the size of the crop, so that small images keep all
WHOLE_SQUARE = {"resnet18"}
SIZE = 224


class TorchvisionModels:
    """Classification models of torchvision by their names there."""

    def build(self, name: str, image_size: int | None) -> nn.Module:
        known = torchvision.models.list_models(module=torchvision.models)
        if name not in known:
            raise unknown_name("backbone", name, known)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice on initialisation, to those who train the network
            return torchvision.models.get_model(name)

    def pretrained(self, name: str, image_size: int | None) -> tuple[nn.Module, Path]:
        self.build(name, image_size)  # an unknown name comes first
        path = _download(name)
        # By torchvision, because some models compute otherwise with its weights
        return torchvision.models.get_model(name, weights="DEFAULT"), path

    def remove_classifier(self, module: nn.Module) -> str:
        """Replace the last layer with one output per ImageNet class by the identity; earlier ones are auxiliary."""
        classifier = ""
        for path, layer in module.named_modules():
            outputs = {nn.Linear: "out_features", nn.Conv2d: "out_channels"}.get(type(layer))
            if outputs and getattr(layer, outputs) == NUM_IMAGENET_CLASSES:
                classifier = path
        assert classifier, "every classification model of torchvision ends in such a layer"
        parent, _, child = classifier.rpartition(".")
        setattr(module.get_submodule(parent), child, nn.Identity())
        return classifier

    def preprocessing(self, name: str, image_size: int | None) -> Preprocessing:
        if name in WHOLE_SQUARE:
            return Preprocessing(image_size or SIZE)
        named = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        size = image_size or named.crop_size[0]
        return Preprocessing(
            size,
            interpolation=f"{named.interpolation.value}, antialiased",
            mean=tuple(named.mean),
            std=tuple(named.std),
            resize=round(size * named.resize_size[0] / named.crop_size[0]),
        )


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
    match = re.search(r"-([0-9a-f]{8,})\.", path.name)
    return match[1] if match else ""
