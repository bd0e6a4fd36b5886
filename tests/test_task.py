import os

import numpy as np
import pytest
import torch
from fabricate import flip_bit, refuses

from common.store import FeatureStore
from common.synthetic import make_store
from train.config import DataConfig
from train.task import prepare


def images_of(sets):
    return set(sets.rows.ravel().tolist())


def test_training_validation_and_test_share_no_image_and_have_the_labels_of_the_store(store):
    task = prepare(store, DataConfig())
    labels = store.labels[task.test.rows]
    assert (labels[np.arange(len(labels)), task.test.target] == task.test.anomaly_label).all()
    assert ((labels == task.test.set_label[:, None]).sum(1) == 9).all()
    train, val, test = set(task.train.rows.tolist()), images_of(task.val), images_of(task.test)
    assert not train & val
    assert not test & (train | val)
    assert test <= set(store.rows_of("test").tolist())
    assert len(train) + len(task.val) == len(store.rows_of("train"))


def test_what_training_uses_is_verified_once_and_nothing_else_is_read(store, monkeypatch):
    read, real = [], FeatureStore._verify_block
    monkeypatch.setattr(FeatureStore, "_verify_block", lambda self, name, i: read.append(name) or real(self, name, i))
    prepare(store, DataConfig()).statistics()
    assert sorted(read) == ["features", "image_sha256", "labels", "split"]


def test_classes_are_a_subset_without_another_extraction_and_share_their_test_sets_over_splits(tmp_path):
    task = prepare(make_store(tmp_path / "s.h5"), DataConfig(classes=("class3", "class1")))
    assert task.train.classes.tolist() == [1, 3]
    assert set(task.test.set_label.tolist()) == {1, 3}
    store = make_store(tmp_path / "s.h5")
    first, again, other = (prepare(store, DataConfig(split_seed=seed)) for seed in (0, 0, 1))
    assert first.val.digest() == again.val.digest() != other.val.digest()
    assert first.test.digest() == other.test.digest()


def test_shuffled_labels_keep_the_splits_and_mix_the_classes(store):
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
    assert prepare(store, DataConfig(views="first")).views == 1


def test_statistics_are_those_of_the_training_images(tmp_path):
    store = make_store(tmp_path / "s.h5", views=2)
    task = prepare(store, DataConfig(views="all"))
    mean, std = task.statistics()
    chosen = store.features[:, task.train.rows].reshape(-1, 16)
    np.testing.assert_allclose(mean, chosen.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(std, chosen.std(0), rtol=1e-5)


def test_a_flipped_bit_is_noticed_before_training(store):
    times = store.path.stat()
    flip_bit(store.path, store.places["features"].offset + 1000)
    os.utime(store.path, ns=(times.st_atime_ns, times.st_mtime_ns))  # a disk that forgets does not say when
    refuses("block 0 of /features", prepare, store, DataConfig())


def test_hard_sets_are_of_one_superclass_and_of_test_images_alone(tmp_path):
    store = make_store(tmp_path / "s.h5", classes=5, class_superclass=[0, 1, 0, 1, 2])
    task = prepare(store, DataConfig())
    assert task.superclass.tolist() == [0, 1, 0, 1, 2]
    assert images_of(task.hard) <= set(store.rows_of("test").tolist())
    assert (task.superclass[task.hard.set_label] == task.superclass[task.hard.anomaly_label]).all()
    assert (task.hard.set_label != task.hard.anomaly_label).all()
    assert np.unique(task.hard.anomaly_label, return_counts=True)[1].tolist() == [15] * 4
    assert set(task.hard.anomaly_label.tolist()) == {0, 1, 2, 3}


def test_there_are_no_hard_sets_where_no_classes_share_a_superclass(tmp_path):
    assert prepare(make_store(tmp_path / "plain.h5"), DataConfig()).hard is None
    store = make_store(tmp_path / "s.h5", classes=5, class_superclass=[0, 1, 0, 1, 2])
    assert prepare(store, DataConfig(classes=("class0", "class1", "class4"))).hard is None
    assert prepare(store, DataConfig(shuffle_labels=True)).hard is None


def test_more_classes_contain_fewer_and_the_split_seed_draws_others(tmp_path):
    store = make_store(tmp_path / "s.h5", classes=60, train=20, test=10)
    limits = ((20, 0), (50, 0), (20, 1), (0, 0))
    tasks = {each: prepare(store, DataConfig(class_limit=each[0], split_seed=each[1])) for each in limits}
    chosen = {each: set(task.test.anomaly_label.tolist()) for each, task in tasks.items()}
    assert [len(classes) for classes in chosen.values()] == [20, 50, 20, 60]
    assert chosen[20, 0] < chosen[50, 0] < chosen[0, 0]
    assert chosen[20, 0] != chosen[20, 1]
    named = DataConfig(class_limit=2, classes=("class5", "class7", "class9"))
    assert set(prepare(store, named).train.classes.tolist()) < {5, 7, 9}


def test_unseen_classes_are_tested_on_and_never_trained_on(tmp_path):
    store = make_store(tmp_path / "s.h5", classes=8)
    task, other = (prepare(store, DataConfig(unseen_classes=3, split_seed=seed)) for seed in (0, 1))
    unseen, seen = set(task.test_images.classes.tolist()), set(task.train.classes.tolist())
    assert len(unseen) == 3
    assert seen == set(range(8)) - unseen
    assert set(task.val_images.classes.tolist()) == seen
    assert {*task.test.set_label.tolist(), *task.test.anomaly_label.tolist()} == unseen
    assert set(store.labels[task.test.rows].ravel().tolist()) == unseen
    assert set(store.labels[task.train.rows].tolist()) == set(store.labels[task.val.rows].ravel().tolist()) == seen
    assert set(other.test_images.classes.tolist()) != unseen


def test_unseen_classes_are_taken_from_those_of_the_limit(tmp_path):
    store = make_store(tmp_path / "s.h5", classes=8)
    limited = set(prepare(store, DataConfig(class_limit=5)).train.classes.tolist())
    task = prepare(store, DataConfig(class_limit=5, unseen_classes=2))
    assert {*task.train.classes.tolist(), *task.test_images.classes.tolist()} == limited
    assert len(task.test_images.classes) == 2


@pytest.mark.parametrize(
    ("classes", "limits"),
    [
        (4, {"class_limit": 5}),
        (4, {"unseen_classes": 3}),
        (4, {"class_limit": 2, "unseen_classes": 3}),
        (8, {"class_limit": 4, "unseen_classes": 3}),
    ],
)
def test_limits_that_the_classes_do_not_allow_are_refused(tmp_path, classes, limits):
    store = make_store(tmp_path / "s.h5", classes=classes)
    refuses(rf"there are {classes} classes, .* needs 5: lower them", prepare, store, DataConfig(**limits))


def test_other_layers_are_used_only_where_they_are_wanted(tmp_path):
    store = make_store(tmp_path / "s.h5", views=2, layers=[("last", 10), ("layer3", 6)])
    plain, all_layers = (prepare(store, DataConfig(views="all", layers=layers)) for layers in ("last", "all"))
    assert (plain.feature_dim, all_layers.feature_dim) == (10, 16)
    rows, views = plain.test.rows[:7], np.ones((7, 10), np.int64)
    assert torch.equal(plain.gather(rows, views), all_layers.gather(rows, views)[..., :10])
    assert (all_layers.gather(rows, views).numpy() == store.features[1][rows]).all()
    assert torch.equal(plain.statistics()[1], all_layers.statistics()[1][:10])
    assert plain.features[0].flatten(0, 1).data_ptr() == plain.features[0].data_ptr(), "the features are copied"
    store = make_store(tmp_path / "one.h5")
    assert store.layers == {"last": 16}
    assert prepare(store, DataConfig(layers="all")).feature_dim == prepare(store, DataConfig()).feature_dim == 16


@pytest.mark.parametrize(
    ("options", "config", "sentence"),
    [
        ({"classes": 1}, {}, r's\.h5 has one class, "class0", and training needs two.*imagefolder or csv'),
        ({"spread": np.inf}, {}, "not finite"),
        ({}, {"classes": ("clas1", "class2")}, '"clas1": did you mean "class1"'),
    ],
)
def test_what_cannot_be_trained_on_is_refused(tmp_path, options, config, sentence):
    refuses(sentence, prepare, make_store(tmp_path / "s.h5", **options), DataConfig(**config))
