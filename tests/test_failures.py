from collections import Counter

import msgspec
import numpy as np
import pytest
import torch

from common.synthetic import make_store
from train.config import Config, DataConfig
from train.methods.base import build_method
from train.report.failures import measure_attention, measure_failures, measure_twins
from train.report.schema import Attention, Proportion, Twins
from train.task import prepare

GROUP = [0, 0, 1, 1, 1, 2]


@pytest.fixture
def task(tmp_path):
    return prepare(make_store(tmp_path / "s.h5", classes=6, class_superclass=GROUP, thumbnails=False), DataConfig())


def some(sets, fraction=0.7, seed=0):
    return np.random.default_rng(seed).random(len(sets)) < fraction


def test_solved_sets_are_counted_by_superclass_and_by_class_of_the_set_and_of_the_anomaly(task):
    solved = some(task.test)
    found = measure_failures(solved, task, None)
    expected = np.zeros((3, 3, 2), int)
    for own, other, hit in zip(task.test.set_label, task.test.anomaly_label, solved, strict=True):
        expected[GROUP[own], GROUP[other]] += (1, hit)
    assert found.groups == ["super0", "super1", "super2"]
    assert np.array(found.matrix).tolist() == expected.tolist()
    within, across = found.within_superclass, found.across
    assert [within.n, round(within.n * within.top1)] == np.einsum("iij->j", np.array(found.matrix)).tolist()
    assert within.n + across.n == len(solved)
    assert within.n * within.top1 + across.n * across.top1 == pytest.approx(solved.sum())
    assert within.top1_interval[0] < within.top1 < within.top1_interval[1]
    for key, labels in (("by_set_class", task.test.set_label), ("by_anomaly_class", task.test.anomaly_label)):
        expected = {f"class{c}": pytest.approx(solved[labels == c].mean(), abs=1e-4) for c in range(6)}
        assert getattr(found, key) == expected


def test_the_most_confused_pairs_are_those_of_most_misses_in_test_and_hard_sets(task, monkeypatch):
    solved, solved_hard = some(task.test, 0.9), some(task.hard, 0.2, seed=1)
    sets, missed = Counter(), Counter()
    for which, hits in ((task.test, solved), (task.hard, solved_hard)):
        for own, other, hit in zip(which.set_label, which.anomaly_label, hits, strict=True):
            pair = tuple(sorted((own, other)))
            sets[pair] += 1
            missed[pair] += not hit
    monkeypatch.setattr("train.report.failures.WORST_PAIRS", 4)
    worst = measure_failures(solved, task, solved_hard).worst_pairs
    assert [row[3] for row in worst] == sorted(missed.values(), reverse=True)[:4]
    for first, second, n, misses in worst:
        pair = (int(first[-1]), int(second[-1]))
        assert (n, misses) == (sets[pair], missed[pair])
    without_hard = measure_failures(solved, task, None).worst_pairs
    assert sum(row[2] for row in without_hard) < sum(row[2] for row in worst)
    nothing_fails = measure_failures(np.ones(len(task.test), bool), task, np.ones(len(task.hard), bool))
    assert nothing_fails.worst_pairs == []
    assert set(nothing_fails.by_set_class.values()) == {1.0}


def test_without_superclasses_failures_are_counted_by_class_where_these_are_few(tmp_path, monkeypatch):
    task = prepare(make_store(tmp_path / "s.h5", thumbnails=False), DataConfig())
    solved = some(task.test)
    found = measure_failures(solved, task, None)
    assert found.groups == [f"class{label}" for label in range(4)]
    matrix = np.array(found.matrix)
    assert matrix[..., 0].diagonal().tolist() == [0] * 4
    assert matrix.sum((0, 1)).tolist() == [len(solved), solved.sum()]
    of_two = (task.test.set_label == 2) & (task.test.anomaly_label == 1)
    assert matrix[2, 1].tolist() == [of_two.sum(), (of_two & solved).sum()]
    assert found.across is None
    monkeypatch.setattr("train.report.failures.MOST_GROUPS", 3)
    assert measure_failures(solved, task, None).matrix is None


def test_where_every_class_has_a_superclass_of_its_own_nothing_is_within(tmp_path):
    task = prepare(make_store(tmp_path / "s.h5", class_superclass=[0, 1, 2, 3], thumbnails=False), DataConfig())
    solved = some(task.test)
    found = measure_failures(solved, task, None)
    assert (found.within_superclass, found.across) == (Proportion(0), Proportion.of(solved))
    assert Proportion.of(np.zeros(0, bool)) == Proportion(0)
    assert Proportion.of(np.array([True, False])).top1 == 0.5


def test_twins_of_training_images_are_named_and_their_sets_left_out(task):
    store, solved = task.store, some(task.test)
    train, test = store.rows_of("train"), store.rows_of("test")
    twins = test[[0, 40]]
    assert measure_twins(solved, task) == Twins([], **msgspec.structs.asdict(Proportion.of(solved)))
    store.image_sha256[twins] = store.image_sha256[train[[100, 7]]]
    store.image_sha256[test[3]] = store.image_sha256[test[4]]  # twins within the test split give nothing away
    found = measure_twins(solved, task)
    assert found.images == [("class0", 0), ("class2", 40)]
    clean = [not set(twins.tolist()) & set(row) for row in task.test.rows.tolist()]
    assert 0 < found.n == sum(clean) < len(solved)
    assert found.top1 == solved[clean].mean()


def test_twins_of_classes_that_are_not_tested_are_not_named(tmp_path):
    store = make_store(tmp_path / "s.h5", thumbnails=False)
    task = prepare(store, DataConfig(classes=("class1", "class2")))
    store.image_sha256[store.rows_of("test")[0]] = store.image_sha256[0]  # of class0
    assert measure_twins(some(task.test), task).images == []


def transformer(dim):
    overrides = ["head.width=16", "head.layers=2", "head.heads=4", "head.feed_forward=16"]
    return build_method(Config.load(None, overrides), dim).eval()


def test_attention_is_that_of_the_inliers_to_the_anomaly(task):
    model = transformer(task.feature_dim)
    for parameter in model.parameters():
        parameter.data *= 3  # sharper
    found = measure_attention(model, task)
    assert (found.n, found.uniform) == (90, 0.1)
    with torch.inference_mode():
        maps = model.attention_maps(task.gather(task.test.rows)).double().numpy()
    given = [
        maps[:, number, :, query, target]
        for number, target in enumerate(task.test.target)
        for query in range(10)
        if query != target
    ]
    expected = np.mean(given, 0)
    np.testing.assert_allclose(found.mass_on_anomaly, expected, atol=6e-5)
    assert all(0 <= mass <= 1 for layer in found.mass_on_anomaly for mass in layer)
    assert np.ptp(expected) > 0.01, "the same everywhere: nothing is tested"


def test_attention_that_looks_everywhere_is_uniform_and_some_sets_are_enough(task, monkeypatch):
    monkeypatch.setattr("train.report.failures.ATTENTION_SETS", 20)
    model = transformer(task.feature_dim)
    for layer in model.layers:
        layer.attention.query_key_value.weight.data[:16] = 0
    assert measure_attention(model, task) == Attention(20, 0.1, [[0.1] * 4] * 2)
