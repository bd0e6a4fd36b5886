"""What must not change unnoticed: the bytes of a store. What a seed trains: `test_golden_train`."""

import hashlib

import numpy as np

from common.store_writer import name_arrays, write_store
from common.synthetic import make_header

STORE = "4c2e5f15d1f96aa81f989a5d43c409c5109a45ff70b98d84dcf857b8a8f0ac32"


def test_the_bytes_of_a_store_are_what_they_were(tmp_path):
    n = 12
    arrays = {
        "features": np.arange(2 * n * 4, dtype="<f4").reshape(2, n, 4) / 8,
        "labels": np.arange(n) % 3,
        "image_index": np.tile(np.arange(n // 2), 2),
        "split": np.repeat(np.arange(2, dtype=np.uint8), n // 2),
        "image_sha256": np.arange(n * 32, dtype=np.uint8).reshape(n, 32),
        "thumbnails": np.arange(n * 3072, dtype=np.uint8).reshape(n, 32, 32, 3),
        **name_arrays([f"é/{row}.png" for row in range(n)]),
    }
    write_store(tmp_path / "s.h5", make_header(3, 4, views=2), arrays)
    assert hashlib.sha256((tmp_path / "s.h5").read_bytes()).hexdigest() == STORE
