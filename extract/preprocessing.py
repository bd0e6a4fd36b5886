"""Preprocessing as data: what happens to a decoded image before the network sees it, done on batches."""

import functools
import math
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
SQUASH = "squash"
SMALL = 64  # pixels a side up to which images of one shape are resized side by side, by a product of matrices
STRIP_PIXELS = 1 << 17  # of a larger image, that are resized at a time: 1.5 MB, which stay in the cache
MAX_RATIO = 16  # of the sides; what is longer is cut first


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side to `resize` pixels, crop the centre square, scale to [0, 1], normalise per channel.

    The result is that of torchvision's Resize, CenterCrop, ToTensor and Normalize on a tensor. resize: None for
    `image_size`, the side of the crop. crop: "centre", or "squash": both sides are resized, whatever their ratio.
    `views` are fixed, named transformations of the decoded image, made before the resize; view 0 is "plain".
    """

    image_size: int = 224
    views: tuple[str, ...] = ("plain",)
    interpolation: str = "bilinear, antialiased"
    crop: str = "centre"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resize: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values, for the identity of a store; `resize` where it is not `image_size`."""
        fields = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        if fields["resize"] in (None, self.image_size):
            del fields["resize"]
        return fields

    def __call__(self, images: list[np.ndarray]) -> Tensor:
        """Images, each (H, W, 3) uint8, of any sizes → (V, B, 3, image_size, image_size) float32."""
        size = self.image_size
        batch = torch.empty(len(self.views), len(images), 3, size, size)
        start = 0
        while start < len(images):
            stop = _end_of_run(images, start)
            pixels = torch.from_numpy(np.stack(images[start:stop])).permute(0, 3, 1, 2)
            for number, view in enumerate(self.views):
                batch[number, start:stop] = self._resize_and_crop(VIEWS[view](pixels))
            start = stop
        return batch

    def least_side(self) -> int:
        """Pixels that the shorter side of a decoded image needs; more would not change the features noticeably.

        Measured (`python -m bench.scaled`): 27/8 of the size that it is resized to, in the smallest view.
        """
        cropped = any(view not in ("plain", "mirror") for view in self.views)
        return math.ceil(27 / 8 * (self.resize or self.image_size) * (8 / 7 if cropped else 1))

    def _resize_and_crop(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 of one shape → (B, 3, image_size, image_size)."""
        mean, std = (torch.tensor(values).reshape(3, 1, 1) * 255 for values in (self.mean, self.std))
        mode = self.interpolation.partition(",")[0]
        if self.crop != SQUASH:
            pixels = _without_far_ends(pixels)
        height, width = pixels.shape[-2:]
        resize, size = self.resize or self.image_size, self.image_size
        if self.crop == SQUASH:
            rows = columns = resize
        else:
            rows, columns = (resize * length // min(height, width) for length in (height, width))
        # All is linear, so the order is free: normalising the fewer pixels is cheaper
        if max(height, width) <= SMALL:
            resized = (
                _matrix(height, rows, size, mode) @ ((pixels - mean) / std) @ _matrix(width, columns, size, mode).T
            )
        else:
            resized = (_interpolate(pixels, rows, columns, size, mode) - mean) / std
        if mode == "bicubic":  # which overshoots
            resized = torch.minimum(torch.maximum(resized, -mean / std), (255 - mean) / std)
        return resized


def _crop_of(resized: int, size: int) -> slice:
    """The pixels of a resized axis that the centre crop keeps."""
    start = round((resized - size) / 2)
    return slice(start, start + size)


@functools.lru_cache(maxsize=256)
def _matrix(length: int, resized: int, size: int, mode: str) -> Tensor:
    """The matrix (size, length) that resizes and crops an axis: what torch's `interpolate` makes of an identity."""
    identity = torch.eye(length)[None, None]
    return functional.interpolate(identity, (resized, length), mode=mode, antialias=True)[0, 0, _crop_of(resized, size)]


def _interpolate(pixels: Tensor, rows: int, columns: int, size: int, mode: str) -> Tensor:
    """(B, 3, H, W) uint8 → (B, 3, size, size) float32: torch's `interpolate`, bit by bit, and a crop.

    Like torch it resizes along the rows first. It does so in strips, so that memory does not grow with the image.
    """
    height, width = pixels.shape[-2:]
    narrow = torch.empty(*pixels.shape[:2], height, size)
    step = max(1, STRIP_PIXELS // width)
    for top in range(0, height, step):
        strip = pixels[:, :, top : top + step].float()
        resized = functional.interpolate(strip, (strip.shape[2], columns), mode=mode, antialias=True)
        narrow[:, :, top : top + step] = resized[..., _crop_of(columns, size)]
    return functional.interpolate(narrow, (rows, size), mode=mode, antialias=True)[:, :, _crop_of(rows, size)]


def _without_far_ends(pixels: Tensor) -> Tensor:
    """The middle of an image that is more than `MAX_RATIO` times as long as wide; the crop never sees its ends."""
    height, width = pixels.shape[-2:]
    longest = MAX_RATIO * min(height, width)
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    return pixels[..., top : top + longest, left : left + longest]


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


def _end_of_run(images: list[np.ndarray], start: int) -> int:
    """The end of the run of small images of one shape that begins at `start`; a larger image is a run by itself."""
    shape, stop = images[start].shape, start + 1
    while max(shape) <= SMALL and stop < len(images) and images[stop].shape == shape:
        stop += 1
    return stop
