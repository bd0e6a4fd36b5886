"""Writing a feature store: batch by batch into a partial folder, then at once into one HDF5 file.

The partial folder holds one raw file per array and a journal. HDF5 is not open while batches come in, so that a killed
process can leave nothing half-written inside it; the final file appears by a rename.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from common.files import atomic_path, canonical_json, write_text, writing_to
from common.store import BLOCK_BYTES, FORMAT, VERSION, FeatureStore, block_digests


def partial_folder(store: Path) -> Path:
    """Where the batches of a store under way are kept: beside it, hidden, on the same disk."""
    return store.with_name(f".{store.name}.partial")


class StoreWriter:
    """Collects the arrays of one store by ranges of rows; a later process goes on where this one was stopped.

    `plan` is any JSON value that fixes the content: a partial folder made under another plan is discarded.
    `layout` names the arrays that come in batches: {name: (dtype, shape)}; axis `row_axis` (1 for features, else 0) is N.
    """

    def __init__(self, target: Path, plan: dict[str, Any], layout: dict[str, tuple[str, tuple[int, ...]]]):
        self.target = target
        self.folder = partial_folder(target)
        self.layout = layout
        self._journal = self.folder / "journal.jsonl"
        self._plan = canonical_json([VERSION, plan, layout])
        with writing_to(target):
            self._prepare()
            self._arrays = {
                name: np.memmap(self.folder / name, dtype, "r+", shape=shape)
                for name, (dtype, shape) in layout.items()
            }
        self.done = self._read_journal()

    def write(self, start: int, batch: dict[str, np.ndarray]) -> None:
        """Store rows `start…` of every array of the layout, then note their digest in the journal."""
        stop = start + len(next(value for name, value in batch.items() if name != "features"))
        with writing_to(self.target):
            for name, array in self._arrays.items():
                _rows(name, array, start, stop)[...] = batch[name]
            entry = {"start": start, "stop": stop, "sha256": self._range_digest(start, stop)}
            with self._journal.open("a") as journal:
                journal.write(canonical_json(entry) + "\n")
        self.done[start] = stop

    def array(self, name: str) -> np.ndarray:
        """The rows written so far, for what is derived from them at the end."""
        return self._arrays[name]

    def finish(self, header: dict[str, Any], whole: dict[str, np.ndarray]) -> FeatureStore:
        """Write the HDF5 file from the batches and the arrays `whole`, put it in place, and clear the partial folder."""
        arrays = {**self._arrays, **whole}
        header = {
            **header,
            "block_bytes": BLOCK_BYTES,
            "blocks": {name: block_digests(a) for name, a in arrays.items()},
        }
        write_store(self.target, header, arrays)
        shutil.rmtree(self.folder)
        return FeatureStore.open(self.target)

    def _prepare(self) -> None:
        plan = self.folder / "plan.json"
        if plan.is_file() and plan.read_text() == self._plan:
            return
        if self.folder.exists():
            for leftover in self.folder.iterdir():
                leftover.unlink()
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, (dtype, shape) in self.layout.items():
            with (self.folder / name).open("wb") as file:
                file.truncate(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        write_text(plan, self._plan)  # last: a folder with a plan has all its files

    def _read_journal(self) -> dict[int, int]:
        """The ranges {start: stop} whose bytes are on disk as they were noted."""
        done: dict[int, int] = {}
        for line in self._journal.read_text().splitlines() if self._journal.exists() else []:
            try:
                entry = json.loads(line)
            except ValueError:  # the line that a kill cut off
                continue
            if self._range_digest(entry["start"], entry["stop"]) == entry["sha256"]:
                done[entry["start"]] = entry["stop"]
        if self._journal.exists() and not self._journal.read_text().endswith("\n"):
            with self._journal.open("a") as journal:
                journal.write("\n")
        return done

    def _range_digest(self, start: int, stop: int) -> str:
        digest = hashlib.sha256()
        for name, array in self._arrays.items():
            digest.update(np.ascontiguousarray(_rows(name, array, start, stop)))
        return digest.hexdigest()


def write_store(target: Path, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write one HDF5 file atomically; `header["blocks"]` must hold the digests of `arrays`."""
    import h5py

    from common.files import sha256_text

    text = canonical_json(header)
    with atomic_path(target) as temporary, h5py.File(temporary, "w", libver=("v108", "v108")) as file:
        file.attrs["format"] = FORMAT
        file.attrs["format_version"] = VERSION
        file.attrs["header_sha256"] = sha256_text(text)
        file.create_dataset("header", data=np.bytes_(text.encode()))
        for name, array in arrays.items():
            file.create_dataset(name, data=array)


def _rows(name: str, array: np.ndarray, start: int, stop: int) -> np.ndarray:
    return array[:, start:stop] if name == "features" else array[start:stop]
