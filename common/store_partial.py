"""A feature store under way: batch by batch into a partial folder, in the end at once into one HDF5 file.

The partial folder holds one raw file per array, a plan and a journal. It is private to one version of the code.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import LOCK, canonical_json, exclusive, sha256_text, write_text, writing_to
from common.store import VERSION, FeatureStore
from common.store_format import read_at
from common.store_writer import write_all, write_store

Layout = dict[str, tuple[str, tuple[int, ...]]]


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
                content = _read_content(folder)
                made = store.header["provenance"]["request"]
                if content and {**content["plan"].get("request", {}), "fingerprint": content["source"]} == made:
                    _clear(folder)


class StoreWriter:
    """Collects the arrays of one store by batches of rows; a later process goes on where this one was stopped.

    `plan` is a JSON object that fixes the content; "n" in it is N, "batch_size" the rows of each batch but the last.
    A partial folder of another plan is discarded, and so is a damaged one; `discarded` then says why.
    `layout` names the arrays that come in batches, {name: (dtype, shape)}. N is axis 1 of features, axis 0 of others.
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
        self._content: dict[str, Any] = {"version": VERSION, "plan": plan, "layout": layout, "source": source}
        with writing_to(target):
            begun = _read_content(self.folder)
            self.discarded = self._why_unusable(begun)
            if self.discarded is not None:
                self._begin()
            self.moved = self.discarded is None and begun["source"] != source
            self._files = {name: (self.folder / name).open("r+b", buffering=0) for name in layout}
            journal = _read_journal(self._journal, plan["n"], plan["batch_size"])
            self._digests = {
                start: (stop, digest)
                for start, (stop, digest) in journal.items()
                if self._digest(self._read(start, stop)) == digest
            }
            self._write_journal()

    @property
    def done(self) -> dict[int, int]:
        """The ranges {start: stop} that are written."""
        return {start: stop for start, (stop, _) in self._digests.items()}

    def missing(self) -> list[int]:
        """The first rows of the batches that are not yet written."""
        plan = self._content["plan"]
        return [start for start in range(0, plan["n"], plan["batch_size"]) if start not in self._digests]

    def keep(self, same: Callable[[int, np.ndarray], bool]) -> None:
        """Keep the batches whose images are the same though their files are not, and note the new source.

        same: whether the images from row `start` on have the digests (B, 32) that were stored with their features.
        """
        for start, stop in self.done.items():
            digests = self._read(start, stop)["image_sha256"]
            if not same(start, np.frombuffer(digests, np.uint8).reshape(-1, 32)):
                del self._digests[start]
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
                    self._offsets(name, start), part if name == "features" else [part], strict=True
                ):
                    self._files[name].seek(offset)
                    write_all(self._files[name], rows)
            digest = self._digest({name: part.tobytes() for name, part in parts.items()})
            with self._journal.open("a", encoding="utf-8") as journal:
                journal.write(_journal_line(start, stop, digest))
        self._digests[start] = stop, digest

    def array(self, name: str) -> np.ndarray:
        """The rows written so far, for what is derived from them at the end."""
        dtype, shape = self._layout[name]
        return np.memmap(self.folder / name, dtype, "r", shape=shape)

    def finish(
        self, header: dict[str, Any], whole: dict[str, np.ndarray], rows: np.ndarray | None = None
    ) -> FeatureStore:
        """Write the HDF5 file from the batches and the arrays `whole`, put it in place, clear the partial folder.

        rows: those of the batches that are kept, ascending; None for all.
        """
        if missing := self.missing():
            raise ValueError(f"all batches must be written, {len(missing)} are missing")
        arrays = {name: self.array(name) for name in self._layout}
        if rows is not None:
            arrays = {name: array.take(rows, axis=int(name == "features")) for name, array in arrays.items()}
        write_store(self.target, header, {**arrays, **whole})
        for file in self._files.values():
            file.close()
        with writing_to(self.target):
            _clear(self.folder)
        return FeatureStore.open(self.target)

    def _why_unusable(self, begun: dict[str, Any]) -> str | None:
        """Why the folder cannot be gone on with, "" where there is nothing in it, None where it can."""
        if not begun:
            there = self.folder.is_dir() and {path.name for path in self.folder.iterdir()} - {LOCK}
            return "is damaged" if there else ""
        wanted = json.loads(canonical_json(self._content))
        if begun["plan"] != wanted["plan"]:
            keys = sorted(set(begun["plan"]) | set(wanted["plan"]))
            return "had another " + ", ".join(k for k in keys if begun["plan"].get(k) != wanted["plan"].get(k))
        if {**begun, "source": ""} != {**wanted, "source": ""}:
            return "is of another version"
        for name, (dtype, shape) in self._layout.items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != prod(shape) * np.dtype(dtype).itemsize:
                return f"is damaged ({name} is missing or has another size)"
        return None

    def _begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        _clear(self.folder)
        sizes = {name: prod(shape) * np.dtype(dtype).itemsize for name, (dtype, shape) in self._layout.items()}
        needed = 2 * sum(sizes.values())
        if needed > shutil.disk_usage(self.folder).free:
            raise UserError(
                f"no space for {self.target}: it needs {needed / 1e6:,.0f} MB while it is made; "
                "free some, or choose another --store"
            )
        for name, size in sizes.items():
            with (self.folder / name).open("wb") as file:
                _reserve(file.fileno(), size)
        _write_content(self.folder, self._content)  # last: a folder with a plan has all its files

    def _offsets(self, name: str, start: int) -> list[int]:
        """Where row `start` begins in the file of an array, for each view."""
        dtype, shape = self._layout[name]
        views = shape[0] if name == "features" else 1
        n, *row = shape[1:] if name == "features" else shape
        width = prod(row) * np.dtype(dtype).itemsize
        return [(view * n + start) * width for view in range(views)]

    def _read(self, start: int, stop: int) -> dict[str, bytes]:
        parts = {}
        for name, file in self._files.items():
            ranges = zip(self._offsets(name, start), self._offsets(name, stop), strict=True)
            parts[name] = b"".join(_read_or_nothing(file, a, b - a) for a, b in ranges)
        return parts

    def _digest(self, parts: dict[str, bytes]) -> str:
        return hashlib.sha256(b"".join(parts[name] for name in self._layout)).hexdigest()

    def _write_journal(self) -> None:
        lines = [_journal_line(start, stop, digest) for start, (stop, digest) in self._digests.items()]
        write_text(self._journal, "".join(lines))


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


def _reserve(file: int, size: int) -> None:
    # A full disk shows now, before hours of work
    if hasattr(os, "posix_fallocate"):
        with contextlib.suppress(NotImplementedError):
            os.posix_fallocate(file, 0, size)
            return
    os.truncate(file, size)
