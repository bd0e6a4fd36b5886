"""A feature store under way: batch by batch into a file in a partial folder, which in the end takes its place.

In the file, the arrays that come in batches lie where they will stay; the rest is written last. Beside it are a plan
and a journal. The folder is private to one version of the code.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import LOCK, canonical_json, exclusive, sha256_text, write_text, writing_to
from common.store import FeatureStore
from common.store_format import read_at
from common.store_writer import Layout, complete_store, places_of, reserve, row_offsets, write_all

KIND = 3  # goes up when something else is in the folder
FILE, KEPT = "store.h5", "kept.h5"
BESIDE = 100  # bytes of an image for what is written last, its name above all
ROWS = 1 << 14  # copied at a time, where rows are left out


def partial_folder(store: Path) -> Path:
    """Where the batches of a store under way are kept: beside it, hidden, on the same disk."""
    return store.with_name(f".{store.name}.partial")


def read_progress(store: Path) -> tuple[int, int] | None:
    """The rows (written, N) of a store under way, or None when none is."""
    plan = read_plan(store)
    if not plan:
        return None
    journal = _read_journal(partial_folder(store) / "journal.jsonl", plan["n"], plan["batch_size"])
    return sum(stop - start for start, (stop, _) in journal.items()), plan["n"]


def read_plan(store: Path) -> dict[str, Any]:
    """The plan of a store under way, or {} when none is, or it is damaged."""
    return _read_content(partial_folder(store)).get("plan", {})


def clear_up(store: FeatureStore) -> None:
    """Remove what a process that was killed in its last moment left beside the store that it had completed.

    A store under way that is to replace this one by something else stays.
    """
    with contextlib.suppress(UserError, OSError):
        leftovers = [path for path in store.path.parent.iterdir() if path.name.startswith(f".{store.path.stem}.")]
        folder = partial_folder(store.path)
        if leftovers:
            with exclusive(folder, "another process makes it", store.path):
                content = _read_content(folder)  # nothing can be gone on with where there is no plan
                made = store.header["provenance"]["request"]
                if not content or {**content["plan"].get("request", {}), "fingerprint": content["source"]} == made:
                    _clear(folder)


class StoreWriter:
    """Collects the arrays of one store by batches of rows; a later process goes on where this one was stopped.

    `plan` is a JSON object that fixes the content; "n" in it is N, "batch_size" the rows of each batch but the last.
    A partial folder of another plan is discarded, and so is a damaged one; `discarded` then says why.
    `layout` names the arrays that come in batches, of `common.store_writer.BATCHED`. N is axis 1 of features, axis 0
    of others.
    `source` is a sign of the files that rows are made from. Where another one is noted, `moved` is true: then `keep`
    must be asked before anything is written.
    `done` holds the ranges {start: stop} that are written.

    Only one writer may use a target at a time: hold `common.files.exclusive(partial_folder(target), …)`.
    """

    def __init__(self, target: Path, plan: dict[str, Any], layout: Layout, source: str = ""):
        self.target = target
        self.folder = partial_folder(target)
        self._journal = self.folder / "journal.jsonl"
        self._layout = layout
        self._places = places_of(layout)
        self._content: dict[str, Any] = {"version": KIND, "plan": plan, "layout": layout, "source": source}
        with writing_to(target):
            previous = _read_content(self.folder)
            self.discarded = self._why_unusable(previous)
            if self.discarded is not None:
                self._begin()
            self.moved = self.discarded is None and previous["source"] != source
            self._file = (self.folder / FILE).open("r+b", buffering=0)
            # An array, because the memory must not grow with the work
            self._digests = np.zeros((-(-plan["n"] // plan["batch_size"]), 32), np.uint8)
            for start, (stop, digest) in _read_journal(self._journal, plan["n"], plan["batch_size"]).items():
                if self._digest(self._read(start, stop)) == digest:
                    self._note(start, digest)
            self._write_journal()

    @property
    def done(self) -> dict[int, int]:
        """The ranges {start: stop} that are written."""
        return {start: self._stop_of(start) for start in self._starts(written=True)}

    def missing(self) -> list[int]:
        """The first rows of the batches that are not yet written."""
        return self._starts(written=False)

    def keep(self, same: Callable[[int, np.ndarray], bool]) -> None:
        """Keep the batches whose images are the same though their files are not, and note the new source.

        same: whether the images from row `start` on have the digests (B, 32) that were stored with their features.
        """
        for start, stop in self.done.items():
            digests = self._read(start, stop)["image_sha256"]
            if not same(start, np.frombuffer(digests, np.uint8).reshape(-1, 32)):
                self._note(start, bytes(32).hex())
        with writing_to(self.target):
            self._write_journal()
            _write_content(self.folder, self._content)
        self.moved = False

    def write(self, start: int, batch: dict[str, np.ndarray]) -> None:
        """Store rows `start…` of every array of the layout, then note their digest in the journal."""
        stop = start + batch["features"].shape[1]
        parts = {name: np.ascontiguousarray(batch[name], dtype) for name, (dtype, _) in self._layout.items()}
        with writing_to(self.target):
            for name, part in parts.items():
                for offset, rows in zip(
                    row_offsets(name, self._places[name], start), part if name == "features" else [part], strict=True
                ):
                    self._file.seek(offset)
                    write_all(self._file, rows)
            digest = self._digest({name: part.tobytes() for name, part in parts.items()})
            with self._journal.open("a", encoding="utf-8") as journal:
                journal.write(_journal_line(start, stop, digest))
        self._note(start, digest)

    def array(self, name: str) -> np.ndarray:
        """The rows written so far, for what is derived from them at the end."""
        place = self._places[name]
        return np.memmap(self.folder / FILE, place.dtype, "r", place.offset, place.shape)

    def finish(
        self, header: dict[str, Any], whole: dict[str, np.ndarray], rows: np.ndarray | None = None
    ) -> FeatureStore:
        """Complete the file with header and the arrays `whole`, put it in place, clear the partial folder.

        rows: those of the batches that are kept, ascending; None for all, and then nothing that is written is copied.
        Raises UserError where the disk does not give back what it was given, and as `write_store` does.
        """
        if missing := self.missing():
            raise ValueError(f"all batches must be written, {len(missing)} are missing")
        with writing_to(self.target):
            os.fsync(self._file.fileno())
        for start, stop in self.done.items():
            if self._digest(self._read(start, stop)) != self._noted(start):
                raise UserError(
                    f"{self.target} was not put in place: images {start} to {stop - 1}, read back from the disk, are "
                    "not what was written. Check the disk and the memory, and run the same command again"
                )
        self._file.close()
        file, layout = (FILE, self._layout) if rows is None else self._copy(rows)
        complete_store(self.folder / file, self.target, header, layout, whole)
        with writing_to(self.target):
            _clear(self.folder)
        return FeatureStore.open(self.target)

    def _copy(self, rows: np.ndarray) -> tuple[str, Layout]:
        """Another file of some of the rows alone: moved within the first one, they could not be gone on with."""
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
                    for view, offset in zip(array, row_offsets(name, place, 0), strict=True):
                        file.seek(offset)
                        for start in range(0, len(rows), ROWS):
                            write_all(file, view[rows[start : start + ROWS]])
        return KEPT, layout

    def _why_unusable(self, previous: dict[str, Any]) -> str | None:
        """Why the folder cannot be gone on with, "" where there is nothing in it, None where it can."""
        if not previous:
            there = self.folder.is_dir() and {path.name for path in self.folder.iterdir()} - {LOCK}
            return "is damaged" if there else ""
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
        self._require_space(self._stop + BESIDE * self._content["plan"]["n"])
        with (self.folder / FILE).open("wb") as file:
            reserve(file.fileno(), self._stop)
        _write_content(self.folder, self._content)  # last: a folder with a plan has all its files

    def _require_space(self, needed: int) -> None:
        if needed > shutil.disk_usage(self.folder).free:
            raise UserError(
                f"no space for {self.target}: it needs {needed / 1e6:,.0f} MB; free some, or choose another --store"
            )

    def _read(self, start: int, stop: int) -> dict[str, bytes]:
        parts = {}
        for name in self._layout:
            ranges = zip(
                row_offsets(name, self._places[name], start), row_offsets(name, self._places[name], stop), strict=True
            )
            parts[name] = b"".join(_read_or_nothing(self._file, a, b - a) for a, b in ranges)
        return parts

    def _digest(self, parts: dict[str, bytes]) -> str:
        return hashlib.sha256(b"".join(parts[name] for name in self._layout)).hexdigest()

    def _write_journal(self) -> None:
        write_text(self._journal, "".join(_journal_line(a, b, self._noted(a)) for a, b in self.done.items()))

    def _starts(self, written: bool) -> list[int]:
        return (np.flatnonzero(self._digests.any(1) == written) * self._content["plan"]["batch_size"]).tolist()

    def _stop_of(self, start: int) -> int:
        return min(start + self._content["plan"]["batch_size"], self._content["plan"]["n"])

    def _note(self, start: int, digest: str) -> None:
        self._digests[start // self._content["plan"]["batch_size"]] = np.frombuffer(bytes.fromhex(digest), np.uint8)

    def _noted(self, start: int) -> str:
        return self._digests[start // self._content["plan"]["batch_size"]].tobytes().hex()


def _read_content(folder: Path) -> dict[str, Any]:
    """What plan.json says, {} where it is missing or not what was written."""
    try:
        sealed = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        content = sealed["content"]
        return content if sealed["sha256"] == sha256_text(canonical_json(content)) else {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}


def _write_content(folder: Path, content: dict[str, Any]) -> None:
    sealed = {"content": content, "sha256": sha256_text(canonical_json(content))}
    write_text(folder / "plan.json", canonical_json(sealed))


def _read_journal(journal: Path, n: int, batch_size: int) -> dict[int, tuple[int, str]]:
    """The batches {start: (stop, digest)} that a journal notes; a line that is no batch of the plan is passed over."""
    found = {}
    try:
        lines = journal.read_bytes().splitlines()
    except OSError:
        return {}
    for line in lines:
        try:
            entry = json.loads(line)
            start, stop, digest = entry["start"], entry["stop"], entry["sha256"]
        except (ValueError, TypeError, KeyError, RecursionError):  # such as the line that a kill cut off
            continue
        if type(start) is int and start in range(0, n, batch_size) and stop == min(start + batch_size, n):
            found[start] = int(stop), digest
    return found


def _journal_line(start: int, stop: int, digest: str) -> str:
    return canonical_json({"start": start, "stop": stop, "sha256": digest}) + "\n"


def _read_or_nothing(file: FileIO, offset: int, size: int) -> bytes:
    try:
        return read_at(file, offset, size)
    except OSError:  # its digest then tells that it must be made again
        return b""


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:  # `exclusive` removes it and the empty folder, when nobody else can hold it
            path.unlink()
