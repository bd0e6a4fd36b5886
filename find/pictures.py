"""Small pictures for the page: from the originals, or from the store's thumbnails where an original cannot be read."""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.images import MAX_PIXELS, UnreadableImage, read_image
from common.progress import Progress

LONGEST = 512  # pixels; a larger picture is made this small
SMALL = 128  # up to here a picture is kept as it is, as PNG, which the page shows with crisp pixels; larger is JPEG
WORKERS = 4  # at most; each holds one decoded original

ORIGINAL, THUMBNAIL = "original", "thumbnail"


def make_pictures(
    wanted: Mapping[int, Path | None], folder: Path, thumbnail: Callable[[int], np.ndarray | None]
) -> dict[int, tuple[str, str]]:
    """Write a small picture of each wanted row into `folder`, several at once.

    wanted: the original of each row, None where there is none. thumbnail: a row → (H, W, 3) uint8, or None.
    Returns for each row that has a picture its file name and what it was made of, `ORIGINAL` or `THUMBNAIL`.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def make(item: tuple[int, Path | None]) -> tuple[int, tuple[str, str] | None]:
        row, path = item
        if path is not None and (name := _from_file(path, folder, row)):
            return row, (name, ORIGINAL)
        pixels = thumbnail(row)
        return row, None if pixels is None else (_from_pixels(pixels, folder, row), THUMBNAIL)

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


def _from_file(path: Path, folder: Path, row: int) -> str | None:
    """Write the picture of an original: its name, or None where it cannot be read."""
    if not path.is_file():  # reading a pipe would never end
        return None
    try:
        picture = Image.fromarray(read_image(path, MAX_PIXELS, LONGEST))
    except UnreadableImage:
        return None
    if max(picture.size) <= SMALL:
        return _saved(picture, folder / f"{row}.png")
    picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return _saved(picture, folder / f"{row}.jpg", quality=85)


def _from_pixels(pixels: np.ndarray, folder: Path, row: int) -> str:
    return _saved(Image.fromarray(np.ascontiguousarray(pixels)), folder / f"{row}.png")


def _saved(picture: Any, path: Path, **options: Any) -> str:
    """Write a picture; a page that shows the file meanwhile sees a whole one."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{os.urandom(4).hex()}{path.suffix}")
    try:
        picture.save(temporary, **options)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path.name
