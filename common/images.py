"""Image files: which files are images, and their pixels in RGB. docs/images-and-weights.md states the rule.

Many threads decode at the same time, so what they share is built once, under a lock, and then never changes.
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
from PIL import Image, ImageCms, ImageOps

from common.errors import UserError, is_scarce
from common.progress import say

RULE = 3  # version of the decoding rule: raise it when some file gets other pixels; a store's request has it
MAX_PIXELS = 178_956_970  # where Pillow, too, takes a file for a decompression bomb
HUGE = 1 << 25  # pixels; larger images are decoded one at a time, to limit the memory
# Formats whose suffix Pillow knows, but which it cannot decode, or only with an external program
NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}
PLUGINS = {".heic": "pillow-heif", ".heif": "pillow-heif", ".hif": "pillow-heif", ".avif": "a newer Pillow"}
SCALABLE = {"JPEG", "MPO"}
ROWS_AT_ONCE = 256  # copied from Pillow
TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_RANGES = 258, 262, ((340, 341), (280, 281))
CAMERA_DEPTHS = (8, 10, 12, 14)  # bits, in words of 16
INK_ON_WHITE = 0  # TIFF's MinIsWhite
SRGB_TOLERANCE = 2  # levels of 255 by which the many profiles that are called sRGB differ
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


def decode(image: Any, part: int = 1, name: str = "") -> np.ndarray:
    """The first frame of an open PIL image → RGB (H, W, 3) uint8.

    Upright as its EXIF says, grey of more than 8 bits scaled by its range, in sRGB as its profile says, on white.
    part: n, for 1/n of the size, by the means of squares. name: of the file, for messages.
    Raises ValueError where the range of the values is not known.
    """
    raw_mode = _raw_mode(image)
    image.load()
    tags = dict(getattr(image, "tag_v2", {}))
    with contextlib.suppress(Exception):  # broken EXIF says nothing
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):
        colour, alpha = _narrow(image, tags, name)
    else:
        if ";16" in raw_mode:
            _require_full_range(image)
        colour, alpha = _without_alpha(image, raw_mode)
    colour = _to_srgb(colour, image.info.get("icc_profile"))
    if alpha is not None:
        background = Image.new("RGB", colour.size, "white")
        background.paste(colour, mask=alpha)
        colour = background
    return _pixels_of(colour.reduce(part) if part > 1 else colour)


def _pixels_of(image: Any) -> np.ndarray:
    """A PIL image in RGB → (H, W, 3) uint8. Some rows at a time, since Pillow copies what it gives out twice."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, ROWS_AT_ONCE):
        bottom = min(top + ROWS_AT_ONCE, image.height)
        whole = image.height <= ROWS_AT_ONCE
        pixels[top:bottom] = np.asarray(image if whole else image.crop((0, top, image.width, bottom)))
    return pixels


def _raw_mode(image: Any) -> str:
    """How the file packs its pixels, such as "L;4" or "RGB;16B"."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _narrow(image: Any, tags: dict[int, Any], name: str) -> tuple[Any, Any]:
    """A grey image of more than 8 bits → (mode L, its mask or None)."""
    values = np.asarray(image)
    low, high = _range(image, tags, values, name)
    clipped = np.clip(values.astype(np.float64), low, high)
    grey = np.floor((clipped - low) * 255 / (high - low) + 0.5).astype(np.uint8)
    if tags.get(TIFF_PHOTOMETRIC) == INK_ON_WHITE:
        grey = 255 - grey
    key = image.info.get("transparency")
    alpha = Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)) if isinstance(key, int) else None
    return Image.fromarray(grey), alpha


def _range(image: Any, tags: dict[int, Any], values: np.ndarray, name: str) -> tuple[float, float]:
    """The values of black and white: of the type where that says it, or as declared in the file."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        bits = _single(tags.get(TIFF_BITS)) or 16
        declared = _single(tags.get(281)) or 0
        highest = int(values.max(initial=0))
        # 10, 12 or 14 bits in words of 16: TIFF's MaxSampleValue says so, if it is no mere statistic of the image
        if highest <= declared < 2**bits and declared > 255 and (declared + 1).bit_count() == 1:
            return 0, declared
        needed = next((depth for depth in CAMERA_DEPTHS if highest < 2**depth), bits)
        if needed < bits:
            _report_depth(bits, needed, name)
        return 0, 2 ** min(needed, bits) - 1
    if not np.isfinite(values).all():
        raise ValueError("values that are not finite")
    for low_tag, high_tag in TIFF_RANGES:
        low, high = _single(tags.get(low_tag)), _single(tags.get(high_tag))
        if low is not None and high is not None and low < high:
            return low, high
    kind = "floating-point" if image.mode == "F" else "signed or 32-bit"
    raise ValueError(f"{kind} values whose black and white are not declared; convert it to 8 or 16 bits")


_reported: set[tuple[int, int]] = set()


def _report_depth(bits: int, needed: int, name: str) -> None:
    """Report the first image of such a depth."""
    if (bits, needed) not in _reported:
        _reported.add((bits, needed))
        say(f"grey images of {bits} bits whose values need no more than {needed} are scaled by these, such as {name}")


def _require_full_range(image: Any) -> None:
    """Raise ValueError for colour of 16 bits that uses less than a sixteenth of them: Pillow keeps the upper 8 only."""
    extrema = [image.getchannel(band).getextrema()[1] for band in image.getbands() if band not in "Aa"]
    if max(extrema) < 16:
        raise ValueError("colour of 16 bits whose values need no more than 12; convert it to 8 bits")


def _single(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) and value else value


def _without_alpha(image: Any, raw_mode: str) -> tuple[Any, Any]:
    """An image of 8 bits or fewer → (image without alpha, its alpha as a mask or None)."""
    key = image.info.get("transparency")
    if key is None and image.mode not in ("LA", "La", "PA", "RGBA", "RGBa"):
        return image, None
    # A key is written in the depth of the file, but Pillow gives the pixels in 8 bits
    if raw_mode in ("L;2", "L;4") and isinstance(key, int):
        image.info["transparency"] = key * (85 if raw_mode == "L;2" else 17)
    if raw_mode.startswith("RGB;16") and isinstance(key, tuple):
        image.info["transparency"] = tuple(part >> 8 for part in key)
    premultiplied = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
    if premultiplied:
        image = image.convert(premultiplied)
    if image.mode in ("1", "L", "LA"):
        grey = image.convert("LA")
        return grey.getchannel("L"), grey.getchannel("A")
    colour = image.convert("RGBA")
    return colour.convert("RGB"), colour.getchannel("A")


def _to_srgb(image: Any, profile: bytes | None) -> Any:
    """An image without alpha → RGB. A profile that is broken, or of other channels, says nothing."""
    if image.mode == "LAB":
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "CMYK", "RGB"):
        image = image.convert("RGB")
    transform = _transform(profile, image.mode) if profile else None
    if transform is not None:
        image = ImageCms.applyTransform(image, transform)
    return image if image.mode == "RGB" else image.convert("RGB")


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> Any:
    """The transform from a profile to sRGB; None where the profile is sRGB itself, or cannot be used."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode != "RGB":
            return transform
        levels = np.linspace(0, 255, 16).astype(np.uint8)
        grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
        converted = np.asarray(ImageCms.applyTransform(Image.fromarray(grid), transform))
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None
    return None if np.abs(converted.astype(int) - grid).max() <= SRGB_TOLERANCE else transform
