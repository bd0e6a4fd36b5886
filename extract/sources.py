"""Image sources: where images, labels and class names come from, behind one contract. `SOURCES` is the only list."""

import pkgutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from common.errors import UserError, unknown_name
from common.images import MAX_PIXELS, RULE, Files
from common.store import SPLITS

# name: where its kind lives; nothing is imported before it is asked for
SOURCES = {
    "cifar100": "extract.cifar:CIFAR100",
    "cifar10": "extract.cifar:CIFAR10",
    "imagefolder": "extract.folders:ImageFolder",
    "folder": "extract.folders:Folder",
    "csv": "extract.tables:Csv",
    "hf": "extract.hugging_face:HuggingFace",
    "digits": "extract.digits:Digits",
}
UNLABELLED = "unlabelled"
TEST_FRACTION = 0.2
SPLIT_SEED = 0
NAMED = 5  # classes that a note names at most


# Those of a `Reading` that decide over the pixels and the rows
SETTINGS = ("test_fraction", "on_error", "decode", "image_column", "label_column")


@dataclass(frozen=True)
class Reading:
    """How people's own files are read.

    on_error: "fail" or "skip" what cannot be read.
    test_fraction: of each class, where the data have no test split of their own; None for `TEST_FRACTION`.
    max_pixels: of one image.
    decode: "scaled", large pictures at a part of their size, or "full".
    least_side: pixels that the shorter side keeps then, as the preprocessing decides; None where that is not known.
    image_column, label_column: of a data set of Hugging Face; None where its types say which.
    """

    on_error: str = "fail"
    test_fraction: float | None = None
    max_pixels: int = MAX_PIXELS
    decode: str = "scaled"
    least_side: int | None = None
    image_column: str | None = None
    label_column: str | None = None

    def files(self, folder: Path) -> Files:
        """What reads the files below a folder."""
        return Files(folder, self.max_pixels, self.least_side if self.decode == "scaled" else None)


@dataclass(frozen=True)
class Split:
    """One split: labels (n,) int64, `image(i)` → (H, W, 3) uint8, 0 ≤ i < n, and its file's name, if it has one.

    `image` raises UnreadableImage. `names` are relative to the root.
    """

    labels: np.ndarray
    image: Callable[[int], np.ndarray]
    names: Sequence[str] = ()

    def subset(self, rows: np.ndarray) -> "Split":
        """These rows (n,) alone, in this order."""
        names = [self.names[row] for row in rows] if self.names else ()
        return Split(self.labels[rows], lambda i: self.image(int(rows[i])), names)


@dataclass(frozen=True)
class ImageSource:
    """A data set of images: a `Split` for each of `SPLITS`, the class names.

    left_out: the files that are no images of it, as (name, reason). notes: what was decided about its layout.
    files: where its images are files, what reads them by the names of the splits: another machine may do that, too.
    """

    name: str
    class_names: list[str]
    splits: dict[str, Split]
    left_out: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: Files | None = None

    def __len__(self) -> int:
        return sum(len(split.labels) for split in self.splits.values())

    def image(self, row: int) -> np.ndarray:
        """The image of a row, (H, W, 3) uint8: train comes before test. Raises UnreadableImage."""
        train = len(self.splits["train"].labels)
        return self.splits["train"].image(row) if row < train else self.splits["test"].image(row - train)

    def names(self) -> list[str]:
        """The file name of each row, relative to the root; split and number where the source has no files."""
        return [
            name
            for key in SPLITS
            for name in self.splits[key].names or [f"{key}/{i:05d}" for i in range(len(self.splits[key].labels))]
        ]

    def without(self, rows: np.ndarray) -> "ImageSource":
        """The same without some rows. Raises UserError where nothing is left."""
        splits, start = {}, 0
        for name in SPLITS:
            n = len(self.splits[name].labels)
            splits[name] = self.splits[name].subset(np.setdiff1d(np.arange(n), rows - start))
            start += n
        left = replace(self, splits=splits)
        if not len(left):
            raise UserError(f"none of the {len(self)} images of {self.name} can be read")
        left.check()
        return left

    def check(self) -> None:
        """Raise UserError where there is no image at all; note the classes that cannot be trained on.

        `find` judges what there is of a class. Training says itself what it needs.
        """
        counts = {
            split: np.bincount(part.labels, minlength=len(self.class_names)) for split, part in self.splits.items()
        }
        if not len(self):
            raise UserError(
                f"{self.name} has no image in {len(self.class_names)} class folder(s)"
                + (f" ({left_out_line(self.left_out)})" if self.left_out else "")
                + ": give --root (make: ROOT=, IMAGES=) a folder of class folders, or --dataset folder for images "
                "without labels"
            )
        if self.class_names == [UNLABELLED]:
            return
        lacking = [
            f"{split} has none of {', '.join(few[:NAMED])}{' …' if len(few) > NAMED else ''}"
            for split, number in counts.items()
            if (few := [name for name, n in zip(self.class_names, number, strict=True) if not n])
        ]
        if lacking or len(self.class_names) < 2:
            why = "; ".join(lacking) or f"there is one class, {self.class_names[0]}"
            self.notes[:] = dict.fromkeys([*self.notes, f"this can be audited by find, but not trained on: {why}"])


class SourceKind(Protocol):
    """One kind of source. `own_files`: --root must be given, and names files that are decoded by the rule."""

    own_files: bool

    def open(self, root: Path, reading: Reading) -> ImageSource:
        """The source at `root`. Raises UserError where its data are missing."""

    def fingerprint(self, root: Path) -> str:
        """A cheap sign that a source has not changed, no pixel read."""


def source_kind(name: str) -> SourceKind:
    """The kind of this name. Raises UserError for an unknown one."""
    if name not in SOURCES:
        raise unknown_name("data set", name, SOURCES)
    return pkgutil.resolve_name(SOURCES[name])()


def load_source(name: str, root: Path, reading: Reading | None = None) -> ImageSource:
    """Open a source of `SOURCES`. Raises UserError where its data are missing, or there is no image."""
    source = source_kind(name).open(root, reading or Reading())
    source.check()
    return source


def reading_request(name: str, reading: Reading) -> dict[str, Any]:
    """The part of a store's request that says how files are read: what decides over the pixels and the rows.

    Raises UserError for a setting that does nothing for this source.
    """
    if (reading.image_column or reading.label_column) and name != "hf":
        raise UserError(f"--image-column and --label-column do nothing for {name}: leave them out, or give hf:…")
    if not source_kind(name).own_files:
        if reading != Reading():
            raise UserError(
                f"--on-error, --test-fraction, --max-pixels and --decode do nothing for {name}: leave them out, or "
                "give your own images with --dataset imagefolder, folder or csv"
            )
        return {}
    settings = {each: getattr(reading, each) for each in SETTINGS}
    return {"decoding": RULE, **{each: value for each, value in settings.items() if value != getattr(Reading, each)}}


def left_out_line(left_out: list[tuple[str, str]]) -> str:
    """How many files were left out, by reason.

    >>> left_out_line([("a.txt", "no image"), ("b.txt", "no image"), ("._c.png", "hidden")])
    '3 files left out: 2 no image, 1 hidden'
    """
    reasons = Counter(reason for _, reason in left_out).most_common()
    return f"{len(left_out):,} files left out: " + ", ".join(f"{number:,} {reason}" for reason, number in reasons)


def split_by_class(labels: np.ndarray, class_names: list[str], fraction: float | None) -> tuple[np.ndarray, str]:
    """Which images (n,) bool are for the test, `fraction` of each class, at least one on each side; and a note of it.

    It depends on the class's name, the number of its images and `SPLIT_SEED` alone. A single image is for training.
    """
    fraction = TEST_FRACTION if fraction is None else fraction
    is_test = np.zeros(len(labels), bool)
    for label, class_name in enumerate(class_names):
        rows = np.flatnonzero(labels == label)
        generator = np.random.default_rng([SPLIT_SEED, *class_name.encode()])
        number = min(max(round(fraction * len(rows)), 1), max(len(rows) - 1, 0))
        is_test[generator.permutation(rows)[:number]] = True
    return is_test, f"no test split: {fraction:.0%} of each class are drawn for it, seed {SPLIT_SEED}"


def make_splits(
    labels: Sequence[int] | np.ndarray,
    is_test: np.ndarray,
    image: Callable[[int], np.ndarray],
    names: Sequence[str] = (),
) -> dict[str, Split]:
    """The splits of images that stand in one list, `image(i)` being the i-th."""
    whole = Split(np.asarray(labels, np.int64), image, names)
    return {name: whole.subset(np.flatnonzero(is_test == (name == "test"))) for name in SPLITS}
