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
from PIL import Image as Pillow
from torch import Tensor

from common.errors import UserError
from common.images import UnreadableImage, pixel_digest, printable
from common.store import SPLITS
from extract.preprocessing import SMALL, Preprocessing
from extract.sources import ImageSource, Split

THUMBNAIL, THUMBNAIL_FROM = 32, 256  # pixels a side, of as many or more
LISTED = 10  # unreadable images in one sentence; each was told when it was met
NO_IMAGE = bytes(32)  # in the place of the digest of an image that cannot be read
GROUP = 4  # images that a thread takes at a time
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


def read_sample(source: ImageSource, preprocessing: Preprocessing, size: int) -> Tensor | None:
    """What the network sees (n, 3, H, W), n ≤ `size`, of training images that are evenly spaced, in the first view.

    What cannot be read is left out; None where nothing can.
    """
    split, seen = source.splits["train"], []
    for row in np.unique(np.linspace(0, len(split.labels) - 1, size).astype(int)).tolist():
        with contextlib.suppress(UnreadableImage):
            seen.append(preprocessing([split.image(row)])[0])
    return torch.cat(seen) if seen else None


def read_batch(
    pool: ThreadPoolExecutor, images: Sequence[Image], start: int, preprocessing: Preprocessing, unreadable: Unreadable
) -> dict[str, Any]:
    """Images from row `start` on: preprocessed (V, B, 3, size, size), image_sha256 (B, 32), thumbnails (B, 32, 32, 3).

    What is no image is black, has `NO_IMAGE` for a digest, and is noted. A thread takes `GROUP` images at a time.
    """
    n, size = len(images), preprocessing.image_size
    preprocessed = torch.empty(len(preprocessing.views), n, 3, size, size)
    image_sha256 = np.zeros((n, 32), np.uint8)
    thumbnails = np.zeros((n, THUMBNAIL, THUMBNAIL, 3), np.uint8)

    def read(first: int) -> dict[int, UnreadableImage]:
        decoded, errors, begin = [], {}, first
        for i, (image, index) in enumerate(images[first : first + GROUP], first):
            try:
                pixels = image(index)
                image_sha256[i] = np.frombuffer(pixel_digest(pixels), np.uint8)
                thumbnails[i] = thumbnail(pixels)
            except UnreadableImage as error:
                pixels, errors[start + i] = np.zeros((1, 1, 3), np.uint8), error
            decoded.append(pixels)
            if max(pixels.shape) > SMALL or i + 1 == min(first + GROUP, n):
                preprocessed[:, begin : i + 1] = preprocessing(decoded)
                begin = i + 1
                decoded.clear()
            del pixels  # a thread holds no more than one large image
        return errors

    for errors in pool.map(read, range(0, n, GROUP)):
        for row, error in errors.items():
            unreadable.note(row, error)
    return {"images": preprocessed, "image_sha256": image_sha256, "thumbnails": thumbnails}


def _digest(image: Image) -> tuple[bytes, UnreadableImage | None]:
    try:
        return pixel_digest(image[0](image[1])), None
    except UnreadableImage as error:
        return NO_IMAGE, error


def thumbnail(image: np.ndarray) -> np.ndarray:
    """The centre square of an image in 32 × 32 pixels."""
    if image.shape[:2] == (THUMBNAIL, THUMBNAIL):
        return image
    height, width = image.shape[:2]
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    step = max(1, side // THUMBNAIL_FROM)  # what is larger is only sampled: it is a picture for people
    box = tuple(edge / step for edge in (left, top, left + side, top + side))
    sampled = Pillow.fromarray(image[::step, ::step])
    return np.asarray(sampled.resize((THUMBNAIL, THUMBNAIL), Pillow.Resampling.BILINEAR, box))


def _rows_of(split: Split, rows: np.ndarray) -> Split:
    return Split(
        split.labels[rows],
        lambda i: split.image(int(rows[i])),
        [split.names[row] for row in rows] if split.names else (),
    )
