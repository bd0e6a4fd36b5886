import importlib.util
import json
import sys

import numpy as np
import pytest
from fabricate import call, flip_bit, refuses
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from common.store import FeatureStore
from common.synthetic import make_store
from extract.cli import main
from extract.export import export_store

ENDINGS = ["npz", "safetensors"] + (["parquet"] if importlib.util.find_spec("pyarrow") else [])


@pytest.fixture(scope="module", params=["<f4", "<f2"])
def store(request, tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store") / "s.h5", views=2, dtype=request.param)


def test_npz_and_safetensors_hold_what_the_store_holds(store, tmp_path):
    for name in ("out.npz", "out.safetensors"):
        export_store(store, tmp_path / name)
    npz, tensors = np.load(tmp_path / "out.npz", allow_pickle=False), load_file(tmp_path / "out.safetensors")
    for name in ("features", "labels", "split"):
        for read in (npz, tensors):
            assert read[name].dtype == store.array(name).dtype
            np.testing.assert_array_equal(read[name], store.array(name))
    assert npz["names"].tolist() == store.names(range(len(store.labels)))
    a, b = tensors["name_offsets"][7:9]
    assert tensors["name_bytes"][a:b].tobytes().decode() == store.names([7])[0]
    expected = {"class_names": store.class_names, "splits": ["train", "test"], "views": ["plain", "mirror"]}
    with safe_open(tmp_path / "out.safetensors", "numpy") as file:
        for name, value in expected.items():
            assert npz[name].tolist() == json.loads(file.metadata()[name]) == value
    assert npz["identity_sha256"] == store.identity_sha256


def test_parquet_has_a_row_for_each_image(store, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is missing: pip install '.[parquet]'")
    monkeypatch.setattr("extract.export.ROWS", 50)
    export_store(store, tmp_path / "out.parquet")
    read = parquet.read_table(tmp_path / "out.parquet")
    columns = read.to_pydict()
    for number, view in enumerate(store.views):
        features = np.array(columns[f"features_{view}"], store.features.dtype)
        np.testing.assert_array_equal(features, store.features[number])
    assert (columns["name"], columns["label"]) == (store.names(range(len(store.labels))), store.labels.tolist())
    assert columns["class"] == [store.class_names[label] for label in store.labels]
    assert columns["split"] == [("train", "test")[split] for split in store.split]
    assert json.loads(read.schema.metadata[b"class_names"]) == store.class_names


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_is_replaced_only_when_asked(store, tmp_path, ending):
    out = tmp_path / f"out.{ending.upper()}"
    out.write_text("mine")
    assert "--overwrite" in call(main, "export", store.path, out, code=2).stderr
    assert out.read_text() == "mine"
    assert call(main, "export", store.path, out, "--overwrite").stdout == f"{out}\n"
    assert out.stat().st_size > store.features.nbytes
    assert out.stat().st_mode == store.path.stat().st_mode
    assert list(tmp_path.iterdir()) == [out], "no temporary file is left"
    refuses("is a file, and must be a folder", export_store, store, out / f"out.{ending}")


@pytest.mark.parametrize("name", ["out.csv", "out", ".npz", "out.h5"])
def test_an_unknown_ending_gets_one_sentence(store, tmp_path, name):
    refuses(r"choose \.npz, \.parquet, \.safetensors", export_store, store, tmp_path / name)


def test_nothing_is_exported_of_a_damaged_store_or_without_pyarrow(store, tmp_path, monkeypatch):
    damaged = make_store(tmp_path / "s.h5")
    flip_bit(damaged.path, damaged.places["features"].offset + 100)
    refuses("block 0 of /features", export_store, FeatureStore.open(damaged.path), tmp_path / "out.npz")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refuses("pip install pyarrow", export_store, store, tmp_path / "out.parquet")
    assert list(tmp_path.iterdir()) == [damaged.path]


def test_a_full_disk_is_a_sentence_where_a_library_writes_too(tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("extract.export.save_file", full)
    target = tmp_path / "out.safetensors"
    refuses(r"No space left on device\): free some space", export_store, make_store(tmp_path / "s.h5"), target)
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5"]
