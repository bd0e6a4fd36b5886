import numpy as np
import pytest
import torch
from fabricate import make_store

from common.errors import UserError
from train.config import DataConfig
from train.task import prepare


def images_of(sets):
    return set(sets.rows.ravel().tolist())


def test_training_validation_and_test_share_no_image(tmp_path):
    store = make_store(tmp_path / "s.h5")
    task = prepare(store, DataConfig())
    train, val, test = set(task.train.rows.tolist()), images_of(task.val), images_of(task.test)
    assert not train & val
    assert not test & (train | val)
    assert test <= set(store.rows_of("test").tolist())
    assert len(train) + len(task.val) == len(store.rows_of("train"))


def test_labels_of_sets_are_those_of_the_store(tmp_path):
    store = make_store(tmp_path / "s.h5")
    sets = prepare(store, DataConfig()).test
    labels = store.labels[sets.rows]
    assert (labels[np.arange(len(sets)), sets.target] == sets.anomaly_label).all()
    assert ((labels == sets.set_label[:, None]).sum(1) == 9).all()


def test_classes_select_a_subset_without_another_extraction(tmp_path):
    task = prepare(make_store(tmp_path / "s.h5"), DataConfig(classes=("class3", "class1")))
    assert task.train.classes.tolist() == [1, 3]
    assert set(task.test.set_label.tolist()) == {1, 3}


def test_a_misspelt_class_is_named(tmp_path):
    with pytest.raises(UserError, match='"clas1": did you mean "class1"'):
        prepare(make_store(tmp_path / "s.h5"), DataConfig(classes=("clas1", "class2")))


def test_shuffled_labels_keep_the_splits_and_mix_the_classes(tmp_path):
    store = make_store(tmp_path / "s.h5")
    task = prepare(store, DataConfig(shuffle_labels=True))
    assert images_of(task.test) <= set(store.rows_of("test").tolist())
    true = store.labels[task.test.rows]
    assert max(len(set(row)) for row in true.tolist()) > 2


def test_gather_takes_each_item_from_its_view(tmp_path):
    store = make_store(tmp_path / "s.h5", views=2, dtype="<f2")
    task = prepare(store, DataConfig(views="all"))
    rows, views = np.array([[3, 3, 50]]), np.array([[0, 1, 1]])
    gathered = task.gather(rows, views)
    assert gathered.dtype == torch.float32
    assert (gathered.numpy()[0] == store.features[[0, 1, 1], [3, 3, 50]]).all()
    assert prepare(store, DataConfig(views="first")).features.shape[0] == 1


def test_statistics_are_those_of_the_training_images(tmp_path):
    store = make_store(tmp_path / "s.h5", views=2)
    task = prepare(store, DataConfig(views="all"))
    mean, std = task.statistics()
    chosen = store.features[:, task.train.rows].reshape(-1, 16)
    np.testing.assert_allclose(mean, chosen.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(std, chosen.std(0), rtol=1e-5)


def test_features_that_are_not_finite_are_refused(tmp_path):
    store = make_store(tmp_path / "s.h5", spread=np.inf)
    with pytest.raises(UserError, match="not finite"):
        prepare(store, DataConfig())


def test_a_flipped_bit_is_noticed_before_training(tmp_path):
    store = make_store(tmp_path / "s.h5")
    with (tmp_path / "s.h5").open("r+b") as file:
        file.seek(store.places["features"].offset + 1000)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 4]))
    with pytest.raises(UserError, match="block 0 of /features"):
        prepare(store, DataConfig())


def test_the_split_seed_chooses_the_validation_images_and_leaves_the_test_sets(tmp_path):
    store = make_store(tmp_path / "s.h5")
    first, again, other = (prepare(store, DataConfig(split_seed=seed)) for seed in (0, 0, 1))
    assert first.val.digest() == again.val.digest() != other.val.digest()
    assert first.test.digest() == other.test.digest()
