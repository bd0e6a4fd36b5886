"""Writing a feature store: batch by batch into a partial folder, then at once into one HDF5 file.

The partial folder holds one raw file per array and a journal. HDF5 is not open while batches come in, so that a killed
process leaves nothing half-written inside it; the final file appears by a rename.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import LOCK, atomic_path, canonical_json, sha256_text, write_text, writing_to
from common.store import BLOCK_BYTES, FORMAT, VERSION, FeatureStore, block_digests

Layout = dict[str, tuple[str, tuple[int, ...]]]


def partial_folder(store: Path) -> Path:
    """Where the batches of a store under way are kept: beside it, hidden, on the same disk."""
    return store.with_name(f".{store.name}.partial")


def read_progress(store: Path) -> tuple[int, int] | None:
    """The rows (written, N) of a store under way, or None when none is."""
    plan = read_plan(store)
    if not plan:
        return None
    entries = _journal_entries(partial_folder(store) / "journal.jsonl")
    return sum(entry["stop"] - entry["start"] for entry in entries), plan["n"]


def read_plan(store: Path) -> dict[str, Any]:
    """The plan of a store under way, or {} when none is."""
    try:
        _, plan, _ = json.loads((partial_folder(store) / "plan.json").read_text())
        return plan
    except (OSError, ValueError):
        return {}


class StoreWriter:
    """Collects the arrays of one store by ranges of rows; a later process goes on where this one was stopped.

    `plan` is a JSON object that fixes the content: a partial folder made under another plan is discarded. Its "n" is N.
    `layout` names the arrays that come in batches, {name: (dtype, shape)}. N is axis 1 of features, axis 0 of others.
    `done` holds the ranges {start: stop} that are written.

    Only one writer may use a target at a time: hold `common.files.exclusive(partial_folder(target), …)`.
    """

    def __init__(self, target: Path, plan: dict[str, Any], layout: Layout):
        self.target = target
        self.folder = partial_folder(target)
        self._journal = self.folder / "journal.jsonl"
        with writing_to(target):
            self._prepare(canonical_json([VERSION, plan, layout]), layout)
        self._arrays = {
            name: np.memmap(self.folder / name, dtype, "r+", shape=shape) for name, (dtype, shape) in layout.items()
        }
        self.done = self._read_journal()

    def write(self, start: int, batch: dict[str, np.ndarray]) -> None:
        """Store rows `start…` of every array of the layout, then note their digest in the journal."""
        stop = start + batch["features"].shape[1]
        for name, array in self._arrays.items():
            _rows(name, array, start, stop)[...] = batch[name]
        entry = {"start": start, "stop": stop, "sha256": self._range_digest(start, stop)}
        with writing_to(self.target), self._journal.open("a") as journal:
            journal.write(canonical_json(entry) + "\n")
        self.done[start] = stop

    def array(self, name: str) -> np.ndarray:
        """The rows written so far, for what is derived from them at the end."""
        return self._arrays[name]

    def finish(self, header: dict[str, Any], whole: dict[str, np.ndarray]) -> FeatureStore:
        """Write the HDF5 file from the batches and the arrays `whole`, put it in place, clear the partial folder."""
        write_store(self.target, header, {**self._arrays, **whole})
        self._clear()
        with contextlib.suppress(OSError):
            self.folder.rmdir()  # the lock is in it, where there is one
        return FeatureStore.open(self.target)

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            if path.name != LOCK:  # `exclusive` removes it and the empty folder, when nobody else can hold it
                path.unlink()

    def _prepare(self, plan: str, layout: Layout) -> None:
        plan_file = self.folder / "plan.json"
        if plan_file.is_file() and plan_file.read_text() == plan:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._clear()
        needed = sum(_bytes_of(dtype, shape) for dtype, shape in layout.values())
        if 2 * needed > shutil.disk_usage(self.folder).free:
            raise UserError(
                f"no space for {self.target}: it needs {2 * needed / 1e6:,.0f} MB while it is made; "
                "free some, or choose another --store"
            )
        for name, (dtype, shape) in layout.items():
            with (self.folder / name).open("wb") as file:
                _reserve(file.fileno(), _bytes_of(dtype, shape))
        write_text(plan_file, plan)  # last: a folder with a plan has all its files

    def _read_journal(self) -> dict[int, int]:
        """The ranges whose bytes are on the disk as they were noted; the journal is rewritten without the others."""
        sound = [e for e in _journal_entries(self._journal) if self._range_digest(e["start"], e["stop"]) == e["sha256"]]
        with writing_to(self.target):
            write_text(self._journal, "".join(canonical_json(entry) + "\n" for entry in sound))
        return {entry["start"]: entry["stop"] for entry in sound}

    def _range_digest(self, start: int, stop: int) -> str:
        digest = hashlib.sha256()
        for name, array in self._arrays.items():
            digest.update(_rows(name, array, start, stop).tobytes())
        return digest.hexdigest()


def write_store(target: Path, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write one feature store atomically; the digests of the blocks are added to `header`, which is sealed."""
    import h5py

    blocks = {name: block_digests(array) for name, array in arrays.items()}
    text = canonical_json({**header, "block_bytes": BLOCK_BYTES, "blocks": blocks})
    with (
        atomic_path(target) as temporary,
        _system_errors(),
        h5py.File(temporary, "w", libver=("v108", "v108")) as file,
    ):
        file.attrs["format"] = FORMAT
        file.attrs["format_version"] = VERSION
        file.attrs["header_sha256"] = sha256_text(text)
        file.create_dataset("header", data=np.bytes_(text.encode()))
        for name, array in arrays.items():
            file.create_dataset(name, data=array)


@contextlib.contextmanager
def _system_errors() -> Iterator[None]:
    """Raise the OSError that HDF5 reports in the words of its own errors: "… errno = 28 …"."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = re.search(r"errno = (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), str(error)) from error


def _rows(name: str, array: np.ndarray, start: int, stop: int) -> np.ndarray:
    return array[:, start:stop] if name == "features" else array[start:stop]


def _bytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def _reserve(file: int, size: int) -> None:
    # A full disk must show now, as an error: later, a write into the map would kill the process
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)


def _journal_entries(journal: Path) -> list[dict[str, Any]]:
    entries = []
    for line in journal.read_text().splitlines() if journal.exists() else []:
        try:
            entries.append(json.loads(line))
        except ValueError:  # the line that a kill cut off
            continue
    return entries
