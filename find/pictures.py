"""Small pictures for the page: from the originals, or from the store's thumbnails where an original cannot be read."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from common.images import MAX_PIXELS, UnreadableImage, read_image
from common.progress import Progress

LONGEST = 512  # pixels; a larger picture is made this small
SMALL = 128  # up to here a picture is kept as it is, as PNG, which the page shows with crisp pixels; larger is JPEG
WORKERS = 4  # at most; each holds one decoded original

ORIGINAL, THUMBNAIL = "original", "thumbnail"


def make_pictures(
    wanted: Mapping[int, Path | None], folder: Path, thumbnails: np.ndarray | None = None
) -> dict[int, tuple[str, str]]:
    """Write a small picture of each wanted row into `folder`, several at once.

    wanted: the original of each row, None where there is none. thumbnails: of the store, (N, H, W, 3) uint8.
    Returns for each row that has a picture its file name and what it was made of, `ORIGINAL` or `THUMBNAIL`.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def make(item: tuple[int, Path | None]) -> tuple[int, tuple[str, str] | None]:
        row, path = item
        picture, origin = None if path is None else _read(path), ORIGINAL
        if picture is None and thumbnails is not None and row < len(thumbnails):
            picture, origin = Image.fromarray(np.ascontiguousarray(thumbnails[row])), THUMBNAIL
        return row, None if picture is None else (_save(picture, folder, row), origin)

    pictures = {}
    with (
        ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as pool,
        Progress(len(wanted), "making pictures", "pictures") as progress,
    ):
        for row, picture in pool.map(make, wanted.items()):
            progress.update()
            if picture is not None:
                pictures[row] = picture
    return pictures


def _read(path: Path) -> Image.Image | None:
    """The picture of an original, made small; None where it cannot be read."""
    if not path.is_file():  # reading a pipe would never end
        return None
    try:
        picture = Image.fromarray(read_image(path, MAX_PIXELS, LONGEST))
    except UnreadableImage:
        return None
    if max(picture.size) > SMALL:
        picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return picture


def _save(picture: Image.Image, folder: Path, row: int) -> str:
    """Write a picture, and return its name; a page that shows the file meanwhile sees a whole one."""
    suffix = "png" if max(picture.size) <= SMALL else "jpg"
    path, temporary = (folder / f"{start}.{suffix}" for start in (row, f".{row}.{os.getpid()}-{os.urandom(4).hex()}"))
    try:
        picture.save(temporary, quality=85)  # which PNG does not know, and ignores
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path.name
