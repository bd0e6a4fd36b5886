import json

import numpy as np
from fabricate import make_store

from common.run_folder import RunFolder
from train.config import Config
from train.loop import predict
from train.methods import build_method
from train.report import summary, write_report
from train.task import prepare

LOSSES = {"train_loss": 1.0, "val_loss": 1.0, "train_top1": 0.5, "train_seconds": 2.0}
HISTORY = [{"epoch": epoch, "val_top1": top1, **LOSSES} for epoch, top1 in ((1, 0.4), (2, 0.6), (3, 0.6))]


def test_a_report_says_what_was_measured_on_which_sets(tmp_path):
    store, config = make_store(tmp_path / "s.h5"), Config()
    task = prepare(store, config.data)
    model = build_method(config, task.feature_dim)
    run = RunFolder(tmp_path)
    report = write_report(run, config, store, task, model, HISTORY)
    assert json.loads(run.report.read_text()) == report
    right = predict(model, task, task.test, 7).numpy().argmax(1) == task.test.target
    assert report["test"]["top1"] == np.mean(right)
    assert report["test"]["sets_sha256"] == task.test.digest() != report["val"]["sets_sha256"]
    assert (report["best_epoch"], report["epochs"], report["train_seconds"]) == (2, 3, 6.0)
    assert report["train_sets_per_second"] == round(len(task.train.rows) * 3 / 6)
    assert report["store"]["identity_sha256"] == store.identity_sha256
    assert all((tmp_path / name).is_file() for name in ("curves.png", "attention.png", "mistakes.png"))
    text = summary(report)
    assert f"test top-1 {100 * report['test']['top1']:.2f} %" in text
    assert "RANDOM" not in text
    report["store"]["random_weights"] = True
    assert "RANDOM" in summary(report)
