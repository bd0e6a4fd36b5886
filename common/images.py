"""Image files: which files are images at all, and their pixels in RGB.

Many threads decode at a time. What they share is complete before a second one sees it, and does not change.
"""

import contextlib
import functools
import hashlib
import importlib
import io
import os
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.decoding import decode
from common.errors import UserError, is_scarce

RULE = 3  # goes up when the rule gives other pixels for some file; a store's request names it
MAX_PIXELS = 178_956_970  # where Pillow, too, takes a file for a decompression bomb
HUGE = 1 << 25  # pixels from which on an image is decoded alone, so that the memory holds one of them at a time
# What Pillow gives a suffix to, but shows no picture of, or only with a program outside it
NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}
PLUGINS = {".heic": "pillow-heif", ".heif": "pillow-heif", ".hif": "pillow-heif", ".avif": "a newer Pillow"}
SCALABLE = {"JPEG", "MPO"}
_registering, _huge_turn = threading.Lock(), threading.Lock()


class UnreadableImage(UserError):
    """A file that is no image, a damaged one, or one whose range of values is not known. `reason` is in few words."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"cannot read the image {printable(str(path))} ({reason}): repair or remove it")
        self.reason = reason


def printable(name: str) -> str:
    r"""A file name for people and for JSON: bytes that are no UTF-8 become \xff.

    >>> printable("caf\udce9")
    'caf\\xe9'
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


@functools.cache
def _register_plugins() -> frozenset[str]:
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    # `max_pixels` is the limit of Pillow's bombs; what else it warns of, broken EXIF say, does no harm
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    known = Image.registered_extensions()
    return frozenset(s for s, kind in known.items() if kind in Image.OPEN and kind not in NO_PICTURES)


def image_suffixes() -> frozenset[str]:
    """The suffixes, in lower case, of what can be decoded here."""
    with _registering:  # once, and complete before another thread goes on
        return _register_plugins()


def why_no_image(name: str) -> str:
    """Why a file is left out, by its name, in few words; "" for an image."""
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 (a million files)
    if suffix in image_suffixes():
        return ""
    if suffix in PLUGINS:
        return f"{suffix} (install {PLUGINS[suffix]})"
    return f"{suffix} (no image format)" if suffix else "without a suffix"


@dataclass(frozen=True)
class Files:
    """Image files, by their names below a folder. max_pixels, least_side: as `read_image` takes them."""

    folder: Path
    max_pixels: int = MAX_PIXELS
    least_side: int | None = None

    def read(self, name: str, data: bytes | None = None) -> np.ndarray:
        """Decode one, as `read_image`."""
        return read_image(self.folder / name, self.max_pixels, self.least_side, data)


def read_image(
    path: Path, max_pixels: int = MAX_PIXELS, least_side: int | None = None, data: bytes | None = None
) -> np.ndarray:
    """Decode one file to RGB (H, W, 3) uint8 by the rule. Raises UnreadableImage, which names the file.

    max_pixels: of the file, at most.
    least_side: pixels that the shorter side keeps where the image is read at a part of its size; None: at full size.
    data: the bytes of the file, where they are at hand.
    """
    content: Any = path if data is None else io.BytesIO(data)
    too_large = f"more than {max_pixels:,} pixels; --max-pixels raises this limit"
    image_suffixes()  # registers the plugins
    if max_pixels > 2 * (Image.MAX_IMAGE_PIXELS or max_pixels):  # Pillow's own limit is twice this number
        Image.MAX_IMAGE_PIXELS = max_pixels  # only ever raised, so that no other thread fails by it
    try:
        with Image.open(content) as image:
            if image.width * image.height > max_pixels:
                raise UnreadableImage(path, too_large)
            part = part_of_size(image.size, least_side) if least_side else 1
            if image.format in SCALABLE and part > 1:
                image.draft(None, (image.width // part, image.height // part))
                part = 1
            with _huge_turn if image.width * image.height >= HUGE else contextlib.nullcontext():
                return decode(image, part, path.name)
    except UnreadableImage:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImage(path, too_large) from error
    except Exception as error:  # decoders raise errors of any kind on a damaged file
        if is_scarce(error):  # no fault of the image's
            raise
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        shown = repr(str(path) if data is None else content)  # Pillow names what it was given
        raise UnreadableImage(path, reason.split("\n", 1)[0].replace(f" {shown}", "")) from error


def part_of_size(size: tuple[int, int], least_side: int) -> int:
    """8, 4 or 2 where an image may be read at 1/8, 1/4 or 1/2 of its size, else 1.

    The shorter side must keep `least_side` pixels, and both sides be divisible: else the last pixels would be parts of
    one, and all others would be moved by as much.
    """
    width, height = size
    return next((n for n in (8, 4, 2) if width % n == height % n == 0 and min(size) // n >= least_side), 1)


def pixel_digest(image: np.ndarray) -> bytes:
    """SHA-256 (32 bytes) of one decoded image: its shape and its bytes, so independent of file, path and time."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).data).digest()
