"""Copies of flagged images: nothing is overwritten, nothing goes through a link, and a record says what was copied."""

import errno
import filecmp
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import claim_folder, exclusive, flush_to_disk, require_own_folder, write_text, writing_to
from common.images import UnreadableImage, pixel_digest, read_image
from find.findings import Finding
from find.text import csv_table, visible

RECORD = "copied.csv"
WORKSHOP = ".copying"  # a file is whole before it gets its name


def require_copy_target(target: Path, root: Path) -> None:
    """Raise UserError unless copies of images below `root` may be put into `target`: new, empty, or left unfinished."""
    if target.is_symlink():
        raise UserError(f"{target} is a link: give --copy-to the folder itself")
    if target.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{target} lies inside the images of {root}: give --copy-to a folder outside them")
    require_own_folder(target)
    if (target / RECORD).exists():  # a copy that was stopped has no record yet: the same command finishes it
        raise UserError(f"{target} holds copies already: give --copy-to a new or an empty folder")


def copy_flagged(
    flagged: Sequence[Finding], root: Path, target: Path, digests: np.ndarray, least_side: int | None = None
) -> list[str]:
    """Copy images from below `root` to the same places below `target`; a sentence for each that could not be copied.

    digests: of the pixels of each row (N, 32) uint8, of images that were read with this `least_side`. A file with other
    pixels is not what was judged: it is not copied.
    `copied.csv` in `target` lists all of them, with the reason where there is no copy.
    Raises UserError where `target` cannot be written, is in use, or is somebody's. What was copied until then stays.
    """
    require_copy_target(target, root)
    claim_folder(target)
    reasons: list[str] = []
    with exclusive(target / WORKSHOP, f"another process copies into {target}: wait for it", target / RECORD):
        for finding in flagged:
            try:
                with writing_to(target):
                    reasons.append(_copy(root, target, finding.path, digests[finding.row].tobytes(), least_side))
            except UserError as error:
                copied = f"{reasons.count(''):,} of {len(flagged):,} flagged images are copied"
                raise UserError(f"{error.message}; {copied}") from error
    # Last of all: before, the same command goes on and tidies up
    rows = [(one.path, "no" if reason else "yes", reason) for one, reason in zip(flagged, reasons, strict=True)]
    write_text(target / RECORD, csv_table([("path", "copied", "reason"), *rows]))
    return [f"{visible(path)} {reason}" for path, _, reason in rows if reason]


def _copy(root: Path, target: Path, path: str, digest: bytes, least_side: int | None) -> str:
    """Copy one file; why it was not copied, "" where it was."""
    source, place = root / path, target / path
    if not os.path.lexists(source):
        return "is not there any more"
    if source.resolve() != root.resolve() / path:
        return "is a link, or lies behind one"
    if not source.is_file():
        return "is no regular file"
    try:
        data = source.read_bytes()
        pixels = read_image(source, least_side=least_side, data=data)
    except UnreadableImage as error:
        return f"cannot be read ({error.reason})"
    except OSError as error:
        return f"cannot be read ({os.strerror(error.errno or 0).lower()})"
    if pixel_digest(pixels) != digest:
        return "is not the picture that was judged: it has changed since extraction"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.parent.resolve() != (target.resolve() / path).parent:
            return f"would be written through a link, {place.parent}"
        return _write_new(place, data, source, target / WORKSHOP / f".copy.{os.getpid()}-{os.urandom(4).hex()}")
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return f"has too long a name for {target}"


def _write_new(place: Path, data: bytes, source: Path, temporary: Path) -> str:
    """Write a file that must not be there yet, but by a copy that was stopped; why it was not, "" where it was."""
    try:
        temporary.write_bytes(data)
        shutil.copystat(source, temporary)
        flush_to_disk(temporary)
        if os.path.lexists(place):
            same = not place.is_symlink() and filecmp.cmp(temporary, place, shallow=False)
            return "" if same else f"finds its place taken, {place}"
        try:
            os.link(temporary, place)  # unlike a rename, it never replaces a file
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise
            temporary.rename(place)  # a file system without hard links
        return ""
    finally:
        temporary.unlink(missing_ok=True)
