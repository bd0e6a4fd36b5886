"""Preprocessing as data: what happens to a decoded image before the network sees it, done on batches."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from common.errors import UserError, unknown_name

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_RUN_PIXELS = 1 << 24  # images stacked at once: 16 Mpixel, so that photographs do not fill the memory


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side to `image_size` pixels, crop the centre square, scale to [0, 1], normalise per channel.

    The result is that of torchvision's Resize, CenterCrop, ToTensor and Normalize on a tensor.
    `views` are fixed, named transformations of the decoded image, made before the resize; view 0 is "plain".
    """

    image_size: int = 224
    views: tuple[str, ...] = ("plain",)
    interpolation: str = "bilinear, antialiased"
    crop: str = "centre"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values, for the identity of a store."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def __call__(self, images: list[np.ndarray]) -> Tensor:
        """Images, each (H, W, 3) uint8, of any sizes → (V, B, 3, image_size, image_size) float32."""
        size = self.image_size
        batch = torch.empty(len(self.views), len(images), 3, size, size)
        start = 0
        while start < len(images):
            stop = _run_of_one_shape(images, start)
            pixels = torch.from_numpy(np.stack(images[start:stop])).permute(0, 3, 1, 2)
            for number, view in enumerate(self.views):
                batch[number, start:stop] = self._resized(VIEWS[view](pixels))
            start = stop
        return batch

    def _resized(self, pixels: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).reshape(3, 1, 1) * 255 for values in (self.mean, self.std))
        rows, columns = (self._resampling(length, min(pixels.shape[-2:])) for length in pixels.shape[-2:])
        # Both are linear, so the order is free: normalising the few pixels of a small image is cheaper
        return rows @ ((pixels - mean) / std) @ columns.T

    def _resampling(self, length: int, shorter: int) -> Tensor:
        """The matrix (image_size, length) that resizes and crops along one axis of an image."""
        resized = self.image_size * length // shorter
        identity = torch.eye(length)[None, None]
        matrix = functional.interpolate(identity, (resized, length), mode="bilinear", antialias=True)[0, 0]
        start = round((resized - self.image_size) / 2)
        return matrix[start : start + self.image_size]


# Where a crop of seven eighths of height and width lies: the part of the margin that is above it, and left of it
CROPS = {
    "zoom": (0.5, 0.5),
    "upper-left": (0.0, 0.0),
    "upper-right": (0.0, 1.0),
    "lower-left": (1.0, 0.0),
    "lower-right": (1.0, 1.0),
}


def _crop(pixels: Tensor, above: float, left: float) -> Tensor:
    height, width = (length - length // 8 for length in pixels.shape[-2:])
    top, start = (round(part * (length // 8)) for part, length in zip((above, left), pixels.shape[-2:], strict=True))
    return pixels[..., top : top + height, start : start + width]


# name: uint8 pixels (B, 3, H, W) → (B, 3, H', W')
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda pixels: pixels,
    "mirror": lambda pixels: pixels.flip(-1),
}
for _name, _place in CROPS.items():
    VIEWS[_name] = partial(_crop, above=_place[0], left=_place[1])
    VIEWS[f"{_name}-mirror"] = lambda pixels, crop=VIEWS[_name]: crop(pixels).flip(-1)  # type: ignore[misc]


def parse_views(text: str) -> tuple[str, ...]:
    """The views of "plain,mirror". Raises UserError for an unknown or repeated one, or another than plain first."""
    views = tuple(view.strip() for view in text.split(","))
    for view in views:
        if view not in VIEWS:
            raise unknown_name("view", view, VIEWS)
    if views[0] != "plain" or len(set(views)) != len(views):
        raise UserError(f'--views must begin with "plain" and name each view once, got "{text}"')
    return views


def _run_of_one_shape(images: list[np.ndarray], start: int) -> int:
    shape = images[start].shape
    longest = max(1, MAX_RUN_PIXELS // (shape[0] * shape[1]))
    stop = start + 1
    while stop < len(images) and stop - start < longest and images[stop].shape == shape:
        stop += 1
    return stop
