"""What holds whatever N: a store of 100 million rows, which is a sparse file here."""

import time

import numpy as np

from common import store_writer
from common.store import BLOCK_BYTES, FeatureStore
from common.store_writer import block_digests
from common.synthetic import make_header

N = 100_000_000
EMPTY = block_digests(np.zeros(BLOCK_BYTES, "u1"))


def zeros(*shape, dtype="u1"):
    """An array of zeros that takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def digests_of_zeros(array):
    whole, rest = divmod(array.nbytes, BLOCK_BYTES)
    return EMPTY * whole + (block_digests(np.zeros(rest, "u1")) if rest else [])


def sparse_store(path, monkeypatch):
    """A store of zeros of which only what is no array's is on the disk."""
    arrays = {
        "features": zeros(1, N, 512, dtype="<f2"),
        "image_sha256": zeros(N, 32),
        "thumbnails": zeros(N, 32, 32, 3),
        "labels": zeros(N, dtype="<i8"),
        "image_index": zeros(N, dtype="<i8"),
        "split": zeros(N),
        "name_bytes": zeros(50 * N),
        "name_offsets": zeros(N + 1, dtype="<i8"),
    }
    monkeypatch.setattr(store_writer, "block_digests", digests_of_zeros)
    around, _ = store_writer._build_metadata(make_header(100, 512, precision="bfloat16"), arrays)
    with path.open("wb") as file:
        for offset, piece in sorted(around.items()):
            file.seek(offset)
            file.write(piece)
        file.truncate()
    return path


def test_a_store_of_100_million_rows_opens_at_once_and_reads_its_last_row(tmp_path, monkeypatch):
    path = sparse_store(tmp_path / "s.h5", monkeypatch)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        store = FeatureStore.open(path)
        seconds.append(time.perf_counter() - started)
    assert path.stat().st_size > 400e9
    features = store.unverified("features")
    assert features.shape == (1, N, 512)
    assert not features[0, [N - 1, 7, N - 1]].any()
    print(f"{path.stat().st_size / 1e9:.0f} GB, opened in {1000 * min(seconds):.0f} ms")
    assert min(seconds) < 1  # a busy machine; 60 ms on an idle one
