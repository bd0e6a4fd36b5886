import pickle

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.files import sha256_text
from common.store import DamagedStore, FeatureStore, ForeignStore, UnreadableStore
from common.store_header import labels_digest
from common.store_writer import write_store
from common.synthetic import make_header, make_store


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    assert store.feature_dim == feature_dim
    assert len(store.views) == views
    store.verify()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_in_any_array_is_found_and_named(tmp_path, data):
    path = tmp_path / "s.h5"
    store = make_store(path)
    name = data.draw(st.sampled_from(sorted(store.places)))
    place = store.places[name]
    size = int(np.prod(place.shape)) * np.dtype(place.dtype).itemsize
    content = bytearray(path.read_bytes())
    content[place.offset + data.draw(st.integers(0, size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.raises(DamagedStore, match=f"block 0 of /{name}"):
        FeatureStore.open(path).verify()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.floats(0, 0.999))
def test_a_truncated_file_is_refused_when_it_is_opened(tmp_path, part):
    path = make_store(tmp_path / "s.h5").path
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises((DamagedStore, ForeignStore), match=r"extract it again|not an HDF5 file") as caught:
        FeatureStore.open(path)
    assert (caught.type is ForeignStore) == (int(part * len(content)) < 26)  # as long as its first line


def test_rows_may_be_unsorted_and_repeated(tmp_path):
    store = make_store(tmp_path / "s.h5")
    rows = np.array([[7, 3], [3, 100]])
    with h5py.File(store.path) as file:
        assert (store.features[0][rows] == file["features"][()][0][rows]).all()


def test_writing_to_the_map_leaves_the_file_alone(tmp_path):
    store = make_store(tmp_path / "s.h5")
    before = store.path.read_bytes()
    store.features[:] = 0
    assert store.path.read_bytes() == before


def test_it_pickles_as_its_path(tmp_path):
    store = make_store(tmp_path / "s.h5")
    assert store.features is not None  # mapped before, so that the map could come along
    pickled = pickle.dumps(store)
    assert len(pickled) < 500
    assert (pickle.loads(pickled).features == store.features).all()


def test_splits_part_the_rows(tmp_path):
    store = make_store(tmp_path / "s.h5", classes=2, train=5, test=3)
    assert store.rows_of("train").tolist() == list(range(10))
    assert store.rows_of("test").tolist() == list(range(10, 16))


def test_thumbnails_may_be_absent(tmp_path):
    assert make_store(tmp_path / "s.h5", thumbnails=False).thumbnails is None


def test_equal_identities_have_equal_digests_and_others_not(tmp_path):
    first, again, other = (make_store(tmp_path / f"{i}.h5", seed=seed) for i, seed in enumerate((0, 0, 1)))
    assert first.identity_sha256 == again.identity_sha256 != other.identity_sha256
    assert first.path.read_bytes() == again.path.read_bytes()


def test_a_missing_store_says_how_to_make_it(tmp_path):
    with pytest.raises(UserError, match="make it with `make features`"):
        FeatureStore.open(tmp_path / "none.h5")


def test_a_large_store_gives_its_pages_back_and_reads_them_again(tmp_path, monkeypatch):
    monkeypatch.setattr("common.store.ROOMY", 0)
    store = make_store(tmp_path / "s.h5")
    before = store.features.copy()
    store.release()
    assert (store.features == before).all()


@pytest.mark.parametrize("name", ["features", "labels", "image_sha256", "thumbnails", "name_bytes", "name_offsets"])
def test_a_damaged_array_is_never_handed_out_unless_that_is_said(tmp_path, name):
    store = damaged(make_store(tmp_path / "s.h5"), name)
    with pytest.raises(DamagedStore, match=f"block 0 of /{name}"):
        store.names([0]) if name.startswith("name") else getattr(store, name)
    with pytest.raises(DamagedStore, match=f"block 0 of /{name}"):
        store.array(name)
    assert len(store.unverified(name))


def damaged(store, name, byte=0):
    """The store with a flipped bit in an array."""
    content = bytearray(store.path.read_bytes())
    content[store.places[name].offset + byte] ^= 1
    store.path.write_bytes(content)
    return FeatureStore.open(store.path)


def test_an_array_is_read_for_verifying_once(tmp_path, monkeypatch):
    store, read = make_store(tmp_path / "s.h5"), []
    real = FeatureStore._verify_block
    monkeypatch.setattr(FeatureStore, "_verify_block", lambda self, *block: read.append(block) or real(self, *block))
    store.verify(("features", "split"))
    assert store.features.sum() + store.split.sum() + store.array("features").sum()
    assert read == [("features", 0), ("split", 0)]


def test_of_some_rows_only_their_blocks_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("common.store.BLOCK_BYTES", 4000)  # not a multiple of a row's 3,072
    monkeypatch.setattr("common.store_header.BLOCK_BYTES", 4000)
    monkeypatch.setattr("common.store_writer.BLOCK_BYTES", 4000)
    store = make_store(tmp_path / "s.h5")
    expected, rows = np.array(store.thumbnails), np.array([[100, 2], [2, 7]])
    store = damaged(store, "thumbnails", 20 * 3072)
    assert (store.rows("thumbnails", rows) == expected[rows]).all()
    for row in (19, 20):  # they share the damaged block
        with pytest.raises(DamagedStore, match="block 15 of /thumbnails"):
            store.rows("thumbnails", np.array([row]))


def test_labels_fit_the_identity(tmp_path):
    store = make_store(tmp_path / "s.h5", classes=2, train=3, test=2)
    header, arrays = make_header(2, 16), {name: np.array(store.array(name)) for name in store.places}
    header["identity"]["data_set"]["labels"] = {"train": labels_digest(arrays["labels"][:6])}
    write_store(store.path, header, arrays)
    arrays["labels"][[0, 5]] = arrays["labels"][[5, 0]]
    with pytest.raises(UserError, match=r"/labels of train must have the digest of .identity\.data_set\.labels"):
        write_store(store.path, header, arrays)
    assert FeatureStore.open(store.path).labels.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 1, 1]


def test_the_digest_of_labels_is_that_of_their_list(monkeypatch):
    monkeypatch.setattr("common.store_header.LABELS_AT_A_TIME", 3)
    for n in (0, 1, 3, 4, 7):
        assert labels_digest(np.arange(n)) == sha256_text(str(list(range(n))))


def test_a_store_that_is_open_for_writing_elsewhere_is_not_called_damaged(tmp_path):
    store = make_store(tmp_path / "s.h5")
    other = h5py.File(store.path, "r+")
    for judge in (lambda: FeatureStore.open(store.path), store.verify):
        with pytest.raises(UnreadableStore, match=r"open for writing in another program|changed while it was in use"):
            judge()
    other.close()
    FeatureStore.open(store.path).verify()


def test_a_store_that_is_written_while_it_is_read_is_not_called_damaged(tmp_path, monkeypatch):
    store = make_store(tmp_path / "s.h5")

    def read(file, offset, size):
        store.path.write_bytes(bytes(100))
        return bytes(size)

    monkeypatch.setattr("common.store.read_at", read)
    with pytest.raises(UnreadableStore, match="changes while it is read"):
        store.verify()


def test_rows_are_named(tmp_path):
    store = make_store(tmp_path / "s.h5", classes=2, train=5, test=3)
    assert store.names(np.array([15, 0])) == ["test/00015.png", "train/00000.png"]


def test_what_takes_the_place_of_an_open_store_is_not_taken_for_it(tmp_path):
    store = make_store(tmp_path / "s.h5")
    other = make_store(tmp_path / "other.h5", feature_dim=8)
    other.path.replace(store.path)
    with pytest.raises(UserError, match="replaced or changed while it was in use"):
        _ = store.labels
    with pytest.raises(UserError, match="replaced or changed while it was in use"):
        store.verify()


def test_damage_to_the_places_of_names_is_found(tmp_path):
    store = make_store(tmp_path / "s.h5")
    content = bytearray(store.path.read_bytes())
    content[store.places["name_offsets"].offset + 8] ^= 1
    store.path.write_bytes(content)
    with pytest.raises(DamagedStore, match="/name_offsets"):
        FeatureStore.open(store.path).verify()
