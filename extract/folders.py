"""The user's own images in folders: one folder for each class, or no labels. Every file is used or left out."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import OUTPUT_MARK, canonical_json, sha256_text
from common.images import printable, why_no_image
from extract.sources import UNLABELLED, ImageSource, Reading, split_by_class

VALIDATION = ("val", "valid", "validation")
LEFT_BY_SYSTEMS = {"__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini"}
HIDDEN, LOOP, ODD, UNLISTED = "hidden", "a link to a folder above it", "no regular file", "a folder that cannot be read"
OUTPUT = "a folder of results"


class ImageFolder:
    """The source "imagefolder": `train/<class>/…` and `test/<class>/…` (or `val/`), or `<class>/…` without a split.

    Files in deeper folders belong to the class above them, in the order of torchvision's ImageFolder.
    """

    own_files = True

    def open(self, root: Path, reading: Reading) -> ImageSource:
        images, left_out = list_images(root, reading)
        split_folders, notes = _layout(root)
        if split_folders and reading.test_fraction is not None:
            raise UserError(f"{root} has a test split, {split_folders[1]}/: leave --test-fraction out")
        class_folders = sorted({name for split in split_folders or ("",) for name in _folders(root / split)})
        class_names = unique_class_names(class_folders)
        number = {folder: label for label, folder in enumerate(class_folders)}
        depth = 1 if split_folders else 0
        labelled: list[tuple[int, str, str]] = []
        for name in images:
            parts = name.split("/")
            if len(parts) < depth + 2 or (split_folders and parts[0] not in split_folders):
                left_out.append((name, "in no folder of a class"))
            else:
                labelled.append((number[parts[depth]], *os.path.split(name)))
        labelled.sort()
        labels = np.array([label for label, _, _ in labelled], np.int64)
        names = [f"{folder}/{file}" for _, folder, file in labelled]
        if split_folders:
            is_test = np.array([name.startswith(f"{split_folders[1]}/") for name in names], bool)
        else:
            is_test, note = split_by_class(labels, class_names, reading.test_fraction)
            notes.append(note)
        files = reading.files(root)
        return ImageSource(
            str(root), class_names, labels, is_test, lambda i: files.read(names[i]), names, left_out, notes, files
        )

    def fingerprint(self, root: Path) -> str:
        return stamps_digest(root)


class Folder(ImageFolder):
    """The source "folder": every image at and below a root, without labels: one class, all in the train split."""

    def open(self, root: Path, reading: Reading) -> ImageSource:
        if reading.test_fraction is not None:
            raise UserError("--test-fraction splits labelled images, --dataset folder has none: leave it out")
        images, left_out = list_images(root, reading)
        names = sorted(images, key=os.path.split)
        if not names:
            raise UserError(f"there is no image at or below {root}: give --root a folder with images")
        files, zeros = reading.files(root), np.zeros(len(names), np.int64)
        return ImageSource(
            str(root), [UNLABELLED], zeros, zeros, lambda i: files.read(names[i]), names, left_out, files=files
        )


def walk(
    folder: str, below: str = "", above: tuple[tuple[int, int], ...] = ()
) -> Iterator[tuple[str, str, "os.DirEntry[str] | None"]]:
    """Every file at and below a folder: its name, why it is left out ("" for an image), and its directory entry.

    Links are followed, but not in a circle. Hidden folders are not entered.
    """
    # os.scandir and strings, because 60,000 pathlib objects alone would cost the second that "up to date" may take
    try:
        status = os.stat(folder)  # noqa: PTH116
        here = (status.st_dev, status.st_ino)
        with os.scandir(folder) as scan:
            entries = list(scan)
    except OSError:
        yield below, UNLISTED, None
        return
    if here in above:
        yield below, LOOP, None
        return
    if any(entry.name == OUTPUT_MARK for entry in entries):  # our own output holds copies of images
        yield below, OUTPUT, None
        return
    for entry in entries:
        name = below + entry.name
        if entry.name.startswith(".") or entry.name in LEFT_BY_SYSTEMS:
            yield name, HIDDEN, None
        elif _is_folder(entry):
            yield from walk(entry.path, f"{name}/", (*above, here))
        else:
            # A pipe would never end
            yield name, why_no_image(entry.name) if _is_file(entry) else ODD, entry


def list_images(root: Path, reading: Reading) -> tuple[list[str], list[tuple[str, str]]]:
    """The names of the images at and below a folder, and the (name, reason) of what is left out.

    Raises UserError where there is no folder, and for folders that cannot be read, unless they are to be skipped.
    """
    if not root.is_dir():
        raise UserError(f"there is no image folder at {root}: give --root (make: ROOT=) a folder of images")
    listing = list(walk(str(root)))
    unlisted = [printable(name) or str(root) for name, reason, _ in listing if reason == UNLISTED]
    if unlisted and reading.on_error == "fail":
        raise UserError(
            f"{len(unlisted)} folder(s) below {root} cannot be read: {', '.join(unlisted[:5])}; "
            "give yourself the right to read them, or skip them with --on-error skip (make: ON_ERROR=skip)"
        )
    images = [name for name, reason, _ in listing if not reason]
    return images, [(name, reason) for name, reason, _ in listing if reason]


def stamps_digest(root: Path) -> str:
    """The digest of names, sizes and times of all files that are not hidden."""
    stamps = [(printable(name), *stamp_of(entry)) for name, _, entry in walk(str(root)) if entry]
    return sha256_text(canonical_json(sorted(stamps)))


def unique_class_names(folders: list[str]) -> list[str]:
    """Printable class names, of folders or labels. Raises UserError where two become equal."""
    names = [printable(folder) for folder in folders]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f'there are two classes "{name}": give one of them another name')
    return names


def _layout(root: Path) -> tuple[tuple[str, str] | None, list[str]]:
    """The folders of the train and the test split, None where there is no split; and notes."""
    folders = _folders(root)
    test = next((name for name in ("test", *VALIDATION) if name in folders), "test")
    # A class may be called "train": then it holds images, and no folders
    split = [name for name in ("train", test) if _folders(root / name)]
    if not split:
        return None, []
    if len(split) == 1:
        other = "test/ or val/" if split[0] == "train" else "train/"
        raise UserError(
            f"{root} has {split[0]}/ but no {other} with class folders: add it, "
            f"or give --root {root / split[0]}, of which --test-fraction becomes the test split"
        )
    unused = [f"{name}/" for name in folders if name not in split]
    notes = [f"{root} has no test/: {test}/ is the test split"] if test != "test" else []
    return ("train", test), notes + ([f"{', '.join(unused)} of {root} left out"] if unused else [])


def _folders(root: Path) -> list[str]:
    try:
        with os.scandir(root) as entries:
            shown = [e for e in entries if not e.name.startswith(".") and e.name not in LEFT_BY_SYSTEMS]
            return sorted(entry.name for entry in shown if _is_folder(entry) and not _is_output(entry.path))
    except OSError:
        return []


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_output(folder: str) -> bool:
    return os.path.lexists(os.path.join(folder, OUTPUT_MARK))  # noqa: PTH118


def _is_file(entry: "os.DirEntry[str]") -> bool:
    """True for a file, and for a broken link, which is an image that cannot be read."""
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))  # noqa: PTH110
    except OSError:
        return True


def stamp_of(file: "os.DirEntry[str] | Path") -> tuple[int, int]:
    """The size and the time of a file, zeros for a missing one."""
    try:
        status = file.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
