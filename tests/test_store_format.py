import errno
import fcntl
import json
import os
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
from mutate import LIMIT, resealed

from common.errors import UserError
from common.store import (
    DamagedStore,
    FeatureStore,
    ForeignStore,
    MissingStore,
    NewerStore,
    OlderStore,
    UnreadableStore,
)
from common.store_format import BLOCK
from common.synthetic import make_store


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "s.h5", classes=2, train=4, test=3, feature_dim=8)


def test_every_byte_outside_the_arrays_is_checked_when_it_is_opened(store):
    content = store.path.read_bytes()
    arrays = [range(place.offset, place.stop) for place in store.places.values()]
    outside = [i for i in range(len(content)) if not any(i in array for array in arrays)]
    assert len(outside) > BLOCK
    generator = np.random.default_rng(0)
    with store.path.open("r+b", buffering=0) as file:
        for place in [*outside[:100], *generator.choice(outside, 100)]:
            file.seek(place)
            file.write(bytes([content[place] ^ 1 << int(generator.integers(8))]))
            with pytest.raises(DamagedStore, match="extract it again"):
                FeatureStore.open(store.path)
            file.seek(place)
            file.write(content[place : place + 1])
    FeatureStore.open(store.path).verify()


def test_it_is_an_hdf5_file_for_everybody(store):
    with h5py.File(store.path) as file:
        assert file.attrs["format"] == b"set-anomaly/feature-store"
        assert file.attrs["format_version"] == 2
        assert json.loads(file["header"][()]) == store.header
        assert set(file) == {"header", *store.places}
        for name, place in store.places.items():
            assert (file[name][()] == store.array(name)).all()
            assert file[name].id.get_offset() == place.offset
            assert file[name].compression is None
            assert place.offset % 64 == 0  # rows of any type are where a processor likes them


def test_it_opens_without_the_hdf5_library(store):
    code = (
        "import sys; from common.store import FeatureStore\n"
        "FeatureStore.open(sys.argv[1]).verify(); print(*sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code, store.path], capture_output=True, text=True, check=True)
    assert "h5py" not in result.stdout.split()


def test_a_store_that_is_locked_or_open_elsewhere_is_read(store, monkeypatch):
    with store.path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as HDF5 does when it opens a file to write
        FeatureStore.open(store.path).verify()

    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    FeatureStore.open(store.path).verify()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ELOOP])
@pytest.mark.parametrize("call", ["open", "read"])
def test_what_the_system_does_not_give_is_not_called_damaged(store, monkeypatch, number, call):
    def fails(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.open" if call == "open" else "common.store_format.read_at", fails)
    with pytest.raises(UnreadableStore, match=os.strerror(number).lower()) as caught:
        FeatureStore.open(store.path)
    assert "damaged" not in caught.value.message
    assert "again" not in caught.value.message


def test_what_is_no_store_gets_a_word_at_once(tmp_path):
    started = time.monotonic()
    os.mkfifo(tmp_path / "pipe.h5")
    (tmp_path / "folder.h5").mkdir()
    (tmp_path / "text.h5").write_text("about set-anomaly/feature-store")
    (tmp_path / "empty.h5").write_bytes(b"")
    (tmp_path / "dangling.h5").symlink_to("nowhere")
    (tmp_path / "loop.h5").symlink_to("loop.h5")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = np.zeros(3)
    for name in ("pipe", "folder", "text", "empty", "foreign"):
        with pytest.raises(ForeignStore, match=f"{name}.h5"):
            FeatureStore.open(tmp_path / f"{name}.h5")
    for name in ("dangling", "none"):
        with pytest.raises(MissingStore, match="make it with `make features`"):
            FeatureStore.open(tmp_path / f"{name}.h5")
    with pytest.raises(UnreadableStore):
        FeatureStore.open(tmp_path / "loop.h5")
    assert time.monotonic() - started < LIMIT


def test_a_store_of_version_1_is_to_be_made_again(tmp_path):
    with h5py.File(tmp_path / "s.h5", "w", libver=("v108", "v108")) as file:
        file.attrs["format"] = "set-anomaly/feature-store"
        file.attrs["format_version"] = 1
        file["labels"] = np.zeros(3)
    with pytest.raises(
        OlderStore, match=r"s\.h5 was made by an older version of this project: extract it again"
    ) as old:
        FeatureStore.open(tmp_path / "s.h5")
    assert old.value.exit_code == 2


@pytest.mark.parametrize("version", [3, 100])
def test_a_later_version_is_named(store, version):
    store.path.write_bytes(resealed(store.path.read_bytes(), facts=lambda facts: {"version": version, "new": facts}))
    with pytest.raises(NewerStore, match=f"format version {version}, this code reads up to 2: update it"):
        FeatureStore.open(store.path)


@pytest.mark.parametrize("version", [0, 1, -5, 1.9, 2.0, True, "2", None])
def test_a_version_is_a_whole_number(store, version):
    store.path.write_bytes(resealed(store.path.read_bytes(), facts=lambda facts: {**facts, "version": version}))
    with pytest.raises(DamagedStore, match='"version"'):
        FeatureStore.open(store.path)


@pytest.mark.parametrize(
    "change",
    [
        {"header": [0]},
        {"header": None},
        {"header": [True, 5]},
        {"file_bytes": "many"},
        {"rest_sha256": 5},
        {"arrays": {"features": ["<f4", [1, 2]]}},
        {"arrays": {"features": ["no type", [1, 2, 3], 5000]}},
        {"arrays": {"features": ["<f4", [1, 2, -3], 5000]}},
        {"arrays": {"features": ["<f4", [1, 2**70, 3], 5000]}},
        {"arrays": {"features": ["<f4", [1, 2, 3], 5000], "labels": ["<i8", [2], 5008]}},
        {"arrays": []},
        {"arrays": {}},
    ],
)
def test_a_first_block_that_says_nonsense_is_refused(store, change):
    store.path.write_bytes(resealed(store.path.read_bytes(), facts=lambda facts: {**facts, **change}))
    with pytest.raises(UserError, match="is damaged"):
        FeatureStore.open(store.path)


def test_opening_takes_milliseconds_however_many_rows(tmp_path):
    n = 2_000_000
    import hashlib

    from common.store import BLOCK_BYTES, identity_digest
    from common.store_format import ArrayPlace, seal_block  # the arrays are holes in the file: opening reads none
    from common.synthetic import make_header

    shapes = {
        "features": ("<f2", (1, n, 512)),
        "labels": ("<i8", (n,)),
        "image_index": ("<i8", (n,)),
        "split": ("|u1", (n,)),
        "image_sha256": ("|u1", (n, 32)),
        "thumbnails": ("|u1", (n, 32, 32, 3)),
        "name_bytes": ("|u1", (40 * n,)),
        "name_offsets": ("<i8", (n + 1,)),
    }
    header = make_header(1000, 512, precision="bfloat16")
    places, offset = {}, 1 << 20
    for name, (dtype, shape) in shapes.items():
        places[name] = ArrayPlace(dtype, shape, offset)
        offset = places[name].stop
    blocks = {name: ["0" * 64] * -(-place.nbytes // BLOCK_BYTES) for name, place in places.items()}
    sealed = {"identity_sha256": identity_digest(header["identity"]), "block_bytes": BLOCK_BYTES, "blocks": blocks}
    text = json.dumps({**header, **sealed}).encode()
    rest = text.ljust((1 << 20) - BLOCK, b"\0")
    path = tmp_path / "s.h5"
    with path.open("wb") as file:
        file.write(seal_block((BLOCK, len(text)), places, offset, hashlib.sha256(rest).hexdigest()) + rest)
        file.truncate(offset)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        assert FeatureStore.open(path).places == places
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.1
