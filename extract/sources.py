"""Image sources: where images, labels and class names come from, behind one contract."""

import hashlib
import importlib.metadata
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import canonical_json, sha256_text
from common.store import SPLITS
from extract.cifar import FOLDERS, open_cifar, superclasses_of

SOURCES = ("cifar100", "cifar10", "imagefolder", "digits")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"}
FEWEST_IMAGES = 10  # a class must be able to fill a set of the protocol
DIGITS_TEST_EVERY = 5


@dataclass(frozen=True)
class Split:
    """One split: labels (n,) int64, `image(i)` → (H, W, 3) uint8, 0 ≤ i < n, and the names of its files, if it has any.

    `names` are relative to the root, with / between their parts.
    """

    labels: np.ndarray
    image: Callable[[int], np.ndarray]
    names: Sequence[str] = ()


@dataclass(frozen=True)
class ImageSource:
    """A data set of images: a `Split` for each of `SPLITS`, the class names, and super-classes where they are known."""

    name: str
    class_names: list[str]
    splits: dict[str, Split]

    def check(self) -> None:
        """Raise UserError when there are fewer than 2 classes, or fewer than 10 images of a class in a split."""
        if len(self.class_names) < 2:
            raise UserError(
                f"{self.name} has {len(self.class_names)} class(es): sets need at least 2, one for the inliers "
                "and one for the anomaly"
            )
        for split, content in self.splits.items():
            counts = np.bincount(content.labels, minlength=len(self.class_names))
            scarce = int(counts.argmin())
            if counts[scarce] < FEWEST_IMAGES:
                raise UserError(
                    f'{self.name} has {counts[scarce]} image(s) of class "{self.class_names[scarce]}" in its {split} '
                    f"split: every class needs at least {FEWEST_IMAGES}; add images or remove the class"
                )

    def superclasses(self) -> tuple[list[str], list[int]]:
        """The super-class names and the super-class of each class; both empty where unknown."""
        return superclasses_of(self.class_names)


def load_source(name: str, root: Path) -> ImageSource:
    """Open a source of `SOURCES`. Raises UserError where its data are missing or do not suffice for sets."""
    if name == "digits":
        source = _digits()
    elif name == "imagefolder":
        source = _image_folder(root)
    else:
        source = _cifar(name, root)
    source.check()
    return source


def fingerprint(name: str, root: Path) -> str:
    """A cheap sign that a source has not changed: the digest of its files' names, sizes and times, no pixel read."""
    if name == "digits":
        return "scikit-learn " + importlib.metadata.version("scikit-learn")
    folder = root / FOLDERS[name] if name in FOLDERS else root
    return sha256_text(canonical_json(sorted(_stamps(str(folder), ""))))


def pixel_digest(image: np.ndarray) -> bytes:
    """SHA-256 (32 bytes) of one decoded image: its shape and its bytes, so independent of file, path and time."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).data).digest()


def _stamps(folder: str, below: str) -> list[tuple[str, int, int]]:
    # os.scandir and strings, because 60,000 pathlib objects alone would cost the second that "up to date" may take
    if not os.path.isdir(folder):  # noqa: PTH112
        return []
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                found += _stamps(entry.path, f"{below}{entry.name}/")
            else:
                status = entry.stat()
                found.append((below + entry.name, status.st_size, status.st_mtime_ns))
    return found


def _digits() -> ImageSource:
    """scikit-learn's bundled scans of digits: 1,797 images, 8×8, grey; every fifth of a class is a test image."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    rank = np.empty(len(labels), np.int64)  # the how-manieth image of its class
    for label in range(10):
        rank[labels == label] = np.arange(np.sum(labels == label))
    rows = {
        "train": np.flatnonzero(rank % DIGITS_TEST_EVERY),
        "test": np.flatnonzero(rank % DIGITS_TEST_EVERY == 0),
    }

    def split(chosen: np.ndarray) -> Split:
        return Split(labels[chosen].astype(np.int64), lambda i: np.repeat(pixels[chosen[i]][:, :, None], 3, axis=2))

    return ImageSource("digits", [str(digit) for digit in range(10)], {name: split(rows[name]) for name in SPLITS})


def _cifar(name: str, root: Path) -> ImageSource:
    train, test = open_cifar(name, root)

    def split(data_set) -> Split:
        return Split(np.asarray(data_set.targets, np.int64), lambda i: data_set.data[i])

    return ImageSource(name, list(train.classes), {"train": split(train), "test": split(test)})


def _image_folder(root: Path) -> ImageSource:
    if not root.is_dir():
        raise UserError(f"there is no image folder at {root}: give --root (make: ROOT=) a folder with train/ and test/")
    for name in SPLITS:
        if not (root / name).is_dir():
            raise UserError(f"{root} has no {name}/ folder: an image folder needs train/<class>/… and test/<class>/…")
    class_names = _folders(root / "train")
    if _folders(root / "test") != class_names:
        odd = sorted(set(class_names) ^ set(_folders(root / "test")))
        raise UserError(f'{root}: train/ and test/ must hold the same class folders, but "{odd[0]}" is in one only')
    splits = {name: _folder_split(root / name, class_names) for name in SPLITS}
    return ImageSource(str(root), class_names, splits)


def _folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _folder_split(root: Path, class_names: list[str]) -> Split:
    files: list[Path] = []
    labels: list[int] = []
    for label, class_name in enumerate(class_names):
        images = sorted(f for f in (root / class_name).iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)
        files += images
        labels += [label] * len(images)
    names = [file.relative_to(root.parent).as_posix() for file in files]
    return Split(np.asarray(labels, np.int64), lambda i: read_image(files[i]), names)


def read_image(path: Path) -> np.ndarray:
    """Decode one file to RGB (H, W, 3) uint8, upright as its EXIF says. Raises UserError naming an unreadable file."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the image {path} ({error}): repair or remove it") from error
