"""Image sources: where images, labels and class names come from. `SOURCES` lists them all."""

import pkgutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import click
import numpy as np

from common.command_line import Real
from common.errors import UserError, unknown_name
from common.images import MAX_PIXELS, Files
from common.store import SPLITS

# name: where its class is; imported only when it is used
SOURCES = {
    "cifar100": "extract.cifar:CIFAR100",
    "cifar10": "extract.cifar:CIFAR10",
    "imagefolder": "extract.folders:ImageFolder",
    "folder": "extract.folders:Folder",
    "csv": "extract.csv_file:Csv",
    "hf": "extract.hugging_face:HuggingFace",
    "digits": "extract.digits:Digits",
}
UNLABELLED = "unlabelled"
TEST_FRACTION = 0.2
SPLIT_SEED = 0
NAMED = 5  # classes that a note names at most


def option(default: Any, kind: Any, text: str) -> Any:
    """A field that is an option of the command line, too. kind: what it may be, as click has it, also from Python."""
    return field(default=default, metadata={"type": kind, "help": text})


@dataclass(frozen=True)
class Reading:
    """How people's own files are read.

    least_side: pixels that the shorter side keeps where large pictures are scaled, as the preprocessing decides; None
    where that is not known.
    """

    on_error: str = option("fail", click.Choice(["fail", "skip"]), "What to do with unreadable files.")
    test_fraction: float | None = option(
        None,
        Real(0, 1, min_open=True, max_open=True),
        f"Of each class, for the test, where your images have no split.  [default: {TEST_FRACTION}]",
    )
    max_pixels: int = option(MAX_PIXELS, click.IntRange(1), "Of an image, at most.")
    decode: str = option(
        "scaled",
        click.Choice(["scaled", "full"]),
        "Large pictures: scaled, at 1/2, 1/4 or 1/8 of their size, JPEGs several times as fast; or full.",
    )
    least_side: int | None = None
    image_column: str | None = option(None, str, "Of hf:…  [default: the one with images]")
    label_column: str | None = option(None, str, "Of hf:…  [default: the one with class labels]")

    def files(self, folder: Path) -> Files:
        """The reader of files below a folder."""
        return Files(folder, self.max_pixels, self.least_side if self.decode == "scaled" else None)


@dataclass(frozen=True)
class ImageSource:
    """A data set of N images. `load_source` puts those of the train split first.

    labels: (N,) int64. split: (N,) uint8, an index into `SPLITS`; a source may give whether an image is for the test.
    image: a row → its image (H, W, 3) uint8. Raises UnreadableImage.
    names: the file of each row, relative to the root; by default split and number.
    left_out: the (name, reason) of each file that is not used. notes: what was decided about its layout.
    files: reads the images by their names, if they are files; another machine can do that, too.
    """

    name: str
    class_names: list[str]
    labels: np.ndarray
    split: np.ndarray
    image: Callable[[int], np.ndarray]
    names: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: Files | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, row: int) -> Path:
        """The file of an image; its name alone where it is in no folder."""
        return (self.files.folder if self.files else Path()) / self.names[row]

    def rows_of(self, split: str) -> np.ndarray:
        """The rows (n,) int64 of a split, ascending."""
        return np.flatnonzero(self.split == SPLITS.index(split))

    @property
    def image_index(self) -> np.ndarray:
        """The number (N,) int64 of each image in its split."""
        return np.concatenate([np.arange(len(self.rows_of(split))) for split in SPLITS])

    def subset(self, rows: np.ndarray) -> "ImageSource":
        """The same data set with these rows (n,) alone, in this order."""
        image, names = self.image, [self.names[row] for row in rows] if self.names else []
        labels, split = np.asarray(self.labels, np.int64)[rows], np.asarray(self.split, np.uint8)[rows]
        return replace(self, labels=labels, split=split, image=lambda row: image(int(rows[row])), names=names)

    def check(self) -> None:
        """Raise UserError if there is no image; add a note if some classes cannot be trained on.

        Such a source is no error, since `find` can judge it.
        """
        if not len(self):
            raise UserError(
                f"{self.name} has no image in {len(self.class_names)} class folder(s)"
                + (f" ({left_out_line(self.left_out)})" if self.left_out else "")
                + ": give --root (make: ROOT=, IMAGES=) a folder of class folders; images without labels are for "
                "`odd`, or for `features` with --dataset folder"
            )
        if self.class_names == [UNLABELLED]:
            return
        lacking = []
        for split in SPLITS:
            present = set(self.labels[self.rows_of(split)].tolist())
            if few := [name for label, name in enumerate(self.class_names) if label not in present]:
                lacking.append(f"{split} has none of {', '.join(few[:NAMED])}{' …' if len(few) > NAMED else ''}")
        if lacking or len(self.class_names) < 2:
            why = "; ".join(lacking) or f"there is one class, {self.class_names[0]}"
            self.notes[:] = dict.fromkeys([*self.notes, f"this can be audited by find, but not trained on: {why}"])


class SourceKind(Protocol):
    """One kind of source. own_files: the user must give --root, and the images there are decoded by `common.images`."""

    own_files: bool

    def open(self, root: Path, reading: Reading) -> ImageSource:
        """The source at `root`. Raises UserError where its data are missing."""

    def fingerprint(self, root: Path) -> str:
        """A text that changes when the images may have changed; no pixel is read."""


def source_kind(name: str) -> SourceKind:
    """The kind of this name. Raises UserError for an unknown one."""
    if name not in SOURCES:
        raise unknown_name("data set", name, SOURCES)
    return pkgutil.resolve_name(SOURCES[name])()


def load_source(name: str, root: Path, reading: Reading | None = None) -> ImageSource:
    """Open a source of `SOURCES`. Raises UserError where its data are missing, or there is no image."""
    source = source_kind(name).open(root, reading or Reading())
    source = source.subset(np.argsort(source.split, kind="stable"))
    source.check()
    numbered = zip(source.split, source.image_index, strict=True)
    return replace(source, names=source.names or [f"{SPLITS[split]}/{i:05d}" for split, i in numbered])


def left_out_line(left_out: list[tuple[str, str]]) -> str:
    """How many files were left out, by reason.

    >>> left_out_line([("a.txt", "no image"), ("b.txt", "no image"), ("._c.png", "hidden")])
    '3 files left out: 2 no image, 1 hidden'
    """
    reasons = Counter(reason for _, reason in left_out).most_common()
    return f"{len(left_out):,} files left out: " + ", ".join(f"{number:,} {reason}" for reason, number in reasons)


def split_by_class(labels: np.ndarray, class_names: list[str], fraction: float | None) -> tuple[np.ndarray, str]:
    """Which images (n,) bool are for the test: `fraction` of each class, at least one on each side. And a note of it.

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
