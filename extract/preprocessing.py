"""Preprocessing as data: what happens to a decoded image before the network sees it, done on batches."""

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError, unknown_name

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SQUASH = "squash"
MAX_RUN_PIXELS = 1 << 24  # images stacked at once: 16 Mpixel, so that photographs do not fill the memory
LARGE = 512  # an image with a longer side is resized a block at a time, from the pixels that its crop needs
BLOCK = 32  # rows and columns of the output
BLOCK_VALUES = 1 << 24  # input values of a block at most: 64 MB


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
            stop = _run_of_one_shape(images, start)
            pixels = torch.from_numpy(np.stack(images[start:stop])).permute(0, 3, 1, 2)
            for number, view in enumerate(self.views):
                batch[number, start:stop] = self._resized(VIEWS[view](pixels))
            start = stop
        return batch

    def _resized(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 of one shape → (B, 3, image_size, image_size)."""
        rows, columns = (self._window(length, min(pixels.shape[-2:])) for length in pixels.shape[-2:])
        mean, std = (torch.tensor(values).reshape(3, 1, 1) * 255 for values in (self.mean, self.std))
        # All is linear, so the order is free: normalising the fewer pixels is cheaper
        if max(pixels.shape[-2:]) <= LARGE:
            resized = rows.matrix() @ ((pixels - mean) / std) @ columns.matrix().T
        else:
            resized = (torch.stack([_in_blocks(image, rows, columns) for image in pixels]) - mean) / std
        if rows.kernel == "bicubic":  # which overshoots
            resized = torch.minimum(torch.maximum(resized, -mean / std), (255 - mean) / std)
        return resized

    def _window(self, length: int, shorter: int) -> "Window":
        """How an axis of an image is resized and cropped."""
        resize = self.resize or self.image_size
        resized = resize if self.crop == SQUASH else resize * length // shorter
        start = round((resized - self.image_size) / 2)
        return window(length, resized, start, self.image_size, self.interpolation.partition(",")[0])


@dataclass(frozen=True)
class Window:
    """The part of a resized axis that is kept: each of its pixels is a weighted sum of neighbours in the input.

    first: (size,) int64, the first of the neighbours; weights: (size, K) float32; length of the input's axis.
    """

    first: np.ndarray
    weights: np.ndarray
    length: int
    kernel: str

    def matrix(self) -> Tensor:
        """The matrix (size, length) that makes the window."""
        return self._matrix(0, len(self.first), 0, self.length)

    def blocks(self, step: int) -> list[tuple[int, int, Tensor]]:
        """For each `step` pixels: the range of the input that they are made of, and the matrix that makes them."""
        if step not in self._made:
            self._made[step] = []
            for start in range(0, len(self.first), step):
                first = self.first[start : start + step]
                low, high = int(first[0]), min(int(first[-1]) + self.weights.shape[1], self.length)
                self._made[step].append((low, high, self._matrix(start, start + step, low, high)))
        return self._made[step]

    @functools.cached_property
    def _made(self) -> dict[int, list[tuple[int, int, Tensor]]]:
        return {}

    def _matrix(self, start: int, stop: int, low: int, high: int) -> Tensor:
        first, weights = self.first[start:stop], self.weights[start:stop]
        matrix = np.zeros((len(first), high - low + weights.shape[1]), np.float32)
        np.put_along_axis(matrix, first[:, None] - low + np.arange(weights.shape[1]), weights, 1)
        return torch.from_numpy(matrix[:, : high - low].copy())


@functools.lru_cache(maxsize=256)
def window(length: int, resized: int, start: int, size: int, kernel: str) -> Window:
    """The pixels from `start` to `start + size` of an axis of `length` that is resized to `resized`, antialiased.

    The arithmetic is that of torch's `interpolate`, so with kernel "bilinear" the weights are the same to the bit; but
    only those of the window are made. Raises ValueError for a window beyond the axis.
    """
    if start < 0 or start + size > resized:
        raise ValueError(f"pixels {start} to {start + size} are not on an axis of {resized}")
    one = np.float32(1)
    scale = np.float32(length) / np.float32(resized)
    reach = np.float32({"bilinear": 1.0, "bicubic": 2.0}[kernel]) * max(scale, one)
    centre = (np.float64(scale) * (np.arange(start, start + size) + 0.5)).astype(np.float32)
    first = np.maximum((np.float64(centre - reach) + 0.5).astype(np.int64), 0)
    stop = np.minimum((np.float64(centre + reach) + 0.5).astype(np.int64), length)
    neighbour = first[:, None] + np.arange((stop - first).max())
    distance = (np.float64(neighbour.astype(np.float32) - centre[:, None]) + 0.5) * np.float64(one / max(scale, one))
    weights = np.where(neighbour < stop[:, None], _kernel(kernel, np.abs(distance.astype(np.float32))), np.float32(0))
    total = np.zeros(size, np.float32)
    for column in weights.T:  # one after the other, as torch does
        total += column
    return Window(first, weights / total[:, None], length, kernel)


def _kernel(name: str, x: np.ndarray) -> np.ndarray:
    if name == "bilinear":
        return np.maximum(np.float32(1) - x, np.float32(0))
    # Keys' cubic with a = -0.5
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0)).astype(np.float32)


def _in_blocks(pixels: Tensor, rows: Window, columns: Window) -> Tensor:
    """(3, H, W) uint8 → (3, size, size) float32, a block of the output at a time: the matrices are mostly zeros."""
    size = len(rows.first)
    across = columns.blocks(BLOCK)
    left, right = across[0][0], across[-1][1]
    fitting = BLOCK_VALUES // (3 * (right - left)) - rows.weights.shape[1]  # rows of the input
    step = min(BLOCK, max(1, fitting * size // rows.length))
    resized = torch.empty(3, size, size)
    for number, (above, below, matrix) in enumerate(rows.blocks(step)):
        part = pixels[:, above:below, left:right].permute(1, 2, 0).float().reshape(below - above, -1)
        some = (matrix @ part).reshape(-1, right - left, 3).permute(2, 0, 1)
        top = number * step
        for place, (first, last, weights) in enumerate(across):
            target = resized[:, top : top + len(matrix), place * BLOCK : place * BLOCK + len(weights)]
            target.copy_(some[:, :, first - left : last - left] @ weights.T)
    return resized


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
    longest = max(1, MAX_RUN_PIXELS // (shape[0] * shape[1])) if max(shape) <= LARGE else 1
    stop = start + 1
    while stop < len(images) and stop - start < longest and images[stop].shape == shape:
        stop += 1
    return stop
