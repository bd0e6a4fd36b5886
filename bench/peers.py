"""The ways that this project competes with, written as their users would write them."""

import copy
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.io import decode_jpeg
from torchvision.transforms import v2

from bench.timing import Work
from extract.backbones import load_backbone
from extract.preprocessing import IMAGENET_MEAN, IMAGENET_STD

Decode = Callable[[Path], Any]  # a file → a PIL image, or a tensor (3, H, W)


def with_pil(path: Path) -> Any:
    """Pillow, which the tutorials use."""
    return Image.open(path).convert("RGB")


def with_torchvision(path: Path) -> Any:
    """JPEG alone."""
    return decode_jpeg(torch.frombuffer(path.read_bytes(), dtype=torch.uint8))


def with_simplejpeg(path: Path) -> Any:
    """JPEG at a part of its size."""
    import simplejpeg

    return _channels_first(simplejpeg.decode_jpeg(path.read_bytes(), min_height=756, min_width=756, min_factor=1))


def with_opencv(path: Path) -> Any:
    """OpenCV, whose channels are the other way round."""
    import cv2

    return _channels_first(cv2.imread(str(path))[..., ::-1])


def _channels_first(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


class Pictures(Dataset):
    """The files in a folder and below, decoded and transformed as torchvision's recipes do it."""

    def __init__(self, root: Path, decode: Decode):
        self.files, self.decode = sorted(path for path in root.rglob("*") if path.is_file()), decode
        resize = [v2.Resize(224, antialias=True), v2.CenterCrop(224)]
        scale = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
        self.transform = v2.Compose(resize + scale)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.decode(self.files[index]))


def extract_plainly(root: Path, module: nn.Module, decode: Decode = with_pil, batch_size: int = 32) -> Work:
    """A DataLoader with two workers, torchvision's network in float32."""
    module = copy.deepcopy(module).to(memory_format=torch.contiguous_format)  # an engine may change the format

    @torch.inference_mode()
    def work() -> int:
        loader = DataLoader(Pictures(root, decode), batch_size=batch_size, num_workers=2)
        return len(torch.cat([module(batch).flatten(1) for batch in loader]))

    return work


class TutorialSets(Dataset):
    """One set an item: the image at `index` is the anomaly, its companions are drawn when it is asked for."""

    def __init__(self, features: Tensor, labels: np.ndarray, set_size: int):
        self.features, self.labels, self.set_size = features, labels, set_size
        self.generator = np.random.default_rng(0)
        self.rows = {label: np.flatnonzero(labels == label) for label in np.unique(labels)}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        others = [label for label in self.rows if label != self.labels[index]]
        inliers = self.generator.choice(self.rows[self.generator.choice(others)], self.set_size - 1, replace=False)
        target = self.generator.integers(self.set_size)
        return self.features[np.insert(inliers, target, index)], int(target)


class TutorialHead(nn.Module):
    """The same head out of PyTorch's own layers."""

    def __init__(self, input_dim: int):
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            256, 4, 512, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.embed = nn.Linear(input_dim, 256)
        self.encoder = nn.TransformerEncoder(layer, 4, norm=nn.LayerNorm(256), enable_nested_tensor=False)
        self.classifier = nn.Linear(256, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(self.encoder(self.embed(features))).squeeze(-1)


def train_plainly(features: Tensor, labels: np.ndarray, batch_size: int, steps: int) -> Work:
    """A Dataset that draws a set an item, a DataLoader with two workers, TransformerEncoder in float32, AdamW."""
    model = TutorialHead(features.shape[1])
    optimizer = torch.optim.AdamW(model.parameters(), 5e-4, weight_decay=0.01)
    loss_function = nn.CrossEntropyLoss()
    sets = TutorialSets(features, labels, 10)
    loader = DataLoader(sets, batch_size, shuffle=True, num_workers=2, persistent_workers=True)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    next(batches)  # starts the workers

    def work() -> int:
        model.train()
        for batch, target in itertools.islice(batches, steps):
            loss = loss_function(model(batch), target)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return steps * batch_size

    return work


if __name__ == "__main__":
    images, weights = sys.argv[1:]
    extract_plainly(Path(images), load_backbone("resnet18", weights, 0, 224).module)()
