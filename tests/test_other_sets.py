import msgspec
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from common.synthetic import make_store
from train.config import DataConfig
from train.loop import Scorer
from train.methods.base import Method
from train.methods.dummy import Dummy
from train.methods.random import Random
from train.report.other_sets import _measure_ranking, contrast, measure_detection, measure_other_sets
from train.report.schema import OtherSets
from train.task import prepare

DIM = 16


class Oracle(Method):
    """The fewer items of a set have its features, the more anomalous an item is: right where classes are points."""

    def compare(self, encoded):
        return -(encoded[:, :, None] == encoded[:, None]).all(-1).sum(-1).float()


def task_of(folder, *, classes=8, train=200, test=60, set_size=10):
    store = make_store(folder / "s.h5", classes=classes, train=train, test=test, spread=0, thumbnails=False)
    return prepare(store, DataConfig(set_size=set_size))


def measure(model, task, batch_size):
    images = np.concatenate([task.val_images.rows, task.test_images.rows])
    return measure_other_sets(Scorer(model, task, images, batch_size), task)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return task_of(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def oracle(task):
    return measure(Oracle(DIM), task, 100)


def test_an_oracle_is_right_at_every_size_and_about_any_number_of_anomalies_also_none(oracle):
    sizes = {size: found.top1 for size, found in oracle.set_size.items()}
    assert sizes == dict.fromkeys(("3", "5", "10", "20", "30", "50"), 1.0)
    assert list(oracle.anomalies) == ["1", "2", "3"]
    for found in oracle.anomalies.values():
        assert (found.auroc_within_sets, found.precision_at_k, found.n) == (1, 1, 480)
    found = oracle.detection
    assert (found.n, found.false_alarms) == (480, 0)
    assert found.detected == found.auroc == {"1": 1.0, "2": 1.0, "3": 1.0}
    assert found.best_accuracy.accuracy == 1


def test_log_odds_tell_sets_apart_that_stand_out_alike_and_several_anomalies_do_not_hide_each_other():
    rng = np.random.default_rng(0)
    clean = rng.normal(size=(300, 10))
    sets = {0: clean, 1: rng.normal(size=(300, 10)) + 5}  # every score higher, none stands out
    found = measure_detection(sets, sets)
    assert (found.statistic, found.auroc["1"], found.best_accuracy.accuracy) == ("log-odds", 1, 1)
    peaked = {k: scores + k * (9 * np.eye(10)[0] - 12) for k, scores in {0: clean, 1: clean}.items()}
    assert measure_detection(peaked, peaked).statistic == "contrast"
    scores = np.zeros((1, 10))
    scores[0, :3] = 5
    assert contrast(scores).tolist() == [5]
    assert contrast(scores + 100).tolist() == [5]


def test_a_blind_method_is_at_chance_in_everything(task):
    blind = measure(Random(DIM, 0), task, 100)
    for size, found in blind.set_size.items():
        low, high = found.top1_interval
        assert low <= found.top1 <= high
        assert found.top1 == pytest.approx(1 / int(size), abs=0.07)
    for k, found in blind.anomalies.items():
        assert found.auroc_within_sets == pytest.approx(0.5, abs=0.05)
        assert found.precision_at_k == pytest.approx(int(k) / 10, abs=0.05)
    none = blind.detection
    assert none.false_alarms == pytest.approx(0.05, abs=0.05)
    for k in "123":
        assert (none.auroc[k], none.detected[k]) == (pytest.approx(0.5, abs=0.08), pytest.approx(0.05, abs=0.05))
    assert none.best_accuracy.accuracy == pytest.approx(0.5, abs=0.08)
    assert msgspec.json.decode(msgspec.json.encode(blind), type=OtherSets) == blind


def test_a_method_of_one_size_is_measured_at_that_size_and_all_that_is_measured_can_be_json(task, oracle):
    assert measure(Oracle(DIM), task, 7) == oracle, "the sets are the same in batches of any size"
    found = measure(Dummy(DIM, 10), task, 100)
    for measured in (oracle, found):
        assert msgspec.json.decode(msgspec.json.encode(measured), type=OtherSets) == measured
    assert list(found.set_size) == ["10"]
    assert found.set_size["10"].top1 == pytest.approx(0.1)
    assert found.set_size["10"].top1_interval == pytest.approx([0.076, 0.130], abs=1e-3)
    assert found.anomalies["2"].auroc_within_sets == 0.5


def test_sizes_and_numbers_of_anomalies_end_where_images_and_classes_do(tmp_path):
    found = measure(Oracle(DIM), task_of(tmp_path, classes=2, test=19), 100)
    assert list(found.set_size) == ["3", "5", "10", "20"]
    assert list(found.anomalies) == list(found.detection.auroc) == ["1"]
    small = tmp_path / "small"
    found = measure(Oracle(DIM), task_of(small, set_size=3), 100)
    assert list(found.anomalies) == ["1", "2"]


def test_classes_that_are_just_large_enough_for_the_protocol_are_no_mistake(tmp_path):
    found = measure(Oracle(DIM), task_of(tmp_path, train=18, test=9), 100)
    assert (found.set_size["10"].top1, found.anomalies["1"].auroc_within_sets) == (1, 1)
    assert found.detection is None


def test_a_large_store_is_measured_on_some_of_its_images(task, monkeypatch):
    monkeypatch.setattr("train.report.other_sets.MOST_SETS", 50)
    seen = []

    class Watching(Oracle):
        def compare(self, encoded):
            seen.append(encoded[:, :, 0].unique().numel())
            return super().compare(encoded)

    found = measure(Watching(DIM), task, 1000)
    assert {each.n for each in (*found.set_size.values(), *found.anomalies.values(), found.detection)} == {50}
    assert set(seen) == {8}, "not of all classes"


def test_the_threshold_lets_five_percent_of_the_clean_validation_sets_through():
    generator = np.random.default_rng(0)
    val, test = ({k: generator.normal(size=(2000, 10)) for k in (0, 1)} for _ in range(2))
    for scores in (val, test):
        scores[1][:, 3] += 3
        scores[1] -= 2  # no log-odds: they would say "none" of these
    found = measure_detection(val, test)
    assert np.mean(contrast(val[0]) > found.threshold) == pytest.approx(0.05, abs=1e-3)
    assert found.false_alarms == np.mean(contrast(test[0]) > found.threshold) == pytest.approx(0.05, abs=0.02)
    assert found.detected["1"] == np.mean(contrast(test[1]) > found.threshold)
    truth = np.repeat([0, 1], 2000)
    both = np.concatenate([contrast(test[0]), contrast(test[1])])
    assert found.auroc["1"] == pytest.approx(roc_auc_score(truth, both))
    best = max(np.mean((both >= threshold) == truth) for threshold in both)
    assert best - 0.02 <= found.best_accuracy.accuracy <= best


@pytest.mark.parametrize("k", [1, 2, 3])
def test_items_are_ranked_within_their_set(k):
    generator = np.random.default_rng(k)
    scores = generator.integers(6, size=(50, 10)).astype(np.float32) + np.arange(50)[:, None]  # with ties
    is_anomaly = generator.permuted(np.broadcast_to(np.arange(10) < k, (50, 10)), axis=1)
    expected = np.mean([roc_auc_score(odd, row) for odd, row in zip(is_anomaly, scores, strict=True)])
    assert _measure_ranking(scores, is_anomaly, k).auroc_within_sets == pytest.approx(expected)
    scores += 10 * is_anomaly
    assert _measure_ranking(scores, is_anomaly, k).precision_at_k == 1
    assert _measure_ranking(scores - 20 * is_anomaly, is_anomaly, k).precision_at_k == 0


def test_a_method_that_averages_views_encodes_each_image_once(task):
    encoded = []

    class Averaging(Oracle):
        averages_views = True

        def encode(self, features):
            encoded.append(len(features))
            return features

    assert measure(Averaging(DIM), task, 100) == measure(Oracle(DIM), task, 100)
    assert sum(encoded) == len(task.val_images.rows) + len(task.test_images.rows)
