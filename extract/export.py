"""A feature store as a file that other programs read: NumPy's npz, Parquet or safetensors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from common.errors import UserError, import_optional
from common.files import atomic_path
from common.images import printable
from common.store import SPLITS, FeatureStore

ROWS = 10_000  # of a group of rows in Parquet


def export_store(store: FeatureStore, out: Path, overwrite: bool = False) -> None:
    """Write the features, labels, splits, file names and class names of a store to `out`; its ending says in what.

    Every byte that is read is verified, and `out` is written atomically. The features are not held in memory.
    Raises UserError for an unknown ending, a file that is there unless `overwrite`, or a missing library, and
    DamagedStore.
    """
    if out.suffix.lower() not in WRITERS:
        raise UserError(f"{out}: the ending says what is written: choose {', '.join(WRITERS)}")
    if out.exists() and not overwrite:
        raise UserError(f"{out} is there already: give --overwrite to replace it, or choose another name")
    write = WRITERS[out.suffix.lower()]
    with atomic_path(out) as temporary:
        write(store, temporary)


def _write_npz(store: FeatureStore, path: Path) -> None:
    names = np.array([printable(name) for name in store.names(range(len(store.labels)))])
    described: dict[str, Any] = {key: np.array(value) for key, value in _description(store).items()}
    with path.open("wb") as file:  # else a name that ends in .NPZ would get another ending
        np.savez(file, features=store.features, labels=store.labels, split=store.split, names=names, **described)


def _write_safetensors(store: FeatureStore, path: Path) -> None:
    """Image `i` is called `name_bytes[name_offsets[i] : name_offsets[i + 1]]`; the metadata are JSON."""
    arrays = {name: store.array(name) for name in ("features", "labels", "split", "name_offsets", "name_bytes")}
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(arrays, path, _as_json(store))
    except SafetensorError as error:  # a full disk, say
        raise UserError(f"the file cannot be written ({error}): free some space, or choose another place") from error
    path.chmod(mode)  # some versions make a file that only its owner may read


def _write_parquet(store: FeatureStore, path: Path) -> None:
    """One row an image, and a column of features for each view."""
    alternative = "export to .npz or .safetensors"
    pyarrow, parquet = (import_optional(name, alternative) for name in ("pyarrow", "pyarrow.parquet"))
    features, classes, splits = store.features, np.array(store.class_names), np.array(SPLITS)
    vector = pyarrow.list_(pyarrow.from_numpy_dtype(features.dtype), store.feature_dim)
    columns = {"name": pyarrow.string(), "split": pyarrow.string(), "label": pyarrow.int64(), "class": pyarrow.string()}
    schema = pyarrow.schema(columns | {f"features_{view}": vector for view in store.views}, _as_json(store))
    # Repeated floats are not worth looking for
    with parquet.ParquetWriter(path, schema, use_dictionary=["name", "split", "class"]) as writer:
        for start in range(0, len(store.labels), ROWS):
            rows = slice(start, start + ROWS)
            labels = store.labels[rows]
            names = [printable(name) for name in store.names(range(start, start + len(labels)))]
            vectors = [
                pyarrow.FixedSizeListArray.from_arrays(view[rows].reshape(-1), store.feature_dim) for view in features
            ]
            described = [names, splits[store.split[rows]].tolist(), labels, classes[labels].tolist()]
            writer.write_table(pyarrow.table([*described, *vectors], schema=schema))


def _description(store: FeatureStore) -> dict[str, Any]:
    return {
        "class_names": store.class_names,
        "splits": list(SPLITS),
        "views": store.views,
        "identity_sha256": store.identity_sha256,
    }


def _as_json(store: FeatureStore) -> dict[str, str]:
    return {key: json.dumps(value, ensure_ascii=False) for key, value in _description(store).items()}


WRITERS: dict[str, Callable[[FeatureStore, Path], None]] = {
    ".npz": _write_npz,
    ".parquet": _write_parquet,
    ".safetensors": _write_safetensors,
}
