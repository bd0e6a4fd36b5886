"""Reading: images decoded by many threads → batches for the network, and a list of what cannot be read."""

import bisect
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.store import SPLITS
from extract.decoding import UnreadableImage, printable
from extract.preprocessing import LARGE, Preprocessing
from extract.sources import ImageSource, Split, pixel_digest

THUMBNAIL = 32  # pixels
LISTED = 10  # unreadable images in one sentence; each was told when it was met
NO_IMAGE = bytes(32)  # in the place of the digest of an image that cannot be read
GROUP = 4  # images that a thread takes at a time
SAMPLED_CLASSES = 16
AT_ONCE = 256  # images that are compared while others wait

Image = tuple[Callable[[int], np.ndarray], int]


@dataclass
class Unreadable:
    """The images that could not be read, {row: reason}, told to `say` as they are met."""

    names: Sequence[str]
    say: Callable[[str], None]
    reasons: dict[int, str] = field(default_factory=dict)

    def note(self, row: int, error: UnreadableImage) -> None:
        """Tell of an image."""
        if row not in self.reasons:
            self.say(error.message)
        self.reasons[row] = error.reason

    def error(self) -> UserError:
        """All of them in one sentence."""
        rows = sorted(self.reasons)
        some = ", ".join(f"{printable(self.names[row])} ({self.reasons[row]})" for row in rows[:LISTED])
        more = f" and {len(rows) - LISTED} more, named above" if len(rows) > LISTED else ""
        return UserError(
            f"{len(rows)} of {len(self.names)} images cannot be read: {some}{more}. Repair them and run the same "
            "command again, it goes on from here; or leave them out with --on-error skip (make: ON_ERROR=skip)"
        )


class AllImages(Sequence[Image]):
    """(image function, index) of every image, in the order of the rows: train, then test. Takes no room, whatever N."""

    def __init__(self, source: ImageSource):
        self._splits = [source.splits[name] for name in SPLITS]
        self._starts = np.cumsum([0, *(len(split.labels) for split in self._splits)]).tolist()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(row)
        number = bisect.bisect_right(self._starts, row) - 1
        return self._splits[number].image, row - self._starts[number]


def names_of(source: ImageSource) -> list[str]:
    """The file name of each row, relative to the root; split and number where the source has no files."""
    return [
        name
        for key in SPLITS
        for name in source.splits[key].names or [f"{key}/{i:05d}" for i in range(len(source.splits[key].labels))]
    ]


def without(source: ImageSource, rows: np.ndarray) -> ImageSource:
    """A source that lacks some rows. Raises UserError where nothing, or nothing of a class, is left."""
    splits, start = {}, 0
    for name in SPLITS:
        split = source.splits[name]
        n = len(split.labels)
        kept = np.setdiff1d(np.arange(n), rows - start)
        splits[name] = _rows_of(split, kept)
        start += n
    if not sum(len(split.labels) for split in splits.values()):
        raise UserError(f"none of the {start} images of {source.name} can be read")
    left = replace(source, splits=splits)
    left.check()
    return left


def digests_of(images: Sequence[Image], unreadable: Unreadable | None = None) -> Iterator[bytes]:
    """The pixel digest of each image, `NO_IMAGE` for what cannot be read, which is noted."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(images), AT_ONCE):
            for row, (digest, error) in enumerate(pool.map(_digest, images[start : start + AT_ONCE]), start):
                if error and unreadable:
                    unreadable.note(row, error)
                yield digest


def sample_rows(labels: np.ndarray, per_class: int) -> list[np.ndarray]:
    """The rows of some classes, spread over all, each of `per_class` rows or more, out of which a sample is read.

    Where fewer than two classes are so large, of groups of any images, which may share some.
    """
    classes = [rows for label in np.unique(labels) if len(rows := np.flatnonzero(labels == label)) >= per_class]
    if len(classes) < 2:
        groups = min(max(len(labels) // per_class, 2), SAMPLED_CLASSES)
        classes = np.array_split(np.resize(np.arange(len(labels)), max(groups * per_class, len(labels))), groups)
    chosen = np.linspace(0, len(classes) - 1, min(SAMPLED_CLASSES, len(classes))).astype(int)
    return [classes[i] for i in chosen]


def read_sample(
    source: ImageSource, groups: list[np.ndarray], preprocessing: Preprocessing, per_class: int
) -> Tensor | None:
    """What the network sees (G · per_class, 3, size, size) of training images of each group, in the first view.

    None where no group, or only one, has an image that can be read; where a group has too few of them, they return.
    """
    image, found = source.splits["train"].image, []
    for rows in groups:
        seen: list[Tensor] = []
        for row in rows.tolist():
            with contextlib.suppress(UnreadableImage):
                seen.append(preprocessing([image(row)])[0])
            if len(seen) == per_class:
                break
        found += [seen[i % len(seen)] for i in range(per_class)] if seen else []
    return torch.cat(found) if len(found) >= 2 * per_class else None


def read_batch(
    pool: ThreadPoolExecutor, images: Sequence[Image], start: int, preprocessing: Preprocessing, unreadable: Unreadable
) -> dict[str, Any]:
    """Images from row `start` on: preprocessed (V, B, 3, size, size), image_sha256 (B, 32), thumbnails (B, 32, 32, 3).

    What is no image is black, has `NO_IMAGE` for a digest, and is noted.
    """

    def read(first: int) -> list[_One]:
        return [_read(image, preprocessing) for image in images[first : first + GROUP]]

    found = [one for group in pool.map(read, range(0, len(images), GROUP)) for one in group]
    for row, one in enumerate(found, start):
        if one.error:
            unreadable.note(row, one.error)
    return {
        "images": _together([one.pixels for one in found], preprocessing),
        "image_sha256": np.frombuffer(b"".join(one.digest for one in found), np.uint8).reshape(-1, 32),
        "thumbnails": np.stack([one.thumbnail for one in found]),
    }


@dataclass(frozen=True)
class _One:
    """What is kept of an image: its pixels, or what the network sees (V, 1, 3, size, size) where they are many."""

    pixels: np.ndarray | Tensor
    digest: bytes
    thumbnail: np.ndarray
    error: UnreadableImage | None = None


def _read(image: Image, preprocessing: Preprocessing) -> _One:
    try:
        pixels = image[0](image[1])
    except UnreadableImage as error:
        black = np.zeros((1, 1, 3), np.uint8)
        return _One(black, NO_IMAGE, np.zeros((THUMBNAIL, THUMBNAIL, 3), np.uint8), error)
    large = max(pixels.shape[:2]) > LARGE
    return _One(preprocessing([pixels]) if large else pixels, pixel_digest(pixels), thumbnail(pixels))


def _together(pixels: list[np.ndarray | Tensor], preprocessing: Preprocessing) -> Tensor:
    """One batch of what the network sees; images that are not large are preprocessed side by side."""
    small = [i for i, one in enumerate(pixels) if isinstance(one, np.ndarray)]
    side_by_side = preprocessing([pixels[i] for i in small])  # type: ignore[misc]
    if len(small) == len(pixels):
        return side_by_side
    batch = torch.empty(side_by_side.shape[0], len(pixels), *side_by_side.shape[2:])
    batch[:, small] = side_by_side
    for i, one in enumerate(pixels):
        if isinstance(one, Tensor):
            batch[:, i] = one[:, 0]
    return batch


def _digest(image: Image) -> tuple[bytes, UnreadableImage | None]:
    try:
        return pixel_digest(image[0](image[1])), None
    except UnreadableImage as error:
        return NO_IMAGE, error


def thumbnail(image: np.ndarray) -> np.ndarray:
    """The centre square of an image in 32 × 32 pixels."""
    if image.shape[:2] == (THUMBNAIL, THUMBNAIL):
        return image
    from PIL import Image as Pillow

    height, width = image.shape[:2]
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    size, kind = (THUMBNAIL, THUMBNAIL), Pillow.Resampling.BILINEAR
    return np.asarray(Pillow.fromarray(image).resize(size, kind, box, reducing_gap=3.0 if side > LARGE else None))


def _rows_of(split: Split, rows: np.ndarray) -> Split:
    return Split(
        split.labels[rows],
        lambda i: split.image(int(rows[i])),
        [split.names[row] for row in rows] if split.names else (),
    )
