"""Putting findings elsewhere: nothing is overwritten, nothing is lost, and all of it can be undone.

The record of what will be done is on the disk before the first file is touched. So a process that is killed, or a
machine that loses power, leaves a record with which `undo` restores what had been done until then.
"""

import errno
import filecmp
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import click

from common.command_line import keeping
from common.errors import UserError
from common.files import exclusive, flush_folder, flush_to_disk, write_text, writing_to
from find.findings import Findings

FORMAT = "set-anomaly/moves"
VERSION = 1
LOCK_FOLDER = ".set-anomaly-moves"


@dataclass(frozen=True)
class Undone:
    """What `undo` did: the number of files that are as before, and a sentence for each that is not."""

    restored: int
    left: list[str]


def put_flagged(findings: Findings, target: Path, *, copy: bool = False) -> Path | None:
    """Move (or copy) the flagged images, as `put` does. Raises UserError where the findings know no files."""
    if findings.root is None:
        raise UserError("the store does not know where its images lie: make it from a folder of images to move any")
    root = Path(findings.root)
    return put([root / each.path for each in findings.flagged], root, target, copy=copy)


def put(files: Sequence[Path], root: Path, target: Path, *, copy: bool = False) -> Path | None:
    """Move (or copy) files below `root` to the same places below `target`.

    Returns the record that undoes it, None where there are no files. A place that gets taken meanwhile stops it
    half-way: the error names the record.

    Raises UserError, before anything is touched, where a file is missing, is a symbolic link, lies outside `root`, or
    its new place is taken; and where `target` lies inside `root`, whose files the next run would find again.
    """
    root, target = _absolute(root), _absolute(target)
    if not files:
        return None
    pairs = [(file, target / file.relative_to(root)) for file in dict.fromkeys(_checked(files, root))]
    if target.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{target} lies inside the images of {root}: choose a folder outside them")
    for _, place in pairs:
        if os.path.lexists(place):
            raise UserError(
                f"{place} is there already, so nothing was moved: choose an empty folder, or undo what was put there"
            )
    lines = [{"format": FORMAT, "version": VERSION, "how": "copy" if copy else "move"}]
    lines += [{"from": str(file), "to": str(place)} for file, place in pairs]
    with _alone(target):
        record = _free_name(target)
        write_text(record, "".join(json.dumps(line) + "\n" for line in lines))  # ASCII: names need not be UTF-8
        undone = f"{record} undoes what was done until here"
        with keeping(lambda: undone):
            for file, place in pairs:
                try:
                    with writing_to(place):
                        place.parent.mkdir(parents=True, exist_ok=True)
                        _put(file, place, copy)
                except UserError as error:
                    raise UserError(f"{error.message}; {undone}") from error
    return record


def undo(record: Path) -> Undone:
    """Bring back what `put` moved, and take away what it copied where the original is still the same.

    It may be repeated, and goes on where it was stopped. A place that is taken by another file is left alone, and said.
    When all is as before, the record is renamed to `….undone`. Raises UserError where it is not a record.
    """
    how, pairs = _read(record)
    with _alone(record.absolute().parent):
        undone = _undo(how, pairs)
        _remove_empty_folders([place.parent for _, place in pairs], record.absolute().parent)
        if not undone.left:
            record.rename(record.with_name(record.name + ".undone"))
    return undone


@click.command("undo")
@click.argument("record", type=click.Path(path_type=Path))
def undo_command(record: Path) -> None:
    """Bring back what --move-to moved, take away what --copy-to copied: RECORD is the moves-….jsonl that it wrote."""
    undone = undo(record)
    click.echo(f"{undone.restored} image(s) are as before")
    if undone.left:
        raise UserError("\n".join([f"{len(undone.left)} could not be brought back:", *undone.left]))


def _undo(how: str, pairs: list[tuple[Path, Path]]) -> Undone:
    restored, left = 0, []
    for file, place in reversed(pairs):
        there, moved = os.path.lexists(file), os.path.lexists(place)
        if not there and not moved:
            left.append(f"{file} is neither there nor at {place}")
        elif there and moved and not _holds(file, place) and not (how == "move" and _holds(place, file)):
            left.append(f"{file} and {place} differ: both are left as they are")
        elif not there and how == "copy":
            left.append(f"{file} is gone: its copy stays at {place}")
        else:
            with writing_to(file):
                file.parent.mkdir(parents=True, exist_ok=True)
                if there and moved and not _holds(file, place):
                    file.unlink()  # the name that an undo before this one had reserved
                    there = False
                if not there:
                    _put(place, file, copy=False)
                elif moved:
                    place.unlink()
            restored += 1
        _partial(place).unlink(missing_ok=True)
    return Undone(restored, left)


def _alone(target: Path) -> AbstractContextManager[None]:
    # The lock has a folder of its own: whoever holds it may tidy up there, and the target is somebody's
    return exclusive(target / LOCK_FOLDER, f"another process moves files into or out of {target}: wait for it")


def _absolute(path: Path) -> Path:
    return Path(os.path.normpath(path.absolute()))  # links are kept, ".." is not


def _checked(files: Sequence[Path], root: Path) -> Iterator[Path]:
    for file in map(_absolute, files):
        if file.is_symlink():
            raise UserError(f"{file} is a symbolic link: give the folder that holds the file itself")
        if not file.is_file():
            raise UserError(f"there is no file {file} any more: run find again, on the images as they are now")
        if not file.is_relative_to(root):
            raise UserError(f"{file} is not below {root}: give the folder that holds all images")
        yield file


def _free_name(target: Path) -> Path:
    number = 1
    while any(target.glob(f"moves-{number:03d}.jsonl*")):
        number += 1
    return target / f"moves-{number:03d}.jsonl"


def _put(file: Path, place: Path, copy: bool) -> None:
    """Move or copy one file to a place that is free, which is reserved first: two processes cannot overwrite."""
    os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    if not copy:
        try:
            file.replace(place)
            return
        except OSError as error:
            if error.errno != errno.EXDEV:
                place.unlink()
                raise
    # Another file system: the original goes only when its copy is whole and on the disk
    partial = _partial(place)
    try:
        shutil.copy2(file, partial)
        flush_to_disk(partial)
        partial.replace(place)
    except OSError:
        partial.unlink(missing_ok=True)
        place.unlink()
        raise
    if not copy and filecmp.cmp(file, place, shallow=False):
        flush_folder(place.parent)
        file.unlink()


def _partial(place: Path) -> Path:
    return place.with_name(f".{hashlib.sha256(os.fsencode(place.name)).hexdigest()[:16]}.partial")


def _holds(file: Path, other: Path) -> bool:
    """Whether `file` has all that `other` has: the same bytes, or `other` is only a reserved name."""
    return other.stat().st_size == 0 or filecmp.cmp(file, other, shallow=False)


def _read(record: Path) -> tuple[str, list[tuple[Path, Path]]]:
    try:
        first, *lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
        if first["format"] != FORMAT or first["version"] != VERSION:
            raise ValueError(f"its format is not {FORMAT}, version {VERSION}")
        return first["how"], [(Path(line["from"]), Path(line["to"])) for line in lines]
    except OSError as error:
        raise UserError(f"cannot read {record} ({error.strerror}): give the moves-….jsonl of --move-to") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{record} is not a record of moves ({error}): give the moves-….jsonl of --move-to") from error


def _remove_empty_folders(folders: list[Path], top: Path) -> None:
    """Remove the folders that `put` made below `top`, where nothing else is in them."""
    for folder in sorted(set(folders), key=lambda path: len(path.parts), reverse=True):
        while folder != top and folder.is_relative_to(top) and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent
