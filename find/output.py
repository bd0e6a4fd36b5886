"""Where a run of `find` writes to: checked before anything is computed, written in an order that leaves no ruin."""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from common.errors import UserError
from common.files import (
    OUTPUT_MARK,
    claim_folder,
    exclusive,
    require_own_folder,
    require_writable,
    write_bytes,
    writing_to,
)  # fmt: skip
from common.progress import say
from common.store import SPLITS, FeatureStore
from find import review
from find.copying import copy_flagged, require_copy_target
from find.findings import Findings
from find.page import PICTURES, write_page

RUNS, STDOUT = Path("runs"), Path("-")
NAMED = 10  # files that a sentence names at most


@dataclass(kw_only=True)
class Output:
    """What one run writes, as asked for on the command line; made before anything is computed, and writes nothing yet.

    out: the folder of the page and its tables. root: of the images, or their table. reviewed: a file of marks. copy_to:
    a folder for copies of the flagged images. list_to: a file for their paths, "-" for the standard output. null: they
    end with NUL.
    Raises UserError where something is missing, cannot be read or written, or is somebody else's.
    """

    out: Path
    root: Path | None
    reviewed: Path | None
    copy_to: Path | None
    list_to: Path | None
    null: bool

    def __post_init__(self) -> None:
        require_own_folder(self.out)
        try:
            if self.root is not None:
                self.root = _folder_of_images(self.root)
            if self.null and self.list_to is None:
                raise UserError("--null does nothing without --list: leave it out, or give it")
            if self.list_to not in (None, STDOUT):
                if self.list_to.exists() and not self.list_to.is_file():
                    raise UserError(f"{self.list_to} is no regular file: give --list a file, or - for standard output")
                require_writable(self.list_to.parent)
            if self.copy_to is not None:
                if self.root is None:
                    raise UserError("it is not known where the images are: give --root, as when the store was made")
                require_copy_target(self.copy_to, self.root)
            self.reviews = review.read(self.reviewed) if self.reviewed else {}
        except OSError as error:  # such as a name that is too long
            reason = os.strerror(error.errno or 0).lower()
            raise UserError(f"cannot look at {error.filename} ({reason}): check the path") from error

    def write(self, findings: Findings, store: FeatureStore, settings: Mapping[str, Any]) -> None:
        """Write everything that was found in a store, and print the page's path last.

        settings: where the findings come from, beside what they say themselves.
        Raises UserError, which says what is complete, where something cannot be written.
        """
        root = str(self.root) if self.root else None
        findings = replace(findings, root=root, settings={**settings, **findings.settings})
        if self.reviews:
            own = [store.class_names[label] for label in store.labels] if findings.mode == "audit" else ()
            findings, unknown = review.apply(findings, self.reviews, *paths_and_splits(store), own)
            if unknown:
                say(f"{len(unknown):,} marks match no image: {_some(unknown, ', ')}")
        if self.out.parent == RUNS:  # also in a folder of pictures
            with writing_to(RUNS):
                RUNS.mkdir(exist_ok=True)
                (RUNS / OUTPUT_MARK).touch()
        claim_folder(self.out)
        busy = f"another process writes into {self.out}: wait for it, or choose another --out"
        parts = [self.out / name for name in ("findings.json", "findings.csv", "index.html")]
        elsewhere = [self.list_to] if self.list_to and self.list_to != STDOUT else []
        with exclusive(self.out / PICTURES, busy, *parts, *(self.out / PICTURES).glob("*/"), *elsewhere):
            findings.write(self.out)
            with _saying(f"{parts[0]} and {parts[1].name} are complete"):
                page = write_page(findings, self.out, thumbnails=store.thumbnails)
        say(findings.conclusion)
        with _saying(f"the page is complete: {page}"):
            if self.list_to:
                self._list(findings)
            refused = self._copy(findings, store)
            _print(os.fsencode(page) + b"\n", to_stderr=self.list_to == STDOUT)
            if refused:
                raise UserError(
                    f"{len(refused):,} of {len(findings.flagged):,} flagged images could not be copied to "
                    f"{self.copy_to}: {_some(refused, '; ')}"
                )

    def _list(self, findings: Findings) -> None:
        root = self.root or Path()
        paths = [os.fsencode(root / finding.path) for finding in findings.flagged]
        if not self.null and (broken := [path for path in paths if b"\n" in path]):
            raise UserError(f"{len(broken):,} flagged paths have a line break in them: give --null, for xargs -0")
        content = b"".join(path + (b"\0" if self.null else b"\n") for path in paths)
        if self.list_to == STDOUT:
            _print(content)
        elif self.list_to is not None:
            write_bytes(self.list_to, content)

    def _copy(self, findings: Findings, store: FeatureStore) -> list[str]:
        if self.copy_to is None or self.root is None:
            return []
        if not findings.flagged:
            say("no image is flagged: nothing is copied")
            return []
        least_side = store.header["provenance"].get("least_side")
        return copy_flagged(findings.flagged, self.root, self.copy_to, store.image_sha256, least_side)


def paths_and_splits(store: FeatureStore) -> tuple[list[str], list[str]]:
    """The path and the split of each image of a store."""
    return store.names(range(len(store.labels))), [SPLITS[number] for number in store.split]


def _folder_of_images(root: Path) -> Path:
    if root.is_file():
        root = root.parent  # a table: the paths in it are relative to its folder
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: give --root the folder of the images, as when they were read")
    return root.resolve()


@contextlib.contextmanager
def _saying(complete: str) -> Iterator[None]:
    """Add what is complete to a UserError of the body."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error.message}; {complete}") from error


def _print(content: bytes, to_stderr: bool = False) -> None:
    """Print; where that fails, the interpreter must not try again when it ends."""
    try:
        with writing_to(Path("the standard output")):
            click.echo(content, nl=False, err=to_stderr)
    except UserError:
        with contextlib.suppress(OSError, ValueError):  # a stream that is no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _some(texts: Sequence[str], separator: str) -> str:
    more = f" and {len(texts) - NAMED:,} more" if len(texts) > NAMED else ""
    return separator.join(texts[:NAMED]) + more
