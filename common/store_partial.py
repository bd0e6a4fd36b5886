"""Writes a feature store batch by batch, so that an interrupted extraction can be resumed.

The unfinished store is a file in a partial folder. Arrays that come in batches are written at their final place in it,
everything else is written last, and then the file is renamed to its target. Beside the file are a plan and a journal,
which holds the digest of each batch that is written. Only the same version of the code can use such a folder.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import LOCK, canonical_json, exclusive, sha256_text, write_bytes, write_text, writing_to
from common.store import FeatureStore, read_at
from common.store_header import ArrayPlace
from common.store_writer import Layout, complete_store, places_of, write_all

KIND = 4  # goes up when something else is in the folder
FILE, KEPT, PLAN, JOURNAL = "store.h5", "kept.h5", "plan.json", "journal"
DIGEST = 32  # bytes; zeros for a batch that is not written
BESIDE = 100  # bytes of an image for what is written last, mainly its name
ROWS = 1 << 14  # copied at a time, where rows are left out


def partial_folder(store: Path) -> Path:
    """The folder of the unfinished store: hidden, beside the target, on the same disk."""
    return store.with_name(f".{store.name}.partial")


def read_progress(store: Path) -> tuple[int, int] | None:
    """The numbers of rows (written, N) of an unfinished store, None where there is none."""
    plan = read_plan(store)
    if not plan:
        return None
    starts = np.flatnonzero(_read_journal(partial_folder(store), plan).any(1)) * plan["batch_size"]
    return int(np.minimum(plan["batch_size"], plan["n"] - starts).sum()), plan["n"]


def read_plan(store: Path) -> dict[str, Any]:
    """The plan of an unfinished store, {} where there is none, or it is damaged."""
    return _read_content(partial_folder(store)).get("plan", {})


def clear_up(store: FeatureStore) -> None:
    """Remove the files that a process left beside its finished store when it was killed just before its end.

    The partial folder stays where it is of another request, whose store is to replace this one.
    """
    with contextlib.suppress(UserError, OSError):
        leftovers = [path for path in store.path.parent.iterdir() if path.name.startswith(f".{store.path.stem}.")]
        folder = partial_folder(store.path)
        if leftovers:
            with exclusive(folder, "another process makes it", store.path):
                content = _read_content(folder)  # without a plan nothing can be resumed
                request = store.header["provenance"]["request"]
                if not content or {**content["plan"].get("request", {}), "fingerprint": content["source"]} == request:
                    _clear(folder)


class PartialStore:
    """Writes one store in batches of rows; if it is stopped, a later process resumes it.

    plan: a JSON object that fixes the content; "n" in it is N, "batch_size" the rows of each batch but the last. A
    partial folder of another plan is discarded, and so is a damaged one; `discarded` then says why.
    layout: the arrays that come in batches, of `common.store_writer.BATCHED`. N is axis 1 of features, else 0.
    source: a fingerprint of the image files. `source_changed` is true if the folder has another one: then call
    `keep_unchanged` before anything is written.

    Only one writer may use a target at a time: hold `common.files.exclusive(partial_folder(target), …)`.
    """

    def __init__(self, target: Path, plan: dict[str, Any], layout: Layout, source: str = ""):
        self.target, self.folder = target, partial_folder(target)
        self._n, self._batch_size = plan["n"], plan["batch_size"]
        self._layout, self._places = layout, places_of(layout)
        self._content: dict[str, Any] = {"version": KIND, "plan": plan, "layout": layout, "source": source}
        with writing_to(target):
            previous = _read_content(self.folder)
            self.discarded = self._why_unusable(previous)
            if self.discarded is not None:
                self._begin()
            self.source_changed = self.discarded is None and previous["source"] != source
            self._file = (self.folder / FILE).open("r+b", buffering=0)
            # An array, because the memory must not grow with the work
            self._digests = _read_journal(self.folder, plan)
            for start, stop in self.done.items():
                if not self._is_sound(start, stop):
                    self._digests[start // self._batch_size] = 0
            write_bytes(self.folder / JOURNAL, self._digests.tobytes())
            self._journal = (self.folder / JOURNAL).open("r+b", buffering=0)

    @property
    def done(self) -> dict[int, int]:
        """The ranges {start: stop} that are written."""
        return {start: min(start + self._batch_size, self._n) for start in self._starts(written=True)}

    @property
    def rows_done(self) -> int:
        """The number of rows that are written."""
        return sum(stop - start for start, stop in self.done.items())

    def missing(self) -> list[int]:
        """The first rows of the batches that are not yet written."""
        return self._starts(written=False)

    def keep_unchanged(self, same: Callable[[int, np.ndarray], bool]) -> None:
        """Keep the batches whose images have the same pixels as before, drop the others, and note the new source.

        same: whether the images from row `start` on have these digests (B, 32), which were stored with their features.
        """
        for start, stop in self.done.items():
            digests = np.frombuffer(self._read("image_sha256", start, stop), np.uint8)
            if not same(start, digests.reshape(-1, DIGEST)):
                self._note(start, bytes(DIGEST))
        with writing_to(self.target):
            _write_content(self.folder, self._content)
        self.source_changed = False

    def write(self, start: int, batch: dict[str, np.ndarray]) -> None:
        """Write a batch, the rows from `start` on of every array of the layout; then note its digest in the journal."""
        stop, digest = start + batch["features"].shape[1], hashlib.sha256()
        with writing_to(self.target):
            for name, (dtype, _) in self._layout.items():
                part = np.ascontiguousarray(batch[name], dtype)
                digest.update(part.data)
                ranges = row_ranges(name, self._places[name], start, stop)
                for (offset, _), rows in zip(ranges, part if name == "features" else [part], strict=True):
                    self._file.seek(offset)
                    write_all(self._file, rows)
        self._note(start, digest.digest())

    def array(self, name: str) -> np.ndarray:
        """An array of the layout as written so far, mapped; rows that are missing are zeros."""
        place = self._places[name]
        return np.memmap(self.folder / FILE, place.dtype, "r", place.offset, place.shape)

    def finish(
        self, header: dict[str, Any], whole: dict[str, np.ndarray], rows: np.ndarray | None = None
    ) -> FeatureStore:
        """Add the header and the arrays `whole` to the file, put it in place, and clear the partial folder.

        rows: those of the batches that the store gets, ascending; None for all, without any copy.
        Raises UserError where what is read back from the disk is not what was written, and as `write_store` does.
        """
        if missing := self.missing():
            raise ValueError(f"all batches must be written, {len(missing)} are missing")
        with writing_to(self.target):
            os.fsync(self._file.fileno())
        for start, stop in self.done.items():
            if not self._is_sound(start, stop):
                raise UserError(
                    f"{self.target} was not put in place: images {start} to {stop - 1}, read back from the disk, are "
                    "not what was written. Check the disk and the memory, and run the same command again"
                )
        file, layout = (FILE, self._layout) if rows is None else self._copy(rows)
        self._file.close()
        self._journal.close()
        complete_store(self.folder / file, self.target, header, layout, whole)
        with writing_to(self.target):
            _clear(self.folder)
        return FeatureStore.open(self.target)

    def _copy(self, rows: np.ndarray) -> tuple[str, Layout]:
        """Copy some of the rows into a second file. Moving them within the first one could not be resumed."""
        layout: Layout = {}
        for name, (dtype, shape) in self._layout.items():
            axis = int(name == "features")
            layout[name] = dtype, (*shape[:axis], len(rows), *shape[axis + 1 :])
        places = places_of(layout)
        with writing_to(self.target):
            self._require_space(sum(place.nbytes for place in places.values()))
            with (self.folder / KEPT).open("wb", buffering=0) as file:
                for name, place in places.items():
                    array = self.array(name) if name == "features" else self.array(name)[None]
                    for view, (offset, _) in zip(array, row_ranges(name, place, 0, 0), strict=True):
                        file.seek(offset)
                        for start in range(0, len(rows), ROWS):
                            write_all(file, view[rows[start : start + ROWS]])
        return KEPT, layout

    def _why_unusable(self, previous: dict[str, Any]) -> str | None:
        """Return why the folder cannot be resumed, "" if it is empty, None if it can."""
        if not previous:
            files = self.folder.is_dir() and {path.name for path in self.folder.iterdir()} - {LOCK}
            return "is damaged" if files else ""
        wanted = json.loads(canonical_json(self._content))
        if previous["plan"] != wanted["plan"]:
            keys = sorted(set(previous["plan"]) | set(wanted["plan"]))
            return "had another " + ", ".join(k for k in keys if previous["plan"].get(k) != wanted["plan"].get(k))
        if {**previous, "source": ""} != {**wanted, "source": ""}:
            return "is of another version"
        path = self.folder / FILE
        if not path.is_file() or path.stat().st_size < self._stop:
            return f"is damaged ({FILE} is missing or too short)"
        return None

    @property
    def _stop(self) -> int:
        return max(place.stop for place in self._places.values())

    def _begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        _clear(self.folder)
        self._require_space(self._stop + BESIDE * self._n)
        with (self.folder / FILE).open("wb") as file:
            reserve(file.fileno(), self._stop)
        _write_content(self.folder, self._content)  # last: a folder with a plan has all its files

    def _require_space(self, needed: int) -> None:
        if needed > shutil.disk_usage(self.folder).free:
            raise UserError(
                f"no space for {self.target}: it needs {needed / 1e6:,.0f} MB; free some, or choose another --store"
            )

    def _read(self, name: str, start: int, stop: int) -> bytes:
        """Return rows of an array from the disk; b"" on an error, so that the digest does not match."""
        ranges = row_ranges(name, self._places[name], start, stop)
        with contextlib.suppress(OSError):
            return b"".join(read_at(self._file, offset, size) for offset, size in ranges)
        return b""

    def _is_sound(self, start: int, stop: int) -> bool:
        """Whether a batch on the disk has the digest that the journal notes."""
        digest = hashlib.sha256(b"".join(self._read(name, start, stop) for name in self._layout)).digest()
        return digest == self._digests[start // self._batch_size].tobytes()

    def _starts(self, written: bool) -> list[int]:
        return (np.flatnonzero(self._digests.any(1) == written) * self._batch_size).tolist()

    def _note(self, start: int, digest: bytes) -> None:
        number = start // self._batch_size
        with writing_to(self.target):
            self._journal.seek(number * DIGEST)
            write_all(self._journal, digest)
        self._digests[number] = np.frombuffer(digest, np.uint8)


def row_ranges(name: str, place: ArrayPlace, start: int, stop: int) -> list[tuple[int, int]]:
    """The (offset, bytes) of rows of an array in the file, one for each view."""
    views, n = place.shape[:2] if name == "features" else (1, place.shape[0])
    width = place.nbytes // (views * n)
    return [(place.offset + (view * n + start) * width, (stop - start) * width) for view in range(views)]


def reserve(file: int, size: int) -> None:
    """Reserve `size` bytes on the disk for an open file, so that a full disk is noticed before hours of work."""
    if hasattr(os, "posix_fallocate"):
        with contextlib.suppress(NotImplementedError):
            os.posix_fallocate(file, 0, size)
            return
    os.truncate(file, size)


def _read_content(folder: Path) -> dict[str, Any]:
    """The content of the plan's file, {} where it is missing or damaged."""
    try:
        sealed = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        content = sealed["content"]
        return content if sealed["sha256"] == sha256_text(canonical_json(content)) else {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}


def _write_content(folder: Path, content: dict[str, Any]) -> None:
    sealed = {"content": content, "sha256": sha256_text(canonical_json(content))}
    write_text(folder / PLAN, canonical_json(sealed))


def _read_journal(folder: Path, plan: dict[str, Any]) -> np.ndarray:
    """The digests (batches, 32) in the journal; zeros where it ends early, as after a kill."""
    size = -(-plan["n"] // plan["batch_size"]) * DIGEST
    try:
        content = (folder / JOURNAL).read_bytes()[:size]
    except OSError:
        content = b""
    return np.frombuffer(bytearray(content.ljust(size, b"\0")), np.uint8).reshape(-1, DIGEST)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:  # `exclusive` removes it and the empty folder, when nobody else can hold it
            path.unlink()
