"""The reader of stores: what is written is read, and what is damaged, foreign or in use elsewhere is called that."""

import errno
import fcntl
import json
import os
import pickle
import time

import h5py
import numpy as np
import pytest
from damage import LIMIT, resealed
from fabricate import fails_with, flip_bit, python, refuses
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.files import sha256_text
from common.store import DamagedStore, FeatureStore, ForeignStore, MissingStore, NewerStore, UnreadableStore
from common.store_header import BLOCK, labels_digest
from common.store_writer import write_store
from common.synthetic import make_header, make_store

in_one_folder = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@settings(max_examples=15, **in_one_folder)
@given(
    views=st.integers(1, 3),
    feature_dim=st.integers(1, 40),
    dtype=st.sampled_from(["<f4", "<f2"]),
    seed=st.integers(0, 1000),
)
def test_what_is_written_is_read(tmp_path, views, feature_dim, dtype, seed):
    path = tmp_path / "s.h5"
    store = make_store(path, classes=3, train=5, test=4, views=views, feature_dim=feature_dim, dtype=dtype, seed=seed)
    with h5py.File(path) as file:
        for name in ("features", "labels", "split", "thumbnails"):
            assert (getattr(store, name) == file[name][()]).all()
            assert getattr(store, name).dtype == file[name].dtype
    assert store.features.shape == (views, 27, feature_dim)
    assert (store.feature_dim, len(store.views)) == (feature_dim, views)
    store.verify()


@settings(max_examples=25, **in_one_folder)
@given(data=st.data())
def test_a_flipped_bit_in_any_array_is_found_and_named(tmp_path, data):
    store = make_store(tmp_path / "s.h5")
    name = data.draw(st.sampled_from(sorted(store.places)))
    place = store.places[name]
    flip_bit(store.path, data.draw(st.integers(place.offset, place.stop - 1)), data.draw(st.integers(0, 7)))
    with pytest.raises(DamagedStore, match=f"block 0 of /{name}"):
        FeatureStore.open(store.path).verify()


@settings(max_examples=40, **in_one_folder)
@given(part=st.floats(0, 0.999))
def test_a_truncated_file_is_refused_when_it_is_opened(tmp_path, part):
    path = make_store(tmp_path / "s.h5").path
    size = int(part * path.stat().st_size)
    os.truncate(path, size)
    with pytest.raises((DamagedStore, ForeignStore), match=r"extract it again|not an HDF5 file") as caught:
        FeatureStore.open(path)
    assert (caught.type is ForeignStore) == (size < 26)  # as long as its first line


def test_every_byte_outside_the_arrays_is_checked_when_it_is_opened(store):
    arrays = [range(place.offset, place.stop) for place in store.places.values()]
    outside = [i for i in range(store.path.stat().st_size) if not any(i in array for array in arrays)]
    assert len(outside) > BLOCK
    generator = np.random.default_rng(0)
    for place in [*outside[:100], *generator.choice(outside, 100)]:
        bit = int(generator.integers(8))
        flip_bit(store.path, place, bit)
        with pytest.raises(DamagedStore, match="extract it again"):
            FeatureStore.open(store.path)
        flip_bit(store.path, place, bit)
    FeatureStore.open(store.path).verify()


def test_it_is_an_hdf5_file_for_everybody(store):
    with h5py.File(store.path) as file:
        assert (file.attrs["format"], file.attrs["format_version"]) == (b"set-anomaly/feature-store", 2)
        assert json.loads(file["header"][()]) == store.header
        assert set(file) == {"header", *store.places}
        for name, place in store.places.items():
            assert (file[name][()] == store.array(name)).all()
            assert file[name].id.get_offset() == place.offset
            assert file[name].compression is None
            assert place.offset % 64 == 0  # rows of any type are where a processor likes them


def test_it_opens_without_the_hdf5_library(store):
    code = "import sys; from common.store import FeatureStore; FeatureStore.open(sys.argv[1]).verify()"
    assert "h5py" not in python("-c", f"{code}; print(*sys.modules)", store.path).stdout.split()


def test_rows_may_be_unsorted_and_repeated_and_have_names(store):
    rows = np.array([[7, 3], [3, 100]])
    with h5py.File(store.path) as file:
        assert (store.features[0][rows] == file["features"][()][0][rows]).all()
    assert store.names(np.array([179, 0])) == store.names([-1, 0]) == ["test/00179.png", "train/00000.png"]
    assert store.names(range(0)) == store.names([]) == []
    with pytest.raises(IndexError):
        store.names([180])
    assert store.rows_of("train").tolist() == list(range(120))
    assert store.rows_of("test").tolist() == list(range(120, 180))
    refuses('unknown split "val": choose from test, train', store.rows_of, "val")


def test_it_pickles_as_its_path_and_is_not_written_through_its_map(store):
    assert store.features is not None  # mapped before, so that the map could come along
    pickled = pickle.dumps(store)
    assert len(pickled) < 500
    assert (pickle.loads(pickled).features == store.features).all()
    before = store.path.read_bytes()
    store.features[:] = 0
    assert store.path.read_bytes() == before


def test_equal_identities_have_equal_digests_and_others_not(tmp_path):
    first, again, other = (make_store(tmp_path / f"{i}.h5", seed=seed) for i, seed in enumerate((0, 0, 1)))
    assert first.identity_sha256 == again.identity_sha256 != other.identity_sha256
    assert first.path.read_bytes() == again.path.read_bytes()
    assert make_store(tmp_path / "s.h5", thumbnails=False).thumbnails is None


def test_a_large_store_gives_its_pages_back_and_reads_them_again(store, monkeypatch):
    monkeypatch.setattr("common.store.ROOMY", 0)
    before = store.features.copy()
    store.release()
    assert (store.features == before).all()


@pytest.mark.parametrize("name", ["features", "labels", "image_sha256", "thumbnails", "name_bytes", "name_offsets"])
def test_a_damaged_array_is_never_handed_out_unless_that_is_said(store, name):
    flip_bit(store.path, store.places[name].offset)
    store = FeatureStore.open(store.path)
    with pytest.raises(DamagedStore, match=f"block 0 of /{name}"):
        store.names([0]) if name.startswith("name") else getattr(store, name)
    with pytest.raises(DamagedStore, match=f"block 0 of /{name}"):
        store.array(name)
    assert len(store.unverified(name))


def test_an_array_is_read_for_verifying_once(store, monkeypatch):
    read, real = [], FeatureStore._verify_block
    monkeypatch.setattr(FeatureStore, "_verify_block", lambda self, *block: read.append(block) or real(self, *block))
    store.verify(("features", "split"))
    assert store.features.sum() + store.split.sum() + store.array("features").sum()
    assert read == [("features", 0), ("split", 0)]


def test_of_some_rows_only_their_blocks_are_read(tmp_path, monkeypatch):
    for module in ("store", "store_header", "store_writer"):
        monkeypatch.setattr(f"common.{module}.BLOCK_BYTES", 4000)  # not a multiple of a row's 3,072
    store = make_store(tmp_path / "s.h5")
    expected, rows = np.array(store.thumbnails), np.array([[100, 2], [2, 7]])
    flip_bit(store.path, store.places["thumbnails"].offset + 20 * 3072)
    store = FeatureStore.open(store.path)
    assert (store.rows("thumbnails", rows) == expected[rows]).all()
    assert (store.rows("thumbnails", np.array([-1])) == expected[[-1]]).all()
    with pytest.raises(IndexError):
        store.rows("thumbnails", np.array([-181]))
    for row in (19, 20):  # they share the damaged block
        with pytest.raises(DamagedStore, match="block 15 of /thumbnails"):
            store.rows("thumbnails", np.array([row]))


def test_labels_fit_the_identity(tmp_path):
    store = make_store(tmp_path / "s.h5", classes=2, train=3, test=2)
    header, arrays = make_header(2, 16), {name: np.array(store.array(name)) for name in store.places}
    header["identity"]["data_set"]["labels"] = {"train": labels_digest(arrays["labels"][:6])}
    write_store(store.path, header, arrays)
    arrays["labels"][[0, 5]] = arrays["labels"][[5, 0]]
    refuses(
        r"/labels of train must have the digest of .identity\.data_set\.labels", write_store, store.path, header, arrays
    )
    assert FeatureStore.open(store.path).labels.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 1, 1]


def test_the_digest_of_labels_is_that_of_their_list(monkeypatch):
    monkeypatch.setattr("common.store_header.LABELS_AT_A_TIME", 3)
    for n in (0, 1, 3, 4, 7):
        assert labels_digest(np.arange(n)) == sha256_text(str(list(range(n))))


def test_a_store_that_is_open_for_writing_elsewhere_is_not_called_damaged(store):
    other = h5py.File(store.path, "r+")
    for judge in (lambda: FeatureStore.open(store.path), store.verify):
        with pytest.raises(UnreadableStore, match=r"open for writing in another program|changed while it was in use"):
            judge()
    other.close()
    FeatureStore.open(store.path).verify()


def test_a_store_that_is_written_while_it_is_read_is_not_called_damaged(store, monkeypatch):
    def read(file, offset, size):
        store.path.write_bytes(bytes(100))
        return bytes(size)

    monkeypatch.setattr("common.store.read_at", read)
    with pytest.raises(UnreadableStore, match="changes while it is read"):
        store.verify()


def test_what_takes_the_place_of_an_open_store_is_not_taken_for_it(store):
    make_store(store.path.with_name("other.h5"), feature_dim=8).path.replace(store.path)
    for use in (lambda: store.labels, store.verify):
        refuses("replaced or changed while it was in use", use)


def test_a_store_that_is_locked_or_open_elsewhere_is_read(store, monkeypatch):
    with store.path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as HDF5 does when it opens a file to write
        FeatureStore.open(store.path).verify()
    monkeypatch.setattr("fcntl.flock", fails_with(errno.ENOLCK))
    FeatureStore.open(store.path).verify()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ELOOP])
@pytest.mark.parametrize("call", ["os.open", "common.store.read_at"])
def test_what_the_system_does_not_give_is_not_called_damaged(store, monkeypatch, number, call):
    monkeypatch.setattr(call, fails_with(number))
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
    for error, message, names in (
        (ForeignStore, r"\.h5", ("pipe", "folder", "text", "empty", "foreign")),
        (MissingStore, "make it with `make features`", ("dangling", "none")),
        (UnreadableStore, "", ("loop",)),
    ):
        for name in names:
            with pytest.raises(error, match=f"{name}.*{message}"):
                FeatureStore.open(tmp_path / f"{name}.h5")
    assert time.monotonic() - started < LIMIT


@pytest.mark.parametrize("version", [3, 100])
def test_a_later_version_is_named(store, version):
    store.path.write_bytes(resealed(store.path.read_bytes(), facts=lambda facts: {"version": version, "new": facts}))
    with pytest.raises(NewerStore, match=f"format version {version}, this code reads up to 2: update it"):
        FeatureStore.open(store.path)


@pytest.mark.parametrize(
    "change",
    [
        *({"version": version} for version in (0, 1, -5, 1.9, 2.0, True, "2", None)),
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
    with pytest.raises(DamagedStore, match='"version" must be' if "version" in change else "is damaged"):
        FeatureStore.open(store.path)
