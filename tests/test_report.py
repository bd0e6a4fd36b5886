import json

import numpy as np
import pytest
from fabricate import make_epoch
from msgspec import structs

from common.synthetic import make_store
from train.config import Config
from train.log.runs import load_run
from train.loop import predict
from train.methods.base import build_method
from train.report.schema import Twins, read_report
from train.report.write import summary, write_report
from train.run_folder import RunFolder
from train.task import prepare

EPOCHS = [make_epoch(epoch, top1) for epoch, top1 in ((1, 0.4), (2, 0.6), (3, 0.6))]


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr("train.report.write._draw", lambda *_: None)


def reported(folder, store, config, history):
    task = prepare(store, config.data)
    model = build_method(config, task.feature_dim)
    model.fit(task)
    return write_report(RunFolder(folder), config, task, model, history), task, model


@pytest.mark.usefixtures("no_pictures")
def test_a_report_says_what_was_measured_on_which_sets(tmp_path):
    store, config = make_store(tmp_path / "s.h5", train=100), Config()
    report, task, model = reported(tmp_path, store, config, EPOCHS)
    assert (tmp_path / "report.json").read_text() == report.to_json()
    assert read_report(tmp_path / "report.json").to_json() == report.to_json()
    right = predict(model, task, task.test, 7).numpy().argmax(1) == task.test.target
    assert report.test.top1 == np.mean(right)
    assert report.test.sets_sha256 == task.test.digest() != report.val.sets_sha256
    assert report.test.positions == np.bincount(task.test.target, minlength=10).tolist()
    (tmp_path / "checkpoint.pt").touch()
    RunFolder(tmp_path).mark_done()
    run = load_run(tmp_path)
    assert run.config == config
    assert run.report.test.unpack_solved().tolist() == right.tolist()
    assert (report.best_epoch, report.history, report.train_seconds) == (2, EPOCHS, 6.0)
    assert report.train_sets_per_second == round(len(task.train.rows) * 3 / 6)
    assert report.seconds >= 7.5
    assert report.store.identity_sha256 == store.identity_sha256
    text = summary(report)
    assert f"test top-1 {100 * report.test.top1:.2f} %" in text
    assert "RANDOM" not in text
    assert "hard sets" not in text
    random = structs.replace(report, store=structs.replace(report.store, random_weights=True))
    assert "RANDOM" in summary(random)


@pytest.mark.usefixtures("no_pictures")
def test_a_report_has_what_is_measured_beyond_the_plain_test(tmp_path):
    store = make_store(tmp_path / "s.h5", train=100, class_superclass=[0, 0, 1, 1])
    report, task, _ = reported(tmp_path, store, Config(), EPOCHS)
    assert (report.hard.n, report.hard.sets_sha256) == (len(task.hard), task.hard.digest())
    test = report.test
    assert report.without_twins == Twins([], test.n, test.top1, test.top1_interval)
    assert np.sum(report.failures.matrix, (0, 1))[0] == len(task.test)
    assert list(report.other_sets.set_size) == ["3", "5", "10"]
    assert np.shape(report.attention.mass_on_anomaly) == (4, 4)
    assert f"hard sets, of one super-class: {100 * report.hard.top1:.2f} % (n = 60)" in summary(report)


def test_a_method_that_is_not_trained_has_no_history_and_no_curves(tmp_path):
    report, _, _ = reported(tmp_path, make_store(tmp_path / "s.h5", train=100), Config(method="knn"), [])
    assert (report.history, report.best_epoch, report.train_seconds) == ([], None, 0)
    assert (report.train_sets_per_second, report.attention, report.parameters) == (None, None, 0)
    assert {file.name for file in tmp_path.glob("*.png")} == {"mistakes.png"}
    assert "best epoch" not in summary(report)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("method", ["dummy", "random", "centroid"])
def test_a_report_is_json_to_every_reader(tmp_path, method):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    reported(tmp_path, make_store(tmp_path / "s.h5", train=100), Config(method=method), [])
    json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(("layers", "said"), [("last", ["last"]), ("all", ["last", "layer3"])])
def test_a_report_says_which_layers_were_used(tmp_path, layers, said):
    store = make_store(tmp_path / "s.h5", train=100, layers=[("last", 10), ("layer3", 6)])
    config = Config.load(None, ["method=centroid", f"data.layers={layers}"])
    report, task, _ = reported(tmp_path, store, config, [])
    assert report.store.layers == said
    assert task.feature_dim == sum(store.layers[name] for name in said)
