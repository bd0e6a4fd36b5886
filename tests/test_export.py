import importlib.util
import json
import sys

import numpy as np
import pytest
from fabricate import flip_bit, invoke
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from common.errors import UserError
from common.synthetic import make_store
from extract.cli import main
from extract.export import export_store

ENDINGS = ["npz", "safetensors"] + (["parquet"] if importlib.util.find_spec("pyarrow") else [])


@pytest.fixture(scope="module", params=["<f4", "<f2"])
def store(request, tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store") / "s.h5", views=2, dtype=request.param)


def test_npz_holds_what_the_store_holds(store, tmp_path):
    export_store(store, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz", allow_pickle=False) as read:
        for name in ("features", "labels", "split"):
            assert read[name].dtype == store.array(name).dtype
            np.testing.assert_array_equal(read[name], store.array(name))
        assert read["names"].tolist() == store.names(range(len(store.labels)))
        assert read["class_names"].tolist() == store.class_names
        assert read["splits"].tolist() == ["train", "test"]
        assert read["views"].tolist() == ["plain", "mirror"]
        assert read["identity_sha256"] == store.identity_sha256


def test_safetensors_hold_what_the_store_holds(store, tmp_path):
    export_store(store, tmp_path / "out.safetensors")
    read = load_file(tmp_path / "out.safetensors")
    for name in ("features", "labels", "split"):
        assert read[name].dtype == store.array(name).dtype
        np.testing.assert_array_equal(read[name], store.array(name))
    a, b = read["name_offsets"][7:9]
    assert read["name_bytes"][a:b].tobytes().decode() == store.names([7])[0]
    with safe_open(tmp_path / "out.safetensors", "numpy") as file:
        assert json.loads(file.metadata()["class_names"]) == store.class_names
        assert json.loads(file.metadata()["splits"]) == ["train", "test"]


def test_parquet_has_a_row_for_each_image(store, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is missing: pip install '.[parquet]'")
    monkeypatch.setattr("extract.export.ROWS", 50)
    export_store(store, tmp_path / "out.parquet")
    read = parquet.read_table(tmp_path / "out.parquet")
    columns = read.to_pydict()
    for number, view in enumerate(store.views):
        np.testing.assert_array_equal(
            np.array(columns[f"features_{view}"], store.features.dtype), store.features[number]
        )
    assert columns["name"] == store.names(range(len(store.labels)))
    assert columns["label"] == store.labels.tolist()
    assert columns["class"] == [store.class_names[label] for label in store.labels]
    assert columns["split"] == [("train", "test")[split] for split in store.split]
    assert json.loads(read.schema.metadata[b"class_names"]) == store.class_names


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_is_replaced_only_when_asked(store, tmp_path, ending):
    out = tmp_path / f"out.{ending.upper()}"
    out.write_text("mine")
    assert "--overwrite" in invoke(main, "export", store.path, out, code=2).stderr
    assert out.read_text() == "mine"
    assert invoke(main, "export", store.path, out, "--overwrite").stdout == f"{out}\n"
    assert out.stat().st_size > store.features.nbytes
    assert out.stat().st_mode == store.path.stat().st_mode
    assert list(tmp_path.iterdir()) == [out], "no temporary file is left"
    with pytest.raises(UserError, match="is a file, and must be a folder"):
        export_store(store, out / f"out.{ending}")


@pytest.mark.parametrize("name", ["out.csv", "out", ".npz", "out.h5"])
def test_an_unknown_ending_gets_one_sentence(store, tmp_path, name):
    with pytest.raises(UserError, match=r"choose \.npz, \.parquet, \.safetensors"):
        export_store(store, tmp_path / name)


def test_a_damaged_store_is_not_exported(tmp_path):
    store = make_store(tmp_path / "s.h5")
    flip_bit(store.path, store.places["features"].offset + 100)
    with pytest.raises(UserError, match="damaged"):
        export_store(store, tmp_path / "out.npz")
    assert list(tmp_path.iterdir()) == [store.path]


def test_without_pyarrow(store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        export_store(store, tmp_path / "out.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_sentence_where_a_library_writes_too(tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("extract.export.save_file", full)
    with pytest.raises(UserError, match=r"No space left on device\): free some space"):
        export_store(make_store(tmp_path / "s.h5"), tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5"]
