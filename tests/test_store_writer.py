from pathlib import Path

import h5py
import numpy as np
import pytest
from fabricate import python, refuses

from common.store import FeatureStore
from common.store_writer import _SparseFile, name_arrays, write_store
from common.synthetic import make_header, make_store


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "s.h5", classes=1, train=2, test=1)


def arrays_of(store):
    return {name: np.array(store.array(name)) for name in store.places}


def test_a_disk_that_fills_up_is_an_error_that_leaves_no_store(tmp_path):
    code = """
import resource, sys
from pathlib import Path
from common.synthetic import make_store
from common.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    make_store(Path(sys.argv[1]))
except UserError as error:
    print(error.message)
"""
    assert python("-c", code, tmp_path / "s.h5").stdout.startswith(f"no space left for {tmp_path / 's.h5'}")
    assert list(tmp_path.iterdir()) == []


CHANGES = {
    "flip": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "drop": lambda data: bytes(len(data)),
    "short": lambda data: data[1:],
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_disk_does_not_give_back_is_not_put_in_place(store, tmp_path, monkeypatch, change):
    before, pieces = store.path.read_bytes(), []

    def unfaithful(file, data):
        pieces.append(data)
        content = np.frombuffer(data, np.uint8).tobytes()
        file.write(CHANGES[change](content) if len(pieces) == 4 else content)

    monkeypatch.setattr("common.store_writer.write_all", unfaithful)
    refuses(r"s\.h5 was not put in place: read back from the disk", make_store, store.path, seed=1)
    assert store.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5"]


def test_hdf5_opens_no_file_while_a_store_is_written(store, tmp_path, monkeypatch):
    arrays, opened, real = arrays_of(store), [], h5py.File
    monkeypatch.setattr(h5py, "File", lambda name, *rest, **more: opened.append(name) or real(name, *rest, **more))
    write_store(tmp_path / "t.h5", make_header(1, 16), arrays)
    assert [type(name) for name in opened] == [_SparseFile]


def test_a_store_of_many_rows_takes_no_memory_to_write(tmp_path):
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is measured through /proc")
    code = """
import sys
import numpy as np
from pathlib import Path
from common.synthetic import make_header
from common.store_writer import name_arrays, write_store
n = 100_000
features = np.memmap(sys.argv[1] + "/features", "<f4", "w+", shape=(1, n, 512))  # 205 MB of holes
arrays = {"features": features, "labels": np.zeros(n, "<i8"), "image_index": np.arange(n), "split": np.zeros(n, "u1")}
arrays |= name_arrays(["a"] * n)
write_store(Path(sys.argv[1]) / "s.h5", make_header(1, 512), arrays | {"image_sha256": np.zeros((n, 32), "u1")})
print(int([line for line in open("/proc/self/status") if line.startswith("RssAnon")][0].split()[1]) // 1024)
"""
    assert int(python("-c", code, tmp_path).stdout) < 150
    assert FeatureStore.open(tmp_path / "s.h5").places["features"].shape == (1, 100_000, 512)


def test_names_that_are_not_utf8_come_back_as_they_were(store):
    names = ["train/\udcff.png", "train/ä, b\n.png", "test/猫.png"]
    write_store(store.path, make_header(1, 16), {**arrays_of(store), **name_arrays(names)})
    assert FeatureStore.open(store.path).names(range(3)) == names


def test_a_sparse_file_is_like_a_file(tmp_path):
    sparse, generator = _SparseFile(), np.random.default_rng(0)
    with (tmp_path / "file").open("w+b") as file:
        for _ in range(300):
            place, data = int(generator.integers(30_000)), generator.bytes(int(generator.integers(1, 9000)))
            start, size = (int(x) for x in generator.integers(40_000, size=2))
            read = []
            for each in (sparse, file):
                each.seek(place)
                each.write(data)
                each.seek(start)
                read.append((each.read(size), each.tell()))
            assert read[0] == read[1]
        assert sparse.seek(0, 2) == file.seek(0, 2)
