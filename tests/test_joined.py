"""Several stores of the same images, side by side."""

import json
import pickle

import numpy as np
import pytest
import torch
from fabricate import call, refuses

from common.joined import JoinedStore, open_stores
from common.store import SPLITS, FeatureStore
from common.store_writer import name_arrays, write_store
from common.synthetic import make_header, make_store
from find.cli import main as find
from train.cli import main as train
from train.config import DataConfig
from train.task import prepare

TINY = ["--set", "method=normalised_plda"]


def shuffled(store, seed):
    """Its rows in another order, the training split first."""
    return np.concatenate([np.random.default_rng(seed).permutation(store.rows_of(split)) for split in SPLITS])


def beside(first, path, *, rows=None, change=None, dim=6, views=2, names=None, classes=4):
    """A store of these rows of another store, in this order, with features of its own.

    change: changes the arrays and the header before they are written.
    """
    rows = shuffled(first, 1) if rows is None else np.asarray(rows)
    arrays = {name: first.array(name)[rows] for name in ("labels", "image_index", "split", "image_sha256")}
    for number in range(2):  # as in every store, it rises within a split
        part = arrays["split"] == number
        arrays["image_index"][part] = np.sort(arrays["image_index"][part])
    noise = np.random.default_rng(2).normal(size=(views, len(rows), dim))
    arrays["features"] = (5 * np.eye(dim)[arrays["labels"]] + noise).astype("<f2")
    files = first.names(rows) if names is None else names
    header = make_header(classes, dim, views, 1, "bfloat16")
    if change:
        change(arrays, header)
    write_store(path, header, {**arrays, **name_arrays(files)})
    return FeatureStore.open(path)


@pytest.fixture
def first(tmp_path):
    return make_store(tmp_path / "a.h5", views=2)


def rename(arrays, header):
    """The same classes, in another order."""
    header["class_names"] = header["identity"]["data_set"]["class_names"] = header["class_names"][::-1]
    arrays["labels"] = 3 - arrays["labels"]


@pytest.mark.parametrize("change", [None, rename])
def test_an_image_has_the_features_of_both_in_whatever_order_they_lie(first, tmp_path, change):
    other = beside(first, tmp_path / "b.h5", change=change)
    joined = JoinedStore.join([first.path, other.path], pytest.fail)
    task = prepare(joined, DataConfig(views="all"))
    ours = np.array([[3, 70], [100, 0]])
    theirs = np.array([other.names(range(180)).index(name) for name in first.names(ours.ravel())]).reshape(2, 2)
    for view in (0, 1, np.array([[0, 1], [1, 1]])):
        expected = np.concatenate([first.features[view, ours], other.features[view, theirs]], -1)
        assert torch.equal(task.gather(ours, view), torch.from_numpy(expected.astype("f4")))
    means = np.concatenate([first.mean_views(ours[0]), other.mean_views(theirs[0])], 1)
    assert np.array_equal(joined.mean_views(ours[0]), means)
    mean, std = task.statistics()
    rows = joined.rows_by_store(task.train.rows)
    flat = np.concatenate([store.features[:, r] for store, r in zip(joined.stores, rows, strict=True)], -1)
    assert np.allclose(mean, flat.astype("f8").mean((0, 1)), atol=1e-5)
    assert np.allclose(std, flat.astype("f8").std((0, 1)), atol=1e-5)
    assert task.feature_dim == joined.feature_dim == 22


def test_sets_are_those_of_the_first_store_and_nothing_is_copied(first, tmp_path):
    joined = JoinedStore.join([first.path, beside(first, tmp_path / "b.h5").path])
    task, alone = (prepare(store, DataConfig()) for store in (joined, first))
    assert task.test.digest() == alone.test.digest()
    for store, features in zip(joined.stores, task.features, strict=True):
        assert features.data_ptr() == store.features.ctypes.data
    again = pickle.loads(pickle.dumps(joined))
    assert again.identity_sha256 == joined.identity_sha256
    with pytest.raises(ValueError, match="features of its own"):
        _ = joined.features
    assert again.rows_by_store(np.arange(9))[1].tolist() == joined.rows_by_store(np.arange(9))[1].tolist()


def test_of_several_layers_the_last_is_taken_of_each_store(tmp_path):
    first = make_store(tmp_path / "a.h5", layers=[("last", 10), ("layer3", 6)])
    joined = JoinedStore.join([first.path, beside(first, tmp_path / "b.h5").path], lambda _: None)
    for layers, dims in (("last", 16), ("all", 22)):
        assert prepare(joined, DataConfig(layers=layers)).feature_dim == dims


def test_images_that_one_store_lacks_are_left_out_and_counted(first, tmp_path):
    other, said = beside(first, tmp_path / "b.h5", rows=np.arange(20, 180)), []
    joined = JoinedStore.join([other.path, first.path], said.append)
    assert len(joined.labels) == 160
    joined = JoinedStore.join([first.path, other.path], said.append)
    assert len(said) == 2
    assert said[1].startswith("160 images are in all stores; left out, since another store lacks them: 20 of 180 in")
    assert said[1].endswith(f"0 of 160 in {other.path}")
    assert joined.names([0, 159]) == first.names([20, 179])
    for name in ("labels", "split", "image_index", "image_sha256", "thumbnails"):
        assert np.array_equal(getattr(joined, name), getattr(first, name)[20:])
    assert np.array_equal(joined.rows("thumbnails", np.array([[2]])), first.thumbnails[[[22]]])
    assert joined.rows_of("test").tolist() == (first.rows_of("test") - 20).tolist()


def test_views_that_one_store_lacks_are_not_used(first, tmp_path):
    said = []
    joined = JoinedStore.join([first.path, beside(first, tmp_path / "b.h5", views=1).path], said.append)
    assert joined.views == ["plain"]
    assert prepare(joined, DataConfig(views="all")).views == 1
    assert len(said) == 1
    assert said[0].endswith("used are the first 1 of each")


@pytest.mark.parametrize("by_name", [True, False])
def test_equal_pictures_are_matched_by_name_else_by_their_place(first, tmp_path, by_name):
    arrays = {name: np.array(first.array(name)) for name in first.places if not name.startswith("name")}
    arrays["image_sha256"][[5, 40, 150]] = arrays["image_sha256"][1]  # of its class, of another, of the test
    write_store(tmp_path / "c.h5", {**first.header}, {**arrays, **name_arrays(first.names(range(180)))})
    twins = FeatureStore.open(tmp_path / "c.h5")
    rows = shuffled(first, 3) if by_name else np.arange(180)
    names = None if by_name else [f"elsewhere/{row}.png" for row in rows]
    other = beside(twins, tmp_path / "b.h5", rows=rows, names=names)
    joined = JoinedStore.join([twins.path, other.path], pytest.fail)
    assert rows[joined.rows_by_store(np.arange(180))[1]].tolist() == list(range(180))


def relabel(arrays, header):
    arrays["labels"][7] = (arrays["labels"][7] + 1) % 4


def resplit(arrays, header):
    row = np.flatnonzero(arrays["split"] == 0)[-1]
    arrays["image_index"][arrays["split"] == 1] += 1
    arrays["split"][row], arrays["image_index"][row] = 1, 0


def repaint(arrays, header):
    arrays["image_sha256"] ^= 255


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (relabel, r"disagree on the class of 1 of 180 images, such as \w+/\d+\.png \(\"class\d\" and \"class\d\"\)"),
        (resplit, r"disagree on the split of 1 of 180 images, such as train/\d+\.png \(\"train\" and \"test\"\)"),
        (repaint, "have no image in common: extract both from the same images"),
    ],
)
def test_stores_that_disagree_are_refused(first, tmp_path, change, sentence):
    refuses(sentence, JoinedStore.join, [first.path, beside(first, tmp_path / "b.h5", change=change).path])


def test_each_store_is_given_once_and_has_a_reference(first, tmp_path):
    refuses("is given twice", open_stores, [first.path, first.path])
    a, b = first.path, beside(first, tmp_path / "b.h5").path
    assert "a reference is needed" in call(find, "odd", a, "--beside", b, "--reference", a, code=2).output
    call(find, "odd", a, "--beside", b, "--reference", a, "--reference", b, "--out", tmp_path / "odd")


def test_a_head_of_two_stores_says_so_and_is_refused_on_one_or_in_another_order(first, tmp_path):
    a, b = first.path, beside(first, tmp_path / "b.h5").path
    both = ["--store", a, "--store", b]
    call(train, "fit", *both, "--run", tmp_path / "run", *TINY)
    store = json.loads((tmp_path / "run/report.json").read_text())["store"]
    assert store["path"] == f"{a} + {b}"
    beside_it = [FeatureStore.open(path).identity_sha256 for path in (a, b)]
    assert [part["identity_sha256"] for part in store["beside"]] == beside_it
    assert store["identity_sha256"] == open_stores([a, b]).identity_sha256
    assert "complete" in call(train, "fit", *both, "--run", tmp_path / "run", *TINY).stderr
    for stores in (["--store", a], ["--store", b, "--store", a]):
        refused = call(train, "fit", *stores, "--run", tmp_path / "run", *TINY, code=2)
        assert "was begun with another feature store" in refused.output
    call(find, "odd", a, "--beside", b, "--run", tmp_path / "run", "--out", tmp_path / "odd")
    assert json.loads((tmp_path / "odd/findings.json").read_text())["settings"]["store"] == f"{a} + {b}"
    odd = ["--run", tmp_path / "run"]
    assert "is for features of 22 dimensions" in call(find, "odd", a, *odd, code=2).output
    assert "was made with another" in call(find, "odd", b, "--beside", a, *odd, code=2).output


def test_a_phase_and_an_audit_of_stores_side_by_side(first, tmp_path):
    a, b = first.path, beside(first, tmp_path / "b.h5").path
    (tmp_path / "p").mkdir()
    (tmp_path / "p/config.toml").write_text('method = "normalised_plda"\n[plan]\nruns = ["one:"]\n')
    call(train, "phase", tmp_path / "p/config.toml", "--store", a, "--beside", b, "--runs", tmp_path / "runs")
    assert len(json.loads((tmp_path / "runs/p/one-seed0/report.json").read_text())["store"]["beside"]) == 2
    call(find, "audit", a, "--beside", b, "--out", tmp_path / "audit")
    assert (tmp_path / "audit/index.html").is_file()
