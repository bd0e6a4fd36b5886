import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from common.errors import UserError
from common.store import FeatureStore
from common.store_writer import _SparseFile, name_arrays, write_store
from common.synthetic import make_header, make_store


def test_a_disk_that_fills_up_is_an_error_that_leaves_no_store(tmp_path):
    code = f"""
import resource, signal
from pathlib import Path
from common.synthetic import make_store
from common.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    make_store(Path({str(tmp_path / "s.h5")!r}))
except UserError as error:
    print(error.message)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert result.stdout.startswith(f"no space left for {tmp_path / 's.h5'}"), result
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ["flip", "drop", "short"])
def test_what_the_disk_does_not_give_back_is_not_put_in_place(tmp_path, monkeypatch, change):
    store = make_store(tmp_path / "s.h5")
    before = store.path.read_bytes()
    pieces = []

    def unfaithful(file, data):
        pieces.append(data)
        written = bytearray(np.frombuffer(data, np.uint8).tobytes())
        if len(pieces) == 4:
            written = {
                "flip": bytes([written[0] ^ 1]) + written[1:],
                "drop": bytes(len(written)),
                "short": written[1:],
            }[change]
        file.write(written)

    monkeypatch.setattr("common.store_writer.write_all", unfaithful)
    with pytest.raises(UserError, match=r"s\.h5 was not put in place: read back from the disk"):
        make_store(store.path, seed=1)
    assert store.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5"]


def test_hdf5_opens_no_file_while_a_store_is_written(tmp_path, monkeypatch):
    store = make_store(tmp_path / "s.h5")
    arrays = {name: np.array(store.array(name)) for name in store.places}
    opened = []
    real = h5py.File

    def watched(name, *arguments, **options):
        opened.append(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(h5py, "File", watched)
    write_store(tmp_path / "t.h5", make_header(4, 16), arrays)
    assert [type(name) for name in opened] == [_SparseFile]


def test_a_store_of_many_rows_takes_no_memory_to_write(tmp_path):
    code = """
import sys, resource
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
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is measured through /proc")
    command = [sys.executable, "-c", code, str(tmp_path)]
    result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    assert int(result.stdout) < 150
    assert FeatureStore.open(tmp_path / "s.h5").places["features"].shape == (1, 100_000, 512)


def test_names_that_are_not_utf8_come_back_as_they_were(tmp_path):
    store = make_store(tmp_path / "s.h5", classes=1, train=2, test=1)
    arrays = {name: np.array(store.array(name)) for name in store.places}
    names = ["train/\udcff.png", "train/ä, b\n.png", "test/猫.png"]
    write_store(store.path, make_header(1, 16), {**arrays, **name_arrays(names)})
    assert FeatureStore.open(store.path).names(range(3)) == names


def test_a_sparse_file_is_like_a_file(tmp_path):
    sparse, generator = _SparseFile(), np.random.default_rng(0)
    with (tmp_path / "file").open("w+b") as file:
        for _ in range(300):
            place, data = int(generator.integers(30_000)), generator.bytes(int(generator.integers(1, 9000)))
            for each in (sparse, file):
                each.seek(place)
                each.write(data)
            start, size = (int(x) for x in generator.integers(40_000, size=2))
            sparse.seek(start)
            file.seek(start)
            assert sparse.read(size) == file.read(size)
            assert sparse.tell() == file.tell()
        assert sparse.seek(0, 2) == file.seek(0, 2)
