import hashlib
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from mutate import LIMIT, content_of, judge, mutated

from common.store import DamagedStore, FeatureStore
from common.store_v1 import lookup3

FIXTURE = Path(__file__).parent / "store_version_1.h5"  # written by version 1's own code (commit a4109dd)


def test_a_store_of_version_1_is_read():
    store = FeatureStore.open(FIXTURE)
    store.verify()
    assert store.layout.version == 1
    assert store.features.shape == (2, 10, 8)
    assert store.class_names == ["cat", "dog"]
    assert store.name(0) is store.names([0]) is None
    with h5py.File(FIXTURE) as file:
        for name, place in store.places.items():
            assert (file[name][()] == store.array(name)).all()
            assert file[name].id.get_offset() == place.offset


def test_the_checksum_is_the_one_of_hdf5():
    content = FIXTURE.read_bytes()
    assert lookup3(content[:44]) == int.from_bytes(content[44:48], "little")
    assert lookup3(b"") == 0xDEADBEEF


def test_every_damage_is_refused_or_harmless(tmp_path):
    sound, content = content_of(FIXTURE), FIXTURE.read_bytes()
    generator = np.random.default_rng(0)
    path = tmp_path / "s.h5"
    for _ in range(100):
        path.write_bytes(mutated(content, generator)[1])
        assert judge(path, sound) in ("refused", "harmless")


def test_a_flipped_bit_in_hdf5s_heap_is_refused_at_once(tmp_path):
    """One of these, in the size of an object of the heap, hangs the HDF5 library for ever."""
    content = FIXTURE.read_bytes()
    heap = content.index(b"GCOL")
    for place in range(heap, heap + 4096, 41):
        damaged = bytearray(content)
        damaged[place] ^= 1
        (tmp_path / "s.h5").write_bytes(damaged)
        started = time.monotonic()
        with pytest.raises(DamagedStore):
            FeatureStore.open(tmp_path / "s.h5")
        assert time.monotonic() - started < LIMIT


@pytest.mark.parametrize(
    "edit",
    [
        lambda f: f.attrs.__setitem__("format_version", 0),
        lambda f: f.attrs.__setitem__("format_version", 1.0),
        lambda f: f.attrs.__setitem__("format_version", True),
        lambda f: f.attrs.__setitem__("header_sha256", "0"),
        lambda f: f.__delitem__("labels"),
        lambda f: f.__setitem__("other", np.zeros(10, "<i8")),
        lambda f: f.move("labels", "label"),
        lambda f: f.create_dataset("chunked", data=np.zeros(100), chunks=(10,)),
        lambda f: f.create_group("group"),
    ],
)
def test_a_file_that_version_1_did_not_write_is_refused(tmp_path, edit):
    path = tmp_path / "s.h5"
    path.write_bytes(FIXTURE.read_bytes())
    with h5py.File(path, "r+") as file:
        edit(file)
    with pytest.raises(DamagedStore):
        FeatureStore.open(path)


def test_the_fixture_is_what_it_was():
    assert (
        hashlib.sha256(FIXTURE.read_bytes()).hexdigest()
        == "8693dd437da01a52a31039bab835c5a14b5c3b6c621edf3b564a3a3ae1056cc6"
    )
